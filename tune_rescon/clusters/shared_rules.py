"""The rules that several kinds of cluster files share: storage, images, commands, Ray's schema."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft7Validator

from tune_rescon.clusters.cluster_file import Finding, Severity
from tune_rescon.clusters.shell import ShellCommand, ShellSyntaxError, commands_in
from tune_rescon.errors import KeyPath, StorageError, dotted, format_error, unknown_name_message
from tune_rescon.storage import parse_storage

__all__ = [
    "HEAD_METRICS_OFF",
    "METRICS_OFF",
    "command_findings",
    "image_problems",
    "our_python",
    "ray_starts",
    "schema_problems",
    "storage_problems",
]


#: The folder beside the searches, in which the shipped files keep MLflow's.
_BESIDE_STORAGE: Final = "${TUNE_RESCON_STORAGE%/*}"

_STORAGE: Final = re.compile(r"(?:\bTUNE_RESCON_STORAGE=|--storage[= ])([\"']?)([^\s\"';&|]+)\1")


def storage_problems(commands: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the storage of searches, which every node must be able to write.

    Args:
        commands: the place and the text of each command.

    Yields:
        The place of the problem (empty if it has none) and its text.
    """
    hint = "A node's disk goes with the node: give a URL, such as s3://bucket/searches."
    given, texts = False, list(commands)
    has_mlflow_beside = any(_BESIDE_STORAGE in text for _, text in texts)
    for where, command in texts:
        for found in _STORAGE.finditer(command):
            given = True
            try:
                local = isinstance(parse_storage(found[2]), Path)
            except StorageError:
                local = True
            if local:
                rule = "the storage of a search on several nodes must be a URL"
                yield where, format_error(rule, got=found[2], where=where, hint=hint)
            elif has_mlflow_beside and "/" not in found[2].partition("://")[2]:
                rule = f"must be a folder in a bucket, because MLflow's files are in {_BESIDE_STORAGE}/mlflow"
                yield where, format_error(rule, got=found[2], where=where)
    if not given:
        yield "", format_error("TUNE_RESCON_STORAGE must be set on every node", got="nothing", hint=hint)


_OFFICIAL: Final = "rayproject/"


def our_python() -> str:
    """Return this interpreter's version as it appears in an image's tag, such as ``py311``."""
    return f"py{sys.version_info.major}{sys.version_info.minor}"


def image_problems(image: str, *, where: str) -> Iterator[tuple[str, Severity]]:
    """Yield what is wrong with an image's name, without pulling the image: each text and its severity.

    Args:
        image: the name.
        where: the name's place in the file.
    """
    _, _, last = image.partition("@")[0].rpartition("/")
    tag = last.partition(":")[2]
    ours, ray = our_python(), version("ray")
    if re.match(r"(latest|nightly)?(-|$)", tag):
        rule = "an image must be pinned to a version, the one of the Ray that is installed here"
        yield format_error(rule, got=image, where=where, hint=f"That is {ray}-{ours}."), "error"
        return
    # A user may name their own image freely, so a missing version is only a warning there.
    doubt: Severity = "error" if image.startswith(_OFFICIAL) else "warning"
    for what, wanted, found in (
        ("Ray", ray, re.search(r"\d+\.\d+\.\d+(rc\d+|\.post\d+)?", tag)),
        ("Python", ours, re.search(r"py\d+", tag)),
    ):
        if found is None:
            rule = f"an image's tag should have the version of its {what}"
            yield format_error(rule, got=image, where=where, hint=f"It must be {wanted}."), doubt
        elif found[0] != wanted:
            rule = f"the {what} of an image must be that of this environment, {wanted}"
            yield format_error(rule, got=found[0], where=where), "error"


#: The variables with which Ray opens no port for metrics: on every node, and on the head. The head's
#: autoscaler and dashboard cannot be switched off, but they cannot listen on port 65536 either.
METRICS_OFF: Final[Mapping[str, str]] = {"RAY_enable_metrics_collection": "0"}
HEAD_METRICS_OFF: Final[Mapping[str, str]] = {
    **METRICS_OFF,
    "AUTOSCALER_METRIC_PORT": "65536",
    "DASHBOARD_METRIC_PORT": "65536",
}

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

#: An option or variable that sets where a server listens, and an address that means all interfaces.
_LISTENS: Final = re.compile(r"-{1,2}[\w-]*(?:host|bind|listen|addr|address|ip)", re.IGNORECASE)
_EVERYWHERE: Final = re.compile(r"(?:\w+://)?(?:0\.0\.0\.0|\[::\]|::|\*)(?::\d+)?/?")


