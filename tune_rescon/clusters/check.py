"""Check a cluster file of any kind, and calculate the highest cost of its machines in an hour."""

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
    read_documents,
    texts_in,
    value_at,
)
from tune_rescon.clusters.launcher_rules import check_launcher
from tune_rescon.clusters.shared_rules import command_findings, image_problems, storage_problems
from tune_rescon.errors import KeyPath, dotted, format_error

__all__ = ["PRICES", "check_file", "max_hourly_cost"]


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
        document.add_violation("yaml", (), "must be keys and values", got=repr(value))
    elif str(value.get("apiVersion", "")).startswith("ray.io/"):
        _check_manifest(document)
    elif "run" in value:
        _check_sky_task(document)
    elif "apiVersion" not in value:
        check_launcher(document)
    placeholders = [
        (document.line(steps), name) for steps, text in texts_in(value) for name in _PLACEHOLDER.findall(text)
    ]
    return [*document.findings, *_placeholder_finding(placeholders)]


def _check_manifest(document: ClusterDocument) -> None:
    """Add every finding in a KubeRay manifest, if it is a cluster or a job."""
    steps: KeyPath | None = _CLUSTERS.get(str(document.value.get("kind")))
    if steps is None:
        return
    cluster = value_at(document.value, *steps)
    if value_at(cluster, "authOptions", "mode") != "token":
        got = str(value_at(cluster, "authOptions"))
        document.add_violation("auth-mode", (*steps, "authOptions"), "must be {mode: token}", got=got)
    if (ray := value_at(cluster, "rayVersion")) is not None and str(ray) != version("ray"):
        rule = f"must be the Ray of this environment, {version('ray')}"
        document.add_violation("image", (*steps, "rayVersion"), rule, got=ray)
    if (count := value_at(cluster, "headGroupSpec", "rayStartParams", "num-cpus")) != "0":
        rule = 'the head must be started with num-cpus: "0"'
        where = (*steps, "headGroupSpec", "rayStartParams")
        document.add_violation("head-resources", where, rule, got=repr(count))
    groups: list[KeyPath] = [(*steps, "headGroupSpec")]
    workers = value_at(cluster, "workerGroupSpecs")
    for index, group in enumerate(workers if isinstance(workers, list) else ()):
        below = (*steps, "workerGroupSpecs", index)
        groups.append(below)
        low, high = value_at(group, "minReplicas") or 0, value_at(group, "maxReplicas")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            rule = "`minReplicas <= maxReplicas` must hold"
            document.add_violation("workers", below, rule, got=f"{low} and {high}")
    for below in groups:
        # The first container of a pod runs Ray; the other containers may run any image.
        where = (*below, "template", "spec", "containers", 0, "image")
        for text, severity in image_problems(str(value_at(document.value, *where)), where=dotted(where)):
            document.add("image", where, text, severity)
    given = [(dotted(steps), text) for steps, text in texts_in(document.value) if "--storage" in text]
    for steps, text in texts_in(document.value):
        if text == "TUNE_RESCON_STORAGE" and steps[-1] == "name":
            value = value_at(document.value, *steps[:-1], "value")
            given.append((dotted(steps[:-1]), f"TUNE_RESCON_STORAGE={value}"))
    for _, text in storage_problems(given):
        document.add("storage", (), text)


def _check_sky_task(document: ClusterDocument) -> None:
    """Add the findings in a task of SkyPilot, which has its own check of keys and machines."""
    variables = value_at(document.value, "envs")
    given = [
        (f"envs.{name}", f"{name}={value}")
        for name, value in (variables.items() if isinstance(variables, dict) else ())
    ]
    given += [(dotted(steps), text) for steps, text in texts_in(document.value)]
    for _, text in storage_problems(given):
        document.add("storage", ("envs",), text)


def _script_findings(text: str) -> Iterator[Finding]:
    # The script is checked as one text, because later lines have the variables that a line exports.
    yield from command_findings(text, where="")
    commands = list(_script_commands(text))
    for where, problem in storage_problems([(str(line), command) for line, command in commands]):
        yield Finding(rule="storage", text=problem, line=int(where or 1))
    yield from _placeholder_finding(
        [(line, name) for line, command in commands for name in _PLACEHOLDER.findall(command)]
    )


def _script_commands(text: str) -> Iterator[tuple[int, str]]:
    """Yield a script's commands with their first lines; join continued lines and leave out comments."""
    first_line, command = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not command and line.lstrip().startswith("#"):
            continue
        first_line = first_line if command else number
        command += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield first_line, re.sub(r"\s#\s.*", "", command)
            command = ""


def _placeholder_finding(placeholders: list[tuple[int, str]]) -> Iterator[Finding]:
    if placeholders:
        names = ", ".join(dict.fromkeys(name for _, name in placeholders))
        text = format_error("what is marked CHANGE must be yours", got=names)
        yield Finding(rule="placeholder", text=text, line=min(placeholders)[0], severity="warning")


#: The month of the prices below.
PRICES_MONTH: Final = "September 2026"

#: The region of the prices below, by provider.
PRICES_REGION: Final[Mapping[str, str]] = {"aws": "us-west-2", "gcp": "us-central1"}

#: Approximate US dollars an hour for one machine on demand, by provider and machine type, for Linux. Every
#: machine type of the shipped files has one. The cloud's price list decides.
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


def max_hourly_cost(cluster: ClusterFile) -> str | None:
    """Describe the most that a cluster's machines can cost in an hour; None if no cloud bills for them."""
    if cluster.provider not in PRICES:
        return None
    prices, region = PRICES[cluster.provider], PRICES_REGION[cluster.provider]
    running = list(_most_expensive(cluster, prices))
    known = [(kind.machine, count) for kind, count in running if kind.machine in prices]
    total = sum(prices[machine] * count for machine, count in known)
    parts = [f"{count} x {machine} {prices[machine] * count:.2f}" for machine, count in known]
    text = (
        f"At most {total:.2f} US dollars an hour for machines ({', '.join(parts) or 'no known type'};"
        f" approximate on-demand prices of {PRICES_MONTH} in {region}; spot machines cost less, disks and"
        " traffic come on top)."
    )
    if cluster.region not in (None, region):
        text += f" The prices of {cluster.region} may be higher."
    unknown = [
        f"{count} x {kind.machine or kind.name}" for kind, count in running if kind.machine not in prices
    ]
    if unknown:
        text += f" Not counted, because no price is known here: {', '.join(unknown)}."
    return text


def _most_expensive(cluster: ClusterFile, prices: Mapping[str, float]) -> Iterator[tuple[NodeType, int]]:
    """Yield the most expensive machines within ``max_workers``: node types and their numbers, the head first.

    A type without a known price comes before the other workers, so that it is not left out.
    """
    left = cluster.max_workers
    yield from ((kind, 1) for kind in cluster.node_types if kind.is_head)
    for kind in sorted(cluster.node_types, key=lambda kind: -prices.get(kind.machine, float("inf"))):
        count = min(kind.max_workers, left)
        # Machines without a price leave the limit as it is, so that the total stays an upper bound.
        left -= count if kind.machine in prices else 0
        if count:
            yield kind, count
