"""The rules for cluster files that apply to every kind of file."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from jsonschema import Draft7Validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tune_rescon.errors import StorageError, format_error, unknown_name_message
from tune_rescon.storage import parse_storage

__all__ = [
    "ClusterDocument",
    "Complain",
    "Finding",
    "Severity",
    "Steps",
    "at",
    "check_file",
    "check_image",
    "check_listening",
    "check_ray_starts",
    "check_storage",
    "dotted",
    "option",
    "our_python",
    "ray_starts",
    "read_documents",
    "schema_problems",
    "texts_in",
]


#: An error prevents a cluster from being started; a warning is for the cluster's owner to consider.
Severity = Literal["error", "warning"]


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


#: Reports a finding, given a rule, a text and a severity.
Complain = Callable[[str, str, Severity], None]

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_START: Final = re.compile(r"\bray\s+(start|symmetric-run)\b")
_MODE: Final = re.compile(r"\bRAY_AUTH_MODE=[\"']?token\b")
_EVERYWHERE: Final = re.compile(r"--[\w-]*host[= ][\"']?(0\.0\.0\.0|\[?::\]?)(?=[\"'\s;&|)]|$)")
_STORAGE: Final = re.compile(r"(?:\bTUNE_RESCON_STORAGE=|--storage[= ])([\"']?)([^\s\"';&|]+)\1")


def option(text: str, name: str) -> str | None:
    """Return the value of ``--name=VALUE`` or ``--name VALUE``; None if the option is missing.

    >>> option("ray start --head --num-cpus=0", "num-cpus")
    '0'
    """
    found = re.search(rf"--{re.escape(name)}[= ]+([^\s;&|]+)", text)
    return found[1].strip("\"'") if found else None


def ray_starts(command: str) -> list[str]:
    """Return each ``ray start`` of a command, with the text between the previous one and this one.

    >>> ray_starts("ulimit -n 9; RAY_AUTH_MODE=token ray start --head && echo up")
    ['ulimit -n 9; RAY_AUTH_MODE=token ray start --head ']
    """
    starts, begun = [], 0
    for found in _START.finditer(command):
        end = re.compile(r"[;&|\n]").search(command, found.end())
        stop = end.start() if end else len(command)
        starts.append(command[begun:stop])
        begun = stop
    return starts


def check_ray_starts(command: str, complain: Complain, *, where: str, head: bool) -> None:
    """Check that each ``ray start`` requires tokens, and that a head's dashboard listens on loopback only.

    Args:
        command: the command, which may contain several ``ray start``.
        complain: called for each finding.
        where: the command's place in the file.
        head: True if the command starts the head.
    """
    for start in ray_starts(command):
        if not _MODE.search(start):
            rule = "every `ray start` must have `RAY_AUTH_MODE=token` before it"
            hint = "Without it anyone who reaches the node's ports can run code there."
            complain("auth-mode", format_error(rule, where=where, hint=hint), "error")
        host = option(start, "dashboard-host")
        if head and host not in _LOOPBACK:
            rule = "the head must be started with `--dashboard-host=127.0.0.1`"
            hint = "`python -m tune_rescon.cluster tunnel` shows it to you alone."
            complain("dashboard", format_error(rule, got=host or "none", where=where, hint=hint), "error")


def check_listening(command: str, complain: Complain, *, where: str) -> None:
    """Check that no server other than Ray listens on all interfaces.

    Args:
        command: the command.
        complain: called for each finding.
        where: the command's place in the file.
    """
    for found in _EVERYWHERE.finditer(command):
        rule = "a server must listen on 127.0.0.1, to be reached by a tunnel"
        complain("listens", format_error(rule, got=f"`{found[0]}`", where=where), "error")


def check_storage(commands: Iterable[tuple[str, str]], complain: Callable[[str, str], None]) -> None:
    """Check that searches are stored where every node can write.

    Args:
        commands: the place and the text of each command.
        complain: called for each finding with its place (empty if it has none) and its text.
    """
    hint = "A node's disk goes with the node: give a URL, such as s3://bucket/searches."
    given = False
    for where, command in commands:
        for found in _STORAGE.finditer(command):
            given = True
            try:
                local = isinstance(parse_storage(found[2]), Path)
            except StorageError:
                local = True
            if local:
                rule = "the storage of a search on several nodes must be a URL"
                complain(where, format_error(rule, got=found[2], where=where, hint=hint))
    if not given:
        complain("", format_error("TUNE_RESCON_STORAGE must be set on every node", got="nothing", hint=hint))


#: Keys and list positions from the top of the document.
Steps = tuple[str | int, ...]


class ClusterDocument:
    """One YAML document and the findings in it."""

    def __init__(self, source: Any) -> None:
        """Wrap ``source``, the document as ruamel has read it, including its line numbers."""
        self._source = source
        self.value: Any = _plain(source)
        self.findings: list[Finding] = []

    def line(self, steps: Steps) -> int:
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
            except (KeyError, IndexError):
                break
        return line + 1

    def complain(self, rule: str, steps: Steps, text: str, severity: Severity = "error") -> None:
        """Add a finding at ``steps``.

        Args:
            rule: the name of the rule.
            steps: the place of the finding.
            text: the complete text of the finding, including its place.
            severity: whether the finding is an error or a warning.
        """
        self.findings.append(Finding(rule=rule, text=text, line=self.line(steps), severity=severity))


def read_documents(text: str) -> tuple[list[ClusterDocument], list[Finding]]:
    """Return the documents of a YAML text, and a finding if the text cannot be read."""
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


def texts_in(value: Any, steps: Steps = ()) -> Iterator[tuple[Steps, str]]:
    """Yield every text in ``value`` with its place; keys are not included."""
    if isinstance(value, str):
        yield steps, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_in(inner, (*steps, key))
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from texts_in(inner, (*steps, index))


def dotted(steps: Steps) -> str:
    """Format a place in the usual notation.

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


