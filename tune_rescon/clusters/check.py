"""What a cluster file would start: what is wrong with it, by the rules of its kind, and what it can cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tune_rescon.clusters.cluster_file import (
    ClusterDocument,
    ClusterFile,
    Finding,
    NodeType,
    at,
    read_documents,
    texts_in,
)
from tune_rescon.clusters.launcher import check_launcher
from tune_rescon.clusters.lint import command_findings, image_problems, storage_problems
from tune_rescon.errors import KeyPath, dotted, format_error

__all__ = ["PRICES", "check_file", "most_per_hour"]


_SCRIPTS: Final = (".sh", ".sbatch", ".slurm")
_PLACEHOLDER: Final = re.compile(r"[\w-]*\bCHANGE\b[\w-]*")

#: The path of the cluster in a manifest of KubeRay, by the manifest's kind.
_CLUSTERS: Final = {"RayCluster": ("spec",), "RayJob": ("spec", "rayClusterSpec")}


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
        found = list(_script_findings(text))
    else:
        documents, found = read_documents(text)
        for document in documents:
            found += _document_findings(document)
        if not documents and not found:
            text = format_error("must describe a cluster", got="nothing")
            found.append(Finding(rule="yaml", text=text, line=1))
    return sorted(found, key=lambda finding: (finding.line, finding.rule))


def _document_findings(document: ClusterDocument) -> list[Finding]:
    value = document.value
    if not isinstance(value, dict):
        document.complain("yaml", (), "must be keys and values", got=repr(value))
    elif str(value.get("apiVersion", "")).startswith("ray.io/"):
        _check_manifest(document)
    elif "run" in value:
        _check_sky_task(document)
    elif "apiVersion" not in value:
        check_launcher(document)
    left = [(document.line(steps), name) for steps, text in texts_in(value) for name in _placeholders(text)]
    return [*document.findings, *_placeholder_finding(left)]


def _check_manifest(document: ClusterDocument) -> None:
    """Add every finding in a KubeRay manifest, if it is a cluster or a job."""
    steps: KeyPath | None = _CLUSTERS.get(str(document.value.get("kind")))
    if steps is None:
        return
    cluster = at(document.value, *steps)
    if at(cluster, "authOptions", "mode") != "token":
        got = str(at(cluster, "authOptions"))
        document.complain("auth-mode", (*steps, "authOptions"), "must be {mode: token}", got=got)
    if (ray := at(cluster, "rayVersion")) is not None and str(ray) != version("ray"):
        rule = f"must be the Ray of this environment, {version('ray')}"
        document.complain("image", (*steps, "rayVersion"), rule, got=ray)
    if (count := at(cluster, "headGroupSpec", "rayStartParams", "num-cpus")) != "0":
        rule = 'the head must be started with num-cpus: "0"'
        where = (*steps, "headGroupSpec", "rayStartParams")
        document.complain("head-resources", where, rule, got=repr(count))
    groups: list[KeyPath] = [(*steps, "headGroupSpec")]
    workers = at(cluster, "workerGroupSpecs")
    for index, group in enumerate(workers if isinstance(workers, list) else ()):
        below = (*steps, "workerGroupSpecs", index)
        groups.append(below)
        low, high = at(group, "minReplicas") or 0, at(group, "maxReplicas")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            rule = "`minReplicas <= maxReplicas` must hold"
            document.complain("workers", below, rule, got=f"{low} and {high}")
    for below in groups:
        # The first container of a pod runs Ray; the other containers may run any image.
        where = (*below, "template", "spec", "containers", 0, "image")
        for text, severity in image_problems(str(at(document.value, *where)), where=dotted(where)):
            document.add("image", where, text, severity)
    given = [(dotted(steps), text) for steps, text in texts_in(document.value) if "--storage" in text]
    for steps, text in texts_in(document.value):
        if text == "TUNE_RESCON_STORAGE" and steps[-1] == "name":
            value = at(document.value, *steps[:-1], "value")
            given.append((dotted(steps[:-1]), f"TUNE_RESCON_STORAGE={value}"))
    for _, text in storage_problems(given):
        document.add("storage", (), text)


def _check_sky_task(document: ClusterDocument) -> None:
    """Add the findings in a task of SkyPilot, which has its own check of keys and machines."""
    variables = at(document.value, "envs")
    given = [
        (f"envs.{name}", f"{name}={value}")
        for name, value in (variables.items() if isinstance(variables, dict) else ())
    ]
    given += [(dotted(steps), text) for steps, text in texts_in(document.value)]
    for _, text in storage_problems(given):
        document.add("storage", ("envs",), text)


def _script_findings(text: str) -> Iterator[Finding]:
    # The whole script, because a variable that one line exports is in the environment of later ones.
    yield from command_findings(text, where="")
    commands = list(_script_commands(text))
    for where, problem in storage_problems([(str(line), command) for line, command in commands]):
        yield Finding(rule="storage", text=problem, line=int(where or 1))
    yield from _placeholder_finding(
        [(line, name) for line, command in commands for name in _placeholders(command)]
    )


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


#: The month of the prices below.
PRICES_OF: Final = "September 2026"

#: Approximate US dollars an hour for one machine on demand, by provider and machine type, for Linux in
#: us-west-2 and in us-central1. Every machine type of the shipped files is here. They are for orientation:
#: the price list of the cloud counts.
PRICES: Final[Mapping[str, Mapping[str, float]]] = {
    "aws": {
        "m7i.large": 0.1008,
        "m7i.xlarge": 0.2016,
        "m7i.2xlarge": 0.4032,
        "g5.xlarge": 1.006,
        "g5.2xlarge": 1.212,
        "g5.4xlarge": 1.624,
        "g6.xlarge": 0.8048,
        "g6.2xlarge": 0.9776,
        "g6.4xlarge": 1.3232,
        "p4d.24xlarge": 21.9576,
        "p5.48xlarge": 55.04,
    },
    "gcp": {"e2-standard-2": 0.0670, "g2-standard-8": 0.8536},
}


def most_per_hour(cluster: ClusterFile) -> str | None:
    """Describe the most that a cluster's machines can cost in an hour; None if no cloud bills for them.

    The dearest machines come first, because ``max_workers`` of the file bounds all types together.
    """
    if cluster.provider not in PRICES:
        return None
    prices = PRICES[cluster.provider]
    running = list(_dearest(cluster, prices))
    known = [(one, count) for one, count in running if one.machine in prices]
    total = sum(prices[one.machine] * count for one, count in known)
    parts = [f"{count} x {one.machine} {prices[one.machine] * count:.2f}" for one, count in known]
    text = (
        f"At most {total:.2f} US dollars an hour for machines ({', '.join(parts) or 'no known type'};"
        f" approximate on-demand prices of {PRICES_OF}; spot machines cost less, disks and traffic come on"
        " top)."
    )
    unknown = [f"{count} x {one.machine or one.name}" for one, count in running if one.machine not in prices]
    if unknown:
        text += f" Not counted, because no price is known here: {', '.join(unknown)}."
    return text


def _dearest(cluster: ClusterFile, prices: Mapping[str, float]) -> Iterator[tuple[NodeType, int]]:
    """Yield the node types that cost the most together, each with its number of machines, the head first.

    A type without a known price comes before the others, so that it is not left out.
    """
    left = cluster.max_workers
    for one in cluster.node_types:
        if one.is_head:
            yield one, 1
    workers = [one for one in cluster.node_types if not one.is_head]
    for one in sorted(workers, key=lambda one: -prices.get(one.machine, float("inf"))):
        count = min(one.max_workers, left)
        # Its machines may also be others of the file, whose price is known.
        left -= count if one.machine in prices else 0
        if count:
            yield one, count
