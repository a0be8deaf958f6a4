"""What the commands need to know of a cluster's file; Ray's schema and our own rules are `check`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.errors import ClusterFileError, explain, unknown_name

__all__ = ["ClusterFile", "parse_cluster", "read_cluster_file"]

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
class ClusterFile:
    """A cluster.yaml."""

    path: Path
    name: str
    provider: str
    workers: int
    """That come without being asked for: the sum of `min_workers`."""
    region: str | None = None
    ssh_user: str | None = None
    ssh_key: str | None = None
    ssh_proxy_command: str | None = None
    ssh_by_node_id: bool = False
    """Its ssh reaches nodes by their identifiers, which Ray alone knows."""


def read_cluster_file(path: Path) -> ClusterFile:
    """Read FILE.

    Raises:
        ClusterFileError: there is none, it is no YAML, or no cluster of Ray's.
    """
    # Imported here: the server on the head needs no YAML.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        rule = "must be a cluster's file"
        raise ClusterFileError(explain(rule, got=f"{path} ({why})", where="FILE")) from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ClusterFileError(explain("must be YAML", got=problem, where=where)) from None
    return parse_cluster(path, content)


def parse_cluster(path: Path, content: object) -> ClusterFile:
    """What stands in a file whose YAML is loaded already.

    Raises:
        ClusterFileError: it is no cluster of Ray's.
    """
    top = _mapping(content, str(path), "must be a mapping with `cluster_name` and `provider`")
    name = top.get("cluster_name", "default")
    provider = _mapping(top.get("provider"), f"{path}: provider", "must be a mapping with a `type`")
    kind = provider.get("type")
    if kind not in PROVIDERS:
        raise ClusterFileError(unknown_name("provider", kind, PROVIDERS, where=f"{path}: provider.type"))
    auth = _mapping(top.get("auth") or {}, f"{path}: auth", "must be a mapping")
    return ClusterFile(
        path=path,
        name=str(name),
        provider=str(kind),
        workers=_workers(path, top, provider),
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
        # As Ray has it: the hosts of a list all come, unless it is told otherwise.
        return _count(top.get("min_workers", len(hosts) if isinstance(hosts, list) else 0), path)
    kinds = _mapping(types, f"{path}: available_node_types", "must be a mapping")
    where = f"{path}: available_node_types"
    every = (_mapping(kind or {}, f"{where}.{name}", "must be a mapping") for name, kind in kinds.items())
    return sum(_count(kind.get("min_workers", 0), path) for kind in every)


def _count(value: object, path: Path) -> int:
    if not isinstance(value, int) or value < 0:
        rule = "must be a whole number, 0 or more"
        raise ClusterFileError(explain(rule, got=repr(value), where=f"{path}: min_workers"))
    return value


def _mapping(value: object, where: str, rule: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        got = "nothing" if value is None else repr(value)
        raise ClusterFileError(explain(rule, got=got[:80], where=where))
    return value


def _text(value: object) -> str | None:
    return None if value is None else str(value)