_OFFICIAL: Final = "rayproject/"


def our_python() -> str:
    """Return this interpreter's version as it appears in an image's tag, such as ``py311``."""
    return f"py{sys.version_info.major}{sys.version_info.minor}"


def check_image(image: str, complain: Callable[[str, Severity], None], *, where: str) -> None:
    """Check an image's name without pulling the image.

    Args:
        image: the name.
        complain: called for each finding with its text and severity.
        where: the name's place in the file.
    """
    _, _, last = image.partition("@")[0].rpartition("/")
    tag = last.partition(":")[2]
    ours, ray = our_python(), version("ray")
    if re.match(r"(latest|nightly)?(-|$)", tag):
        rule = "an image must be pinned to a version, the one of the Ray that is installed here"
        complain(format_error(rule, got=image, where=where, hint=f"That is {ray}-{ours}."), "error")
        return
    # A user may name their own image freely, so a missing version is only a warning there.
    doubt: Severity = "error" if image.startswith(_OFFICIAL) else "warning"
    for what, wanted, found in (
        ("Ray", ray, re.search(r"\d+\.\d+\.\d+(rc\d+|\.post\d+)?", tag)),
        ("Python", ours, re.search(r"py\d+", tag)),
    ):
        if found is None:
            rule = f"an image's tag should say which {what} is in it"
            complain(format_error(rule, got=image, where=where, hint=f"It must be {wanted}."), doubt)
        elif found[0] != wanted:
            rule = f"the {what} of an image must be that of this environment, {wanted}"
            complain(format_error(rule, got=found[0], where=where), "error")


def schema_problems(value: Any) -> Iterator[tuple[str, Steps, str]]:
    """Yield what Ray's schema refuses: the rule (``unknown-key`` or ``ray-schema``), place and text."""
    schema = _schema()
    if schema is None:
        yield "ray-schema", (), format_error("is checked against Ray's schema", got="no Ray that has one")
        return
    errors = sorted(Draft7Validator(schema).iter_errors(value), key=lambda error: [*map(str, error.path)])
    for error in errors:
        steps: Steps = tuple(error.absolute_path)
        where = dotted(steps)
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            for key in error.instance:
                if key not in known:
                    below = (*steps, key)
                    yield "unknown-key", below, unknown_name_message("key", key, known, where=dotted(below))
        elif error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
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


