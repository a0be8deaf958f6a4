"""Read a YAML 1.2 text as plain values, and remember the line of each value.

Nodes are composed, not constructed, so that every key has its line and a repeated key is found. A space file
contains plain values in one document, without tags and without anchors (a bomb of anchors would never end).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tune_rescon.errors import KeyPath, format_error

__all__ = [
    "A_SECTION",
    "Document",
    "Problem",
    "SourceLine",
    "broken_rule",
    "problems_in",
    "quoting_hint",
    "raise_problems",
    "read_document",
    "shown",
]


#: The rule that a value breaks if it should be a mapping of keys.
A_SECTION: Final = "must be a section (`key: value` lines)"

#: pydantic's error type of the problems that :func:`raise_problems` raises.
_OURS: Final = "space_rule"

#: Length, in characters, from which :func:`shown` shortens a value.
_LONGEST_SHOWN: Final = 80

#: Other tools' words for our values.
_VALUE_ALIASES: Final[Mapping[str, str]] = {
    "maximize": "write `max`",
    "minimize": "write `min`",
    "uniform": "write `type: float`",
    "quniform": "write `type: float` with `step`",
    "q_uniform": "write `type: float` with `step`",
    "loguniform": "write `type: float` with `log: true`",
    "log_uniform": "write `type: float` with `log: true`",
    "log_uniform_values": "write `type: float` with `log: true`",
    "randint": "write `type: int`",
    "int_uniform": "write `type: int`",
    "lograndint": "write `type: int` with `log: true`",
    "choice": "write `type: categorical`",
    "constant": "a constant belongs in `fixed`",
    "bayes": "write `type: tpe` or `type: gp`",
    "optuna": "write `type: tpe`",
    "grid_search": "write `type: grid`",
    "hyperband": "write `type: asha`",
    "async_hyperband": "write `type: asha`",
    "asynchyperband": "write `type: asha`",
    "fifo": "write `type: none`",
    "median_stopping": "write `type: median`",
    "medianstopping": "write `type: median`",
    "stopping": "write `stop`",
    "promotion": "write `promote`",
    "macs": "write `gmacs`",
    "flops": "write `gmacs`",
    "gflops": "write `gmacs`",
    "epochs": "write `epoch`",
    "training_iteration": "write `epoch`",
}

#: Our texts for pydantic's error types; ``{...}`` are filled in from the error's context.
_RULES: Final[Mapping[str, str]] = {
    "bool_type": "must be true or false",
    "dict_type": A_SECTION,
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_attributes_type": A_SECTION,
    "model_type": A_SECTION,
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must be at most {max_length} characters long",
    "string_type": "must be a word",
    "too_short": "must hold at least {min_length} item",
    "tuple_type": "must be a list",
    "union_tag_invalid": "must be {expected_tags}",
    "union_tag_not_found": "is missing",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One broken rule: its place (``path``) and its message without the place (``text``)."""

    path: KeyPath
    text: str


def broken_rule(path: KeyPath, rule: str, *, got: object = None, hint: str = "") -> Problem:
    """Return the problem of a value that breaks a rule; see :func:`.format_error`.

    Args:
        path: the place of the value.
        rule: the rule.
        got: the value.
        hint: what the user can do.
    """
    return Problem(path=path, text=format_error(rule, got=got, hint=hint))


def shown(value: object) -> str:
    """Format a value for an error message: its repr, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def quoting_hint(key: object, value: object) -> str:
    """Return a hint if YAML has read a text as another type; empty if it was read as text.

    >>> quoting_hint("path", 2024)
    'Write a text that YAML reads as another type in quotes: `path: "..."`.'
    """
    if isinstance(value, str | None):
        return ""
    return f'Write a text that YAML reads as another type in quotes: `{key}: "..."`.'


def raise_problems(title: str, problems: Iterable[Problem], error: ValidationError | None = None) -> None:
    """Raise ``problems`` (and those in ``error``) as one ValidationError; return if there are no problems.

    Args:
        title: the title of the ValidationError.
        problems: the problems to raise.
        error: a ValidationError whose problems are added.
    """
    found = [*problems, *(problems_in(error) if error else ())]
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(_OURS, "{text}", {"text": problem.text}), loc=problem.path, input=None
        )
        for problem in found
    ]
    if lines:
        raise ValidationError.from_exception_data(title, lines)


def problems_in(error: ValidationError) -> Iterator[Problem]:
    """Yield the problems of a ValidationError, with pydantic's messages replaced by ours."""
    for line in error.errors(include_url=False):
        kind, path, context = line["type"], line["loc"], line.get("ctx", {})
        if kind == _OURS:
            yield Problem(path=path, text=context["text"])
        else:
            path = (*path, "type") if kind.startswith("union_tag_") else path
            text = _in_our_words(kind, context, line["input"], line["msg"])
            hint = quoting_hint(path[-1], line["input"]) if kind == "string_type" and path else ""
            yield Problem(path=path, text=f"{text} {hint}" if hint else text)


def _in_our_words(kind: str, context: Mapping[str, Any], value: Any, fallback: str) -> str:
    rule = _RULES[kind].format(**context) if kind in _RULES else fallback
    if kind in ("missing", "union_tag_not_found"):
        return format_error(rule)
    got = context["tag"] if kind == "union_tag_invalid" else value
    ours = _VALUE_ALIASES.get(got) if isinstance(got, str) else None
    hint = f"That is another tool's word: {ours}." if ours else ""
    return format_error(rule, got=shown(got), hint=hint)


