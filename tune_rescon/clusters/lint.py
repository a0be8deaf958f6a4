"""The rules for cluster files that apply to every kind of file."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft7Validator

from tune_rescon.clusters.documents import (
    ClusterDocument,
    Complain,
    Finding,
    Severity,
    Steps,
    at,
    dotted,
    read_documents,
    texts_in,
)
from tune_rescon.clusters.ray_commands import check_commands
from tune_rescon.errors import StorageError, format_error, unknown_name_message
from tune_rescon.storage import parse_storage

__all__ = [
    "check_file",
    "check_image",
    "check_storage",
    "our_python",
    "schema_problems",
]


_STORAGE: Final = re.compile(r"(?:\bTUNE_RESCON_STORAGE=|--storage[= ])([\"']?)([^\s\"';&|]+)\1")


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

    def complain_on(line: int) -> Complain:
        def complain(rule: str, text: str, severity: Severity) -> None:
            found.append(Finding(rule=rule, text=text, line=line, severity=severity))

        return complain

    # The whole script, because a variable that one line exports is in the environment of later ones.
    check_commands(text, complain_on, where="")

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
