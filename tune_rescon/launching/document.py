"""A cluster file read as plain values that remember their lines.

Other than a space file it may have anchors and merge keys, as Ray's own examples do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tune_rescon.launching.findings import Finding, Severity

__all__ = ["ClusterDocument", "Steps", "at", "dotted", "read_documents", "texts_in"]

#: Keys and list positions from the top of the document.
Steps = tuple[str | int, ...]


class ClusterDocument:
    """One YAML document, and the findings in it."""

    def __init__(self, source: Any) -> None:
        """``source``: what ruamel has read, with its lines."""
        self._source = source
        self.value: Any = _plain(source)
        self.findings: list[Finding] = []

    def line(self, steps: Steps) -> int:
        """The line of ``steps``; of what is not there or came by a merge key, the nearest above it."""
        node, line = self._source, 0
        for step in steps:
            if not hasattr(node, "lc"):
                break
            place = (node.lc.data or {}).get(step)
            if place is not None:
                line = place[0]
            try:
                node = node[step]
            except (KeyError, IndexError):
                break
        return line + 1

    def complain(self, rule: str, steps: Steps, text: str, severity: Severity = "error") -> None:
        """Keep a finding that stands at ``steps``; its ``text`` says so itself."""
        self.findings.append(Finding(rule=rule, text=text, line=self.line(steps), severity=severity))


def read_documents(text: str) -> tuple[list[ClusterDocument], list[Finding]]:
    """The documents of a YAML text, and what kept it from being read."""
    yaml = YAML()
    yaml.allow_duplicate_keys = False
    try:
        return [ClusterDocument(source) for source in yaml.load_all(text) if source is not None], []
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = str(error.problem).partition("\n")[0]
        line = mark.line + 1 if mark else 1
        return [], [Finding(rule="yaml", text=f"is not YAML: {what}.", line=line)]
    except YAMLError as error:
        return [], [Finding(rule="yaml", text=f"is not YAML: {str(error).splitlines()[0]}.", line=1)]


def at(value: Any, *steps: str | int) -> Any:
    """What stands at ``steps`` below ``value``; None where nothing does.

    >>> at({"docker": {"image": "x"}}, "docker", "image"), at({"docker": None}, "docker", "image")
    ('x', None)
    """
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def texts_in(value: Any, steps: Steps = ()) -> Iterator[tuple[Steps, str]]:
    """Every text in ``value``, keys aside, with its place."""
    if isinstance(value, str):
        yield steps, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_in(inner, (*steps, key))
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from texts_in(inner, (*steps, index))


def dotted(steps: Steps) -> str:
    """The place as people write it.

    >>> dotted(("setup_commands", 1))
    'setup_commands[1]'
    """
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


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
