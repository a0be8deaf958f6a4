"""Read a cluster file: its YAML with line numbers and findings, and the values that the commands need.

Unlike a space file, a cluster file may use anchors and merge keys, as Ray's documentation does. The size of
the expanded document is checked before any value is built. :mod:`.check` applies Ray's schema and our rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from typing_extensions import override

from tune_rescon.errors import (
    ClusterFileError,
    KeyPath,
    UserError,
    dotted,
    format_error,
    unknown_name_message,
)

__all__ = [
    "TOKEN",
    "ClusterDocument",
    "ClusterFile",
    "Finding",
    "NodeType",
    "Severity",
    "check_can_end",
    "is_command",
    "machine_type",
    "parse_cluster",
    "read_cluster_file",
    "read_documents",
    "texts_in",
    "value_at",
]

#: An error prevents a cluster from being started; a warning is for the cluster's owner to consider.
Severity = Literal["error", "warning"]

#: The largest number of values in a file, after its aliases are expanded. The shipped files have 200.
MAX_VALUES: Final = 50_000

#: The deepest nesting of lists and mappings.
MAX_DEPTH: Final = 40


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule that a cluster file breaks, with its place."""

    rule: str
    """The name of the rule, such as ``auth-mode``."""

    text: str
    """The place in the file, the rule, the value that breaks it, and how to fix it."""

    line: int
    """The line in the file, counted from 1."""

    severity: Severity = "error"

    def __str__(self) -> str:
        """Format the finding as the commands print it, after the file's name."""
        return f"{self.line}: {self.severity}: {self.text} [{self.rule}]"


class ClusterDocument:
    """One YAML document and the findings in it."""

    def __init__(self, source: Any) -> None:
        """Wrap ``source``, the document as ruamel has read it, including its line numbers."""
        self._source = source
        self.value: Any = _plain(source)
        self.findings: list[Finding] = []

    def line(self, steps: KeyPath) -> int:
        """Return the line of ``steps``.

        For a key that is missing or comes from a merge key, this is the line of the nearest key above it.
        """
        node, line = self._source, 0
        for step in steps:
            if not hasattr(node, "lc"):
                break
            place = (node.lc.data or {}).get(step)
            if place is not None:
                line = place[0]
            try:
                node = node[step]
            except (KeyError, IndexError, TypeError):
                break
        return line + 1

    def add(self, name: str, steps: KeyPath, text: str, severity: Severity = "error") -> None:
        """Add a finding at ``steps``; ``text`` is complete, with its place."""
        self.findings.append(Finding(rule=name, text=text, line=self.line(steps), severity=severity))

    def add_violation(
        self,
        name: str,
        steps: KeyPath,
        rule: str,
        *,
        got: object = None,
        where: str | None = None,
        hint: str = "",
        severity: Severity = "error",
    ) -> None:
        """Add a finding: the value at ``steps`` breaks a rule.

        Args:
            name: the name of the rule.
            steps: the place of the finding.
            rule: the rule in words.
            got: the value; None: not shown.
            where: the place in words; None: the keys of ``steps``.
            hint: what the user can do.
            severity: whether the finding is an error or a warning.
        """
        place = dotted(steps) if where is None else where
        self.add(name, steps, format_error(rule, got=got, where=place, hint=hint), severity)


def read_documents(text: str) -> tuple[list[ClusterDocument], list[Finding]]:
    """Return the documents of a YAML text, and a finding if the text cannot be read."""
    try:
        for node in _reader().compose_all(text):
            _check_size(node)
        return [ClusterDocument(source) for source in _reader().load_all(text) if source is not None], []
    except _TooLargeError as error:
        return [], [Finding(rule="yaml", text=str(error), line=error.line)]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = str(error.problem).partition("\n")[0]
        line = mark.line + 1 if mark else 1
        return [], [Finding(rule="yaml", text=f"is not YAML: {what}.", line=line)]
    except YAMLError as error:
        return [], [Finding(rule="yaml", text=f"is not YAML: {str(error).splitlines()[0]}.", line=1)]


class _Constructor(RoundTripConstructor):
    """Adds the line to the error for a value that is invalid for its type, such as the date 2026-13-01."""

    @override
    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:
            raise ConstructorError(
                problem=f"a value cannot be read: {error}", problem_mark=node.start_mark
            ) from None


def _reader() -> YAML:
    yaml = YAML()
    yaml.Constructor = _Constructor
    yaml.allow_duplicate_keys = False
    yaml.max_depth = MAX_DEPTH
    return yaml