def ray_starts(text: str) -> list[ShellCommand]:
    """Return each ``ray start`` of a text; an unreadable text has none.

    >>> [start.words for start in ray_starts("ulimit -n 9; RAY_AUTH_MODE=token ray start --head && echo up")]
    [('ray', 'start', '--head')]
    """
    try:
        return [start for command in commands_in(text) if (start := command.ray_start)]
    except ShellSyntaxError:
        return []


def command_findings(text: str, *, where: str, head: bool | None = None) -> Iterator[Finding]:
    """Check each ``ray start`` of a text, and that no other server listens on all interfaces.

    Args:
        text: a command of a cluster file, or a whole script.
        where: the place of the text in the file.
        head: True if the text starts the head; None to look for ``--head``.

    Yields:
        Findings with their line in the text.
    """
    try:
        commands = commands_in(text)
    except ShellSyntaxError as error:
        rule = "must be a command that a shell can read"
        yield Finding(rule="shell", text=format_error(rule, got=str(error), where=where), line=1)
        return
    for command in commands:
        start = command.ray_start
        if start is None:
            found = _listening_problems(command, where=where)
        else:
            found = _start_problems(start, where=where, head=start.is_head if head is None else head)
        yield from (Finding(rule=name, text=problem, line=command.line) for name, problem in found)


def _start_problems(start: ShellCommand, *, where: str, head: bool) -> Iterator[tuple[str, str]]:
    mode = start.environment.get("RAY_AUTH_MODE")
    if mode != "token":
        rule = "every `ray start` must have `RAY_AUTH_MODE=token` before it"
        hint = "Without it anyone who reaches the node's ports can run code there."
        yield "auth-mode", format_error(rule, got=mode, where=where, hint=hint)
    host = start.option("dashboard-host")
    if head and host not in _LOOPBACK:
        rule = "the head must be started with `--dashboard-host=127.0.0.1`"
        hint = "`python -m tune_rescon.cluster tunnel` shows it to you alone."
        yield "dashboard", format_error(rule, got=host or "none", where=where, hint=hint)


def _listening_problems(command: ShellCommand, *, where: str) -> Iterator[tuple[str, str]]:
    if command.takes_text:
        return
    for index, word in enumerate(command.words):
        key, equals, value = word.partition("=")
        if not _LISTENS.fullmatch(key):
            continue
        if not equals:
            value = command.words[index + 1] if index + 1 < len(command.words) else ""
        if _EVERYWHERE.fullmatch(value):
            rule = "a server must listen on 127.0.0.1, to be reached by a tunnel"
            got = f"`{key}{'=' if equals else ' '}{value}`"
            yield "listens", format_error(rule, got=got, where=where)


def schema_problems(value: Any) -> Iterator[tuple[str, KeyPath, str]]:
    """Yield what Ray's schema refuses: the rule (``unknown-key`` or ``ray-schema``), place and text."""
    schema = _schema()
    if schema is None:
        yield "ray-schema", (), format_error("is checked against Ray's schema", got="no Ray that has one")
        return
    errors = sorted(Draft7Validator(schema).iter_errors(value), key=lambda error: [*map(str, error.path)])
    for error in errors:
        steps: KeyPath = tuple(error.absolute_path)
        where = dotted(steps)
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            for key in error.instance:
                if key not in known:
                    below = (*steps, key)
                    yield "unknown-key", below, unknown_name_message("key", key, known, where=dotted(below))
        elif error.validator == "required":
            # The schema's validator has an error for each key, which only its message names.
            (missing,) = (key for key in error.validator_value if error.message.startswith(repr(key)))
            yield "ray-schema", steps, format_error("is missing", where=dotted((*steps, missing)))
        elif error.validator == "type":
            rule = f"must be of type {error.validator_value}"
            yield "ray-schema", steps, format_error(rule, got=repr(error.instance), where=where)
        else:
            yield "ray-schema", steps, format_error(f"Ray's schema refuses it: {error.message}", where=where)


def _schema() -> Mapping[str, Any] | None:
    ray = importlib.util.find_spec("ray")
    for folder in (ray.submodule_search_locations or ()) if ray else ():
        path = Path(folder) / "autoscaler" / "ray-schema.json"
        if path.is_file():
            schema: Mapping[str, Any] = json.loads(path.read_text())
            return schema
    return None
