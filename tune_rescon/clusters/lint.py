"""Every rule there is for a cluster file, whatever kind of file it is."""

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


#: An error keeps a cluster from being started; a warning is for its owner to weigh.
Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken rule in a cluster file."""

    rule: str
    """Its name, such as ``auth-mode``."""

    text: str
    """Where in the file, the rule, what came, what to do."""

    line: int
    """Counted from 1."""

    severity: Severity = "error"

    def __str__(self) -> str:
        """As a command shows it, after the file's name."""
        return f"{self.line}: {self.severity}: {self.text} [{self.rule}]"


#: Takes a rule, a text and a severity.
Complain = Callable[[str, str, Severity], None]

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_START: Final = re.compile(r"\bray\s+start\b")
_MODE: Final = re.compile(r"\bRAY_AUTH_MODE=[\"']?token\b")
_EVERYWHERE: Final = re.compile(r"--[\w-]*host[= ][\"']?(0\.0\.0\.0|\[?::\]?)(?=[\"'\s;&|)]|$)")
_STORAGE: Final = re.compile(r"(?:\bTUNE_RESCON_STORAGE=|--storage[= ])([\"']?)([^\s\"';&|]+)\1")


def option(text: str, name: str) -> str | None:
    """The value of ``--name=VALUE`` or ``--name VALUE``; None where it is not given.

    >>> option("ray start --head --num-cpus=0", "num-cpus")
    '0'
    """
    found = re.search(rf"--{re.escape(name)}[= ]+([^\s;&|]+)", text)
    return found[1].strip("\"'") if found else None


def ray_starts(command: str) -> list[str]:
    """Each ``ray start`` of a command, with what stands before it since the last one.

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
    """Each ``ray start`` must take tokens only, and a head's dashboard must stay on loopback."""
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
    """Nothing but Ray itself may listen on every interface."""
    for found in _EVERYWHERE.finditer(command):
        rule = "a server must listen on 127.0.0.1, to be reached by a tunnel"
        complain("listens", format_error(rule, got=f"`{found[0]}`", where=where), "error")


def check_storage(commands: Iterable[tuple[str, str]], complain: Callable[[str, str], None]) -> None:
    """Searches must be kept where every node can write.

    Args:
        commands: where each stands, and what it says.
        complain: takes where (or nothing) and a text.
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


_OFFICIAL: Final = "rayproject/"


def our_python() -> str:
    """This interpreter as an image's tag says it, such as ``py311``."""
    return f"py{sys.version_info.major}{sys.version_info.minor}"


def check_image(image: str, complain: Callable[[str, Severity], None], *, where: str) -> None:
    """Check an image's name; nothing is pulled."""
    _, _, last = image.partition("@")[0].rpartition("/")
    tag = last.partition(":")[2]
    ours, ray = our_python(), version("ray")
    if re.match(r"(latest|nightly)?(-|$)", tag):
        rule = "an image must be pinned to a version, the one of the Ray that is installed here"
        complain(format_error(rule, got=image, where=where, hint=f"That is {ray}-{ours}."), "error")
        return
    # An image of one's own may be named as one likes.
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
    """What Ray's schema refuses: the rule (``unknown-key`` or ``ray-schema``), where, what to tell."""
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
    """All that is wrong in a cluster file, in the order of its lines.

    Args:
        path: a file of Ray's launcher, a KubeRay manifest, or a shell script that starts Ray.
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
    # Imported here: jsonschema takes a while, and only YAML wants it.
    from tune_rescon.clusters.head import check_manifest
    from tune_rescon.clusters.launcher import check_launcher

    value = document.value
    if isinstance(value, dict) and str(value.get("apiVersion", "")).startswith("ray.io/"):
        check_manifest(document)
    elif isinstance(value, dict) and "apiVersion" not in value:
        check_launcher(document)
    elif not isinstance(value, dict):
        document.complain("yaml", (), format_error("must be keys and values", got=repr(value)))
    left = [(document.line(steps), name) for steps, text in texts_in(value) for name in _placeholders(text)]
    return [*document.findings, *_placeholder_finding(left)]


def _script_findings(text: str) -> list[Finding]:
    found: list[Finding] = []
    commands = list(_script_commands(text))
    left = [(line, name) for line, command in commands for name in _placeholders(command)]
    for line, command in commands:

        def complain(rule: str, text: str, severity: Severity, line: int = line) -> None:
            found.append(Finding(rule=rule, text=text, line=line, severity=severity))

        check_ray_starts(command, complain, where="", head="--head" in command)
        if "ray start" not in command:
            check_listening(command, complain, where="")

    def unsafe(where: str, text: str) -> None:
        found.append(Finding(rule="storage", text=text, line=int(where or 1)))

    check_storage([(str(line), command) for line, command in commands], unsafe)
    return [*found, *_placeholder_finding(left)]


def _script_commands(text: str) -> Iterator[tuple[int, str]]:
    """The commands of a script with their first lines; continued ones in one piece, comments left out."""
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