class _TooLargeError(Exception):
    """The aliases of a document expand to too many values, or to one that contains itself."""

    def __init__(self, node: Node, rule: str, got: str) -> None:
        super().__init__(format_error(rule, got=got, hint="Write the values out."))
        self.line = node.start_mark.line + 1


def _check_size(top: Node) -> None:
    """Check that a document's aliases expand to a bounded number of values.

    Ten lines of nested aliases can stand for more values than fit into any memory. Therefore nothing is
    expanded: each anchored node is counted once, and its count is used for each alias.

    Raises:
        _TooLargeError: an alias stands for a value that contains the alias, or there are too many values.
    """
    counts: dict[int, int | None] = {}

    def count(node: Node) -> int:
        known = counts.get(id(node), 0)
        if known is None:
            rule = f"the anchor `&{node.anchor}` must not contain itself"
            raise _TooLargeError(node, rule, f"an alias `*{node.anchor}` within it")
        if known:
            return known
        counts[id(node)] = None
        total = 1 + sum(count(child) for child in _children(node))
        if total > MAX_VALUES:
            rule = f"a cluster's file must have at most {MAX_VALUES} values, its aliases expanded"
            raise _TooLargeError(node, rule, f"{total} or more")
        counts[id(node)] = total
        return total

    if top is not None:
        count(top)


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, SequenceNode):
        yield from node.value


def value_at(value: Any, *steps: str | int) -> Any:
    """Return the value at ``steps`` below ``value``; None if there is no such value.

    >>> value_at({"docker": {"image": "x"}}, "docker", "image"), value_at({"docker": None}, "docker", "image")
    ('x', None)
    """
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def texts_in(value: Any, steps: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield every text in ``value`` with its place; keys are not included."""
    if isinstance(value, str):
        yield steps, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_in(inner, (*steps, key))
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from texts_in(inner, (*steps, index))


def is_command(steps: KeyPath) -> bool:
    """Return whether the text at ``steps`` is a command, or an option of ``docker run``."""
    return any(str(step).endswith(("_commands", "run_options")) for step in steps)


def _plain(value: Any) -> Any:
    """Return a value of ruamel as plain dictionaries, lists and scalars."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else value


#: The path of Ray's token in a home directory.
TOKEN: Final = "~/.ray/auth_token"

#: Ray's ``max_workers`` of a file that has none.
_DEFAULT_MAX_WORKERS: Final = 2

#: The providers whose machines the head can end.
ENDABLE: Final = ("aws",)

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
    """Maximum number of workers of this type; the head's type may have some, too."""
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
    sections = (_mapping(kind or {}, f"{where}.{name}", "must be a mapping") for name, kind in kinds.items())
    return sum(_count(section.get("min_workers", 0), path) for section in sections)


def _node_types(path: Path, top: Mapping[str, Any], most: int) -> Iterator[NodeType]:
    types = top.get("available_node_types")
    for name, kind in types.items() if isinstance(types, Mapping) else ():
        limit, is_head = value_at(kind, "max_workers"), name == top.get("head_node_type")
        default = 0 if is_head else most
        yield NodeType(
            name=name,
            machine=machine_type(value_at(kind, "node_config")),
            max_workers=_count(default if limit is None else limit, path, "max_workers"),
            is_head=is_head,
        )


def machine_type(config: Any) -> str:
    """Return the machine type in a ``node_config``, as each cloud names it; "" without one."""
    names = (("InstanceType",), ("machineType",), ("azure_arm_parameters", "vmSize"))
    machine = next((value for name in names if (value := value_at(config, *name))), "")
    # Google's names may be URLs.
    return str(machine).rpartition("/")[2]


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


def check_can_end(cluster: ClusterFile) -> None:
    """Check that the head of a cluster can end the cluster's machines.

    Raises:
        UserError: it cannot.
    """
    if cluster.provider in ENDABLE:
        return
    if cluster.provider == "local":
        hint = f"These machines are yours. `tune-rescon cluster down {cluster.path}` stops Ray on them."
    else:
        hint = f"End it by `tune-rescon cluster down {cluster.path}`, or with its job by `submit --down`."
    rule = f"a cluster can end itself where its provider is {' or '.join(ENDABLE)}"
    got = f"{cluster.provider} ({cluster.path})"
    raise UserError(format_error(rule, got=got, where="--end-after-idle", hint=hint))