#: Levels of lists and sections below which YAML is refused.
_DEEPEST: Final = 16

#: The beginning of the tags of YAML's own types.
_TAG: Final = "tag:yaml.org,2002:"
_TEXTS: Final = ("str", "timestamp")  # YAML 1.2's core schema has no timestamps
_SCALARS: Final = ("null", "bool", "int", "float")


@dataclass(frozen=True, order=True)
class SourceLine:
    """The place of a value: a line of a file, counted from 1, or a command-line override (line 0)."""

    line: int
    source: str

    def __str__(self) -> str:
        """Return ``FILE:LINE``, or ``--set KEY``."""
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Document:
    """Plain values, the place of every path in them, and the problems found in reading them."""

    top: SourceLine
    value: Any = None
    places: dict[KeyPath, SourceLine] = field(default_factory=dict)
    problems: list[tuple[SourceLine, Problem]] = field(default_factory=list)

    def place(self, path: KeyPath) -> SourceLine:
        """Return the place of ``path``; if the path is missing, the place of the nearest path above it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.top)

    def add_problem(
        self, place: SourceLine, path: KeyPath, rule: str, *, got: object = None, hint: str = ""
    ) -> None:
        """Add a problem at ``place``.

        Args:
            place: the line or the override.
            path: the path in the document.
            rule: the rule that the value breaks.
            got: the value.
            hint: what the user can do.
        """
        self.problems.append((place, broken_rule(path, rule, got=got, hint=hint)))

    def override(self, key: str, given: Document) -> None:
        """Set the dotted ``key`` to the value of ``given``, an override, and add its problems."""
        place = given.top
        *above, last = key.split(".")
        section = self._section(tuple(above), place)
        self.problems += given.problems
        if section is None:
            return
        path = (*above, last)
        section[last] = given.value
        kept = {known: line for known, line in self.places.items() if known[: len(path)] != path}
        self.places = kept | {(*path, *below): place for below in given.places} | {path: place}

    def _section(self, path: tuple[str, ...], place: SourceLine) -> dict[str, Any] | None:
        """Return the mapping at ``path``, created if missing; add a problem and return None for a value."""
        section: dict[str, Any] = self.value
        for depth, step in enumerate(path, start=1):
            if section.get(step) is None:
                section[step] = {}
                self.places[path[:depth]] = place
            section = section[step]
            if not isinstance(section, dict):
                rule = f"{A_SECTION} to set a key in it"
                self.add_problem(place, path[:depth], rule, got=shown(section))
                return None
        return section


def read_document(text: str, place: SourceLine) -> Document:
    """Read ``text``; problems are kept in the document's ``problems``.

    Args:
        text: YAML.
        place: the place of the text's first line. At line 0 (an override), every value has this place.
    """
    document = Document(top=place, places={(): place})
    if re.search(r"^%", text, re.MULTILINE):
        document.add_problem(place, (), "a space file is YAML 1.2 without directives", got="a `%` line")
        return document
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = _DEEPEST
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = SourceLine(mark.line + 1, place.source) if place.line and mark else place
        document.add_problem(where, (), f"is not YAML: {error.problem}")
    except YAMLError as error:
        document.add_problem(place, (), f"is not YAML: {str(error).splitlines()[0]}")
    else:
        document.value = None if node is None else _Reader(yaml, document).value(node, ())
    return document


class _Reader:
    """Converts composed nodes to plain values, and adds places and problems to ``document``."""

    def __init__(self, yaml: YAML, document: Document) -> None:
        self._yaml = yaml
        self._document = document

    def value(self, node: Node, path: KeyPath) -> Any:
        self._document.places.setdefault(path, self._place(node))
        if node.anchor:
            # The reader does not descend into an anchored node, because the node may contain itself.
            self._add_problem(node, path, "must be written out", got=f"the anchor `&{node.anchor}`")
            return None
        kind = str(node.tag).removeprefix(_TAG)
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in _TEXTS:
            return node.value
        if isinstance(node, ScalarNode) and kind in _SCALARS:
            return self._scalar(node, path, kind)
        self._add_problem(node, path, "must be a plain value", got=f"the tag `!{kind}`")
        return None

    def _scalar(self, node: ScalarNode, path: KeyPath, kind: str) -> Any:
        try:
            value = self._yaml.constructor.construct_object(node)
            if kind == "int":
                float(value)
        except (ValueError, KeyError):  # a tag that its text does not fit, or thousands of digits
            self._add_problem(node, path, f"must be a value of YAML's type {kind}", got=shown(node.value))
        except OverflowError:
            self._add_problem(node, path, "must be a number below 1e308", got=shown(node.value))
        else:
            return value
        return None

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, inner in node.value:
            if not isinstance(key, ScalarNode) or str(key.tag).removeprefix(_TAG) not in _TEXTS:
                self._add_problem(key, path, "a key must be a word", got=f"`{_source_of(key)}`")
            elif key.value in values:
                first = self._document.places[(*path, key.value)]
                self._add_problem(key, (*path, key.value), f"is repeated; {first} has it already")
            else:
                self._document.places[(*path, key.value)] = self._place(key)
                values[key.value] = self.value(inner, (*path, key.value))
        return values

    def _place(self, node: Node) -> SourceLine:
        top = self._document.top
        return SourceLine(node.start_mark.line + 1, top.source) if top.line else top

    def _add_problem(self, node: Node, path: KeyPath, rule: str, *, got: object = None) -> None:
        self._document.add_problem(self._place(node), path, rule, got=got)


def _source_of(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "a list or section"
