"""A YAML 1.2 text read as plain values that remember where each of them stands.

Nodes are composed, not constructed, so that every key keeps its line and a repeated one is seen. A space file
is plain values: one document, no tags, and no anchors (a bomb of them would never end).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tune_rescon.errors import explain
from tune_rescon.spaces.problems import A_SECTION, Path, Problem, shown

__all__ = ["Document", "Place", "read_document"]

_DEEPEST: Final = 16
_TAG: Final = "tag:yaml.org,2002:"
_TEXTS: Final = ("str", "timestamp")  # YAML 1.2's core schema has no timestamps
_SCALARS: Final = ("null", "bool", "int", "float")


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands: a file's line (counted from 1), or a command-line override (line 0)."""

    line: int
    source: str

    def __str__(self) -> str:
        """``FILE:LINE``, or ``--set KEY``."""
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Document:
    """Plain values, the place of every path among them, and what was wrong in reading them."""

    top: Place
    value: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)

    def place(self, path: Path) -> Place:
        """Where ``path`` stands; for a path that is not there, where the nearest one above it does."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.top)

    def complain(self, place: Place, path: Path, text: str) -> None:
        """Keep a problem that stands at ``place``."""
        self.problems.append((place, Problem(path=path, text=text)))

    def override(self, key: str, text: str) -> None:
        """Put the YAML ``text`` at the dotted ``key``, as ``--set KEY=VALUE`` asks."""
        self._put(key, read_document(text, Place(0, f"--set {key}")))

    def override_text(self, key: str, value: str | None) -> None:
        """Put ``value`` at the dotted ``key``, where a text is wanted and YAML might read another."""
        place = Place(0, f"--set {key}")
        self._put(key, Document(top=place, value=value, places={(): place}))

    def _put(self, key: str, given: Document) -> None:
        place = given.top
        *above, last = key.split(".")
        section = self._section(tuple(above), place)
        self.problems += given.problems
        if section is None:
            return
        path = (*above, last)
        self._forget(path)
        section[last] = given.value
        self.places |= {(*path, *below): place for below in given.places} | {path: place}

    def _forget(self, path: Path) -> None:
        self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}

    def _section(self, path: tuple[str, ...], place: Place) -> dict[str, Any] | None:
        """The mapping at ``path``, made where nothing stands; None, and a problem, where a value does."""
        section: dict[str, Any] = self.value
        for depth, step in enumerate(path, start=1):
            if section.get(step) is None:
                section[step] = {}
                self.places[path[:depth]] = place
            section = section[step]
            if not isinstance(section, dict):
                rule = f"{A_SECTION} to set a key in it"
                self.complain(place, path[:depth], explain(rule, got=shown(section)))
                return None
        return section


def read_document(text: str, place: Place) -> Document:
    """Read ``text``; what is wrong in it is kept in the document's ``problems``.

    Args:
        text: YAML.
        place: where the text starts. At line 0 (an override) everything in it stands there.
    """
    document = Document(top=place, places={(): place})
    if re.search(r"^%", text, re.MULTILINE):
        document.complain(place, (), explain("a space file is YAML 1.2 without directives", got="a `%` line"))
        return document
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = _DEEPEST
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Place(mark.line + 1, place.source) if place.line and mark else place
        document.complain(where, (), f"is not YAML: {error.problem}.")
    except YAMLError as error:
        document.complain(place, (), f"is not YAML: {str(error).splitlines()[0]}.")
    else:
        document.value = None if node is None else _Reader(yaml, document).value(node, ())
    return document


class _Reader:
    """Turns composed nodes into plain values, noting places and problems in ``document``."""

    def __init__(self, yaml: YAML, document: Document) -> None:
        self._yaml = yaml
        self._document = document

    def value(self, node: Node, path: Path) -> Any:
        self._document.places.setdefault(path, self._place(node))
        if node.anchor:
            # Not descended into: an anchored node may hold itself.
            self._complain(node, path, explain("must be written out", got=f"the anchor `&{node.anchor}`"))
            return None
        kind = str(node.tag).removeprefix(_TAG)
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in _TEXTS:
            return node.value
        if isinstance(node, ScalarNode) and kind in _SCALARS:
            return self._yaml.constructor.construct_object(node)
        self._complain(node, path, explain("must be a plain value", got=f"the tag `!{kind}`"))
        return None

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, inner in node.value:
            if not isinstance(key, ScalarNode) or str(key.tag).removeprefix(_TAG) not in _TEXTS:
                self._complain(key, path, explain("a key must be a word", got=f"`{_source_of(key)}`"))
            elif key.value in values:
                first = self._document.places[(*path, key.value)]
                self._complain(key, (*path, key.value), f"is repeated; it stands at {first} already.")
            else:
                self._document.places[(*path, key.value)] = self._place(key)
                values[key.value] = self.value(inner, (*path, key.value))
        return values

    def _place(self, node: Node) -> Place:
        top = self._document.top
        return Place(node.start_mark.line + 1, top.source) if top.line else top

    def _complain(self, node: Node, path: Path, text: str) -> None:
        self._document.complain(self._place(node), path, text)


def _source_of(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "a list or section"
