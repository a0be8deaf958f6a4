"""The YAML of cluster files: values with their lines, and what was found in them.

`cluster check` and the other commands read cluster files here. Only `aws_stack.py` composes the text itself,
because it needs the position of each value. Unlike a space file, a cluster file may use anchors and merge
keys, as Ray's documentation does. Their expansion is bounded before any value is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from typing_extensions import override

from tune_rescon.errors import KeyPath, dotted, format_error

__all__ = [
    "ClusterDocument",
    "Finding",
    "Severity",
    "at",
    "read_documents",
    "texts_in",
]


#: An error prevents a cluster from being started; a warning is for the cluster's owner to consider.
Severity = Literal["error", "warning"]

#: The largest number of values in a file, after its aliases are expanded. The shipped files have 200.
MOST_VALUES: Final = 50_000

#: The deepest nesting of lists and mappings.
DEEPEST: Final = 40


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken rule in a cluster file."""

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

    def complain(
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
    """Raises errors with a line for a value that its type cannot have, such as the date 2026-13-01."""

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
    yaml.max_depth = DEEPEST
    return yaml


class _TooLargeError(Exception):
    """The aliases of a document expand to too many values, or to one that contains itself."""

    def __init__(self, node: Node, rule: str, got: str) -> None:
        super().__init__(format_error(rule, got=got, hint="Write the values out."))
        self.line = node.start_mark.line + 1


def _check_size(top: Node) -> None:
    """Check that a document's aliases expand to a bounded number of values.

    Ten lines of nested aliases can stand for more values than fit into any memory. The nodes are counted
    without expanding them: each anchored node is counted once, and its count is used for each alias.

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
        found = 1 + sum(count(below) for below in _below(node))
        if found > MOST_VALUES:
            rule = f"a cluster's file must have at most {MOST_VALUES} values, its aliases expanded"
            raise _TooLargeError(node, rule, f"{found} or more")
        counts[id(node)] = found
        return found

    if top is not None:
        count(top)


def _below(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, SequenceNode):
        yield from node.value


def at(value: Any, *steps: str | int) -> Any:
    """Return the value at ``steps`` below ``value``; None if there is no such value.

    >>> at({"docker": {"image": "x"}}, "docker", "image"), at({"docker": None}, "docker", "image")
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


def _plain(value: Any) -> Any:
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