_SCRIPTS: Final = (".sh", ".sbatch", ".slurm")
_PLACEHOLDER: Final = re.compile(r"[\w-]*\bCHANGE\b[\w-]*")


def check_file(path: Path) -> list[Finding]:
    """Return all findings in a cluster file, in the order of its lines.

    Args:
        path: a file of Ray's launcher, a KubeRay manifest, a SkyPilot task, or a script that starts Ray.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [Finding(rule="readable", text=format_error("cannot be read", got=str(error)), line=1)]
    if path.suffix in _SCRIPTS:
        found = _script_findings(text)
    else:
        documents, found = read_documents(text)
        for document in documents:
            found += _document_findings(document)
        if not documents and not found:
            found.append(
                Finding(rule="yaml", text=format_error("must describe a cluster", got="nothing"), line=1)
            )
    return sorted(found, key=lambda finding: (finding.line, finding.rule))


def _document_findings(document: ClusterDocument) -> list[Finding]:
    # Imported here, because jsonschema is slow to import and only YAML files need it.
    from tune_rescon.clusters.head import check_manifest
    from tune_rescon.clusters.launcher import check_launcher

    value = document.value
    if isinstance(value, dict) and str(value.get("apiVersion", "")).startswith("ray.io/"):
        check_manifest(document)
    elif isinstance(value, dict) and "run" in value:
        _check_sky_task(document)
    elif isinstance(value, dict) and "apiVersion" not in value:
        check_launcher(document)
    elif not isinstance(value, dict):
        document.complain("yaml", (), format_error("must be keys and values", got=repr(value)))
    left = [(document.line(steps), name) for steps, text in texts_in(value) for name in _placeholders(text)]
    return [*document.findings, *_placeholder_finding(left)]


def _check_sky_task(document: ClusterDocument) -> None:
    """Add the findings in a task of SkyPilot, which has its own check of keys and machines."""
    variables = at(document.value, "envs") or {}
    given = [(f"envs.{name}", f"{name}={value}") for name, value in variables.items()]
    given += [(dotted(steps), text) for steps, text in texts_in(document.value)]
    check_storage(given, lambda _where, text: document.complain("storage", ("envs",), text))


def _script_findings(text: str) -> list[Finding]:
    found: list[Finding] = []
    commands = list(_script_commands(text))
    left = [(line, name) for line, command in commands for name in _placeholders(command)]
    for line, command in commands:

        def complain(rule: str, text: str, severity: Severity, line: int = line) -> None:
            found.append(Finding(rule=rule, text=text, line=line, severity=severity))

        head = "--head" in command or "ray symmetric-run" in command
        check_ray_starts(command, complain, where="", head=head)
        if not _START.search(command):
            check_listening(command, complain, where="")

    def unsafe(where: str, text: str) -> None:
        found.append(Finding(rule="storage", text=text, line=int(where or 1)))

    check_storage([(str(line), command) for line, command in commands], unsafe)
    return [*found, *_placeholder_finding(left)]


def _script_commands(text: str) -> Iterator[tuple[int, str]]:
    """Yield a script's commands with their first lines; join continued lines and leave out comments."""
    begun, command = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not command and line.lstrip().startswith("#"):
            continue
        begun = begun if command else number
        command += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield begun, re.sub(r"\s#\s.*", "", command)
            command = ""


def _placeholders(text: str) -> list[str]:
    return _PLACEHOLDER.findall(text)


def _placeholder_finding(left: list[tuple[int, str]]) -> Iterator[Finding]:
    if left:
        names = ", ".join(dict.fromkeys(name for _, name in left))
        text = format_error("what is marked CHANGE must be yours", got=names)
        yield Finding(rule="placeholder", text=text, line=min(left)[0], severity="warning")
