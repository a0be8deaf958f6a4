"""Every rule there is for a cluster file, whatever kind of file it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tune_rescon.errors import explain
from tune_rescon.launching.document import ClusterDocument, read_documents, texts_in
from tune_rescon.launching.findings import Finding, Severity
from tune_rescon.launching.shell import check_listening, check_ray_starts, check_storage

__all__ = ["check_file"]

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
        return [Finding(rule="readable", text=explain("cannot be read", got=str(error)), line=1)]
    if path.suffix in _SCRIPTS:
        found = _script_findings(text)
    else:
        documents, found = read_documents(text)
        for document in documents:
            found += _document_findings(document)
        if not documents and not found:
            found.append(Finding(rule="yaml", text=explain("must describe a cluster", got="nothing"), line=1))
    return sorted(found, key=lambda finding: (finding.line, finding.rule))


def _document_findings(document: ClusterDocument) -> list[Finding]:
    # Imported here: jsonschema takes a while, and only YAML wants it.
    from tune_rescon.launching.launcher import check_launcher
    from tune_rescon.launching.manifest import check_manifest

    value = document.value
    if isinstance(value, dict) and str(value.get("apiVersion", "")).startswith("ray.io/"):
        check_manifest(document)
    elif isinstance(value, dict) and "apiVersion" not in value:
        check_launcher(document)
    elif not isinstance(value, dict):
        document.complain("yaml", (), explain("must be keys and values", got=repr(value)))
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
        text = explain("what is marked CHANGE must be yours", got=names)
        yield Finding(rule="placeholder", text=text, line=min(left)[0], severity="warning")
