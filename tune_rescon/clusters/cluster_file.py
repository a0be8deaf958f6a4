"""The part of a cluster's file that the commands need; `check` applies Ray's schema and our own rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.clusters.documents import at, read_documents
from tune_rescon.errors import ClusterFileError, format_error, unknown_name_message

__all__ = [
    "TOKEN",
    "ClusterFile",
    "NodeType",
    "parse_cluster",
    "read_cluster_file",
]


#: The path of Ray's token in a home directory.
TOKEN: Final = "~/.ray/auth_token"

#: Ray's ``max_workers`` of a file that has none.
_DEFAULT_MAX_WORKERS: Final = 2

#: The providers of Ray's launcher.
PROVIDERS: Final = (
    "aliyun",
    "aws",
    "azure",
    "external",
    "fake_multinode",
    "gcp",
    "kuberay",
    "local",
    "readonly",
    "spark",
    "vsphere",
)


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of machine that a cluster may start."""

    name: str
    machine: str
    """The cloud's name of the machine; empty if the file does not name it."""
    max_workers: int
    is_head: bool = False


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """The values of a cluster.yaml that the commands need."""

    path: Path
    name: str
    provider: str
    workers: int
    """Workers that start without a request for resources: the sum of `min_workers`."""
    max_workers: int = 0
    """The most workers that may run at once."""
    node_types: tuple[NodeType, ...] = ()
    """The machines that a cloud may start; empty for a list of hosts."""
    mounts_token: bool = False
    """True if the nodes get this machine's token; otherwise the head makes one for its cluster."""
    region: str | None = None
    ssh_user: str | None = None
    ssh_key: str | None = None
    ssh_proxy_command: str | None = None
    ssh_by_node_id: bool = False
    """True if ssh reaches the nodes by their identifiers, which only Ray has."""


def read_cluster_file(path: Path) -> ClusterFile:
    """Read a cluster's file.

    Raises:
        ClusterFileError: the file is missing, is no YAML, or describes no Ray cluster.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        rule = "must be a cluster's file"
        raise ClusterFileError(format_error(rule, got=f"{path} ({why})", where="FILE")) from None
    documents, unreadable = read_documents(text)
    for finding in unreadable:
        raise ClusterFileError(f"{path}:{finding.line}: {finding.text}")
    content = documents[0].value if documents else None
    return parse_cluster(path, content)


def parse_cluster(path: Path, content: object) -> ClusterFile:
    """Return the values of a file whose YAML is loaded already.

    Raises:
        ClusterFileError: the content describes no Ray cluster.
    """
    top = _mapping(content, str(path), "must be a mapping with `cluster_name` and `provider`")
    name = top.get("cluster_name", "default")
    provider = _mapping(top.get("provider"), f"{path}: provider", "must be a mapping with a `type`")
    kind = provider.get("type")
    if kind not in PROVIDERS:
        raise ClusterFileError(
            unknown_name_message("provider", kind, PROVIDERS, where=f"{path}: provider.type")
        )
    auth = _mapping(top.get("auth") or {}, f"{path}: auth", "must be a mapping")
    most = _count(top.get("max_workers", _DEFAULT_MAX_WORKERS), path, "max_workers")
    mounts = top.get("file_mounts")
    return ClusterFile(
        path=path,
        name=str(name),
        provider=str(kind),
        workers=_workers(path, top, provider),
        max_workers=most,
        node_types=tuple(_node_types(path, top, most)),
        mounts_token=isinstance(mounts, Mapping) and TOKEN in map(str, mounts.values()),
        region=_text(provider.get("region")),
        ssh_user=_text(auth.get("ssh_user")),
        ssh_key=_text(auth.get("ssh_private_key")),
        ssh_proxy_command=_text(auth.get("ssh_proxy_command")),
        ssh_by_node_id=bool(auth.get("ssh_proxy_use_node_id", False)),
    )


def _workers(path: Path, top: Mapping[str, Any], provider: Mapping[str, Any]) -> int:
    types = top.get("available_node_types")
    if types is None:
        hosts = provider.get("worker_ips")
        # Ray's default: all hosts of the list join unless `min_workers` is set.
        return _count(top.get("min_workers", len(hosts) if isinstance(hosts, list) else 0), path)
    kinds = _mapping(types, f"{path}: available_node_types", "must be a mapping")
    where = f"{path}: available_node_types"
    every = (_mapping(kind or {}, f"{where}.{name}", "must be a mapping") for name, kind in kinds.items())
    return sum(_count(kind.get("min_workers", 0), path) for kind in every)


def _node_types(path: Path, top: Mapping[str, Any], most: int) -> Iterator[NodeType]:
    types = top.get("available_node_types")
    for name, kind in types.items() if isinstance(types, Mapping) else ():
        config = at(kind, "node_config")
        # Google's names may be URLs.
        machine = str(at(config, "InstanceType") or at(config, "machineType") or "").rpartition("/")[2]
        limit = at(kind, "max_workers")
        yield NodeType(
            name=name,
            machine=machine,
            max_workers=most if limit is None else _count(limit, path, "max_workers"),
            is_head=name == top.get("head_node_type"),
        )


def _count(value: object, path: Path, key: str = "min_workers") -> int:
    if not isinstance(value, int) or value < 0:
        rule = "must be a whole number, 0 or more"
        raise ClusterFileError(format_error(rule, got=repr(value), where=f"{path}: {key}"))
    return value


def _mapping(value: object, where: str, rule: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        got = "nothing" if value is None else repr(value)
        raise ClusterFileError(format_error(rule, got=got[:80], where=where))
    return value


def _text(value: object) -> str | None:
    return None if value is None else str(value)
