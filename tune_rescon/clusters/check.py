"""Check a cluster file of any kind: find its kind, and apply the rules of that kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tune_rescon.clusters.documents import (
    ClusterDocument,
    Complain,
    Finding,
    Severity,
    at,
    read_documents,
    texts_in,
)
from tune_rescon.clusters.kuberay import check_manifest
from tune_rescon.clusters.launcher import check_launcher
from tune_rescon.clusters.lint import check_commands, check_storage
from tune_rescon.errors import dotted, format_error

__all__ = ["check_file"]


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
    variables = at(document.value, "envs")
    given = [
        (f"envs.{name}", f"{name}={value}")
        for name, value in (variables.items() if isinstance(variables, dict) else ())
    ]
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
