"""The highest cost of a cluster in an hour, and the settings of a file that cost money without a use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tune_rescon.clusters.cluster_file import ClusterFile, NodeType
from tune_rescon.clusters.documents import ClusterDocument, at
from tune_rescon.errors import KeyPath

__all__ = [
    "PRICES",
    "PRICES_OF",
    "check_costs",
    "most_per_hour",
]

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

#: The longest idle time-out, in minutes, that gives no finding.
_LONGEST_IDLE: Final = 60.0

#: Machine types with an accelerator, by provider.
_ACCELERATED: Final[Mapping[str, re.Pattern[str]]] = {
    "aws": re.compile(r"(p\d|g\d|gr\d|trn\d|inf\d|dl\d)\w*[.-]"),
    "gcp": re.compile(r"(a\d|g\d|ct\d)\w*-"),
    "azure": re.compile(r"Standard_N[A-Z]", re.IGNORECASE),
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


def check_costs(document: ClusterDocument) -> None:
    """Add a finding for each setting that bills machines or disks which nothing uses."""
    provider = str(at(document.value, "provider", "type"))
    if provider not in _ACCELERATED:
        return
    _check_stopped_nodes(document, provider)
    _check_idle(document)
    head = document.value.get("head_node_type")
    steps: KeyPath = ("available_node_types", str(head), "node_config")
    config = at(document.value, *steps)
    machine = _machine(config)
    if _ACCELERATED[provider].match(machine) or at(config, "guestAccelerators"):
        rule = "the head should be a machine without a GPU"
        hint = "It is billed all the time, and no trial runs on it."
        document.complain("cost", steps, rule, got=machine, hint=hint, severity="warning")


def _check_stopped_nodes(document: ClusterDocument, provider: str) -> None:
    steps: KeyPath = ("provider", "cache_stopped_nodes")
    # Without the key, Ray stops machines on AWS and Azure, and ends them on Google Cloud.
    given = at(document.value, *steps)
    if given is False or (given is None and provider == "gcp"):
        return
    hint = (
        "Ray stops machines instead of ending them otherwise, and their disks are billed until you find them."
    )
    got = "nothing, which is true for Ray" if given is None else str(given).lower()
    document.complain("cost", steps, "should be false", got=got, hint=hint, severity="warning")


def _check_idle(document: ClusterDocument) -> None:
    places: list[tuple[KeyPath, float]] = [(("idle_timeout_minutes",), 1.0)]
    types = document.value.get("available_node_types")
    names = list(types) if isinstance(types, Mapping) else []
    places += [(("available_node_types", name, "idle_timeout_s"), 1 / 60) for name in names]
    for steps, minutes in places:
        value = at(document.value, *steps)
        if isinstance(value, int | float) and value * minutes > _LONGEST_IDLE:
            rule = f"should be at most {_LONGEST_IDLE:g} minutes"
            hint = "So long a worker with nothing to do is billed."
            got = f"{value * minutes:g}"
            document.complain("cost", steps, rule, got=got, hint=hint, severity="warning")


def _machine(config: Any) -> str:
    """Return the machine type in a ``node_config``, by the name that each cloud has for it."""
    names = ("InstanceType", "machineType")
    found = next((config[name] for name in names if at(config, name)), None)
    return str(found or at(config, "azure_arm_parameters", "vmSize") or "").rpartition("/")[2]
