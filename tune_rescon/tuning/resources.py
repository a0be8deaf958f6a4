"""Resources of trials on a cluster: how many trials fit, how many share a GPU, if a trial can run at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetInfo
from tune_rescon.errors import ResourceError, format_error
from tune_rescon.models import count, resolve_network
from tune_rescon.spaces import Space, corners
from tune_rescon.training.microbatches import smallest_piece

if TYPE_CHECKING:
    from tune_rescon.training.gpu_probe import Occupancy

__all__ = [
    "Measure",
    "Nodes",
    "fit_slots",
    "growth",
    "largest_trial",
    "memory_signature",
    "nodes_of",
    "packed",
    "trials_per_gpu",
]


#: Path where `ray up` leaves the cluster's file on its head. The file sets how far the autoscaler may grow
#: the cluster.
BOOTSTRAP: Final = "~/ray_bootstrap_config.yaml"

#: Environment variable that is set in the pods of a cluster created by KubeRay. Ray reads it, too.
_KUBERAY: Final = "RAY_USAGE_STATS_KUBERAY_IN_USE"

#: Ray's name of a resource -> the key in a space that requests it.
_KEYS: Final = {"CPU": "cpu", "GPU": "gpu"}

#: Tolerance for rounding. Ray's resources are multiples of 1/10000, and three times a third must fit into a
#: whole.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Machines of one kind."""

    count: int
    resources: Mapping[str, float]
    """Resources of each machine, by Ray's names."""

    def room(self, need: Mapping[str, float]) -> int:
        """Return how many times ``need`` fits, if each copy must be on a single machine."""
        wanted = [(kind, amount) for kind, amount in need.items() if amount]
        fits = [int(self.resources.get(kind, 0.0) / amount + _ROUNDING) for kind, amount in wanted]
        return self.count * min(fits, default=1)


def fit_slots(
    now: Sequence[Nodes],
    later: Sequence[Nodes] | None,
    need: Mapping[str, float],
    wanted: int | None,
    *,
    workers: int = 1,
) -> int:
    """Return the number of trials that can run at once, at most ``wanted``.

    Args:
        now: The current machines.
        later: The machines after the cluster has grown. Empty if the cluster does not grow. None if it grows
            and only ``wanted`` limits its growth.
        need: The resources that a trial requests for each of its worker processes, by Ray's names.
        wanted: The maximum number of trials. None for no maximum.
        workers: The number of worker processes of a trial. They may be on different machines.

    Raises:
        ResourceError: If no machine, now or after growth, has enough resources for one trial. Tune would
            otherwise wait forever.
    """
    if later is None and wanted:
        return wanted
    places = max(_room(now, need), _room(later or (), need))
    fits = places // workers
    if not fits and later is None:
        rule = (
            "a search must say how far its cluster is to grow, where no machine of now has room for a trial"
        )
        raise ResourceError(
            format_error(rule, got="no number", where="budget.concurrent", hint="Give --concurrent N.")
        )
    if places and not fits:
        raise ResourceError(_too_many(workers, places))
    if not fits:
        raise ResourceError(_too_much([*now, *(later or ())], need))
    return min(fits, wanted) if wanted else fits


def _room(nodes: Iterable[Nodes], need: Mapping[str, float]) -> int:
    return sum(kind.room(need) for kind in nodes)


def _too_many(workers: int, places: int) -> str:
    hint = f"Ask for fewer, for example --set resources_per_trial.workers={places}."
    rule = f"a trial has {workers} workers, for which the machines must have room at once"
    return format_error(rule, got=f"room for {places}", where="resources_per_trial.workers", hint=hint)


def _too_much(nodes: Sequence[Nodes], need: Mapping[str, float]) -> str:
    most = {kind: max((one.resources.get(kind, 0.0) for one in nodes), default=0.0) for kind in need}
    for kind, amount in need.items():
        if amount <= most[kind]:
            continue
        if kind not in _KEYS:
            kinds = sorted(
                {name for one in nodes for name in one.resources if ":" in name and "node:" not in name}
            )
            return format_error(f"a trial needs a node with {kind}", got=", ".join(kinds) or "none")
        key = f"resources_per_trial.{_KEYS[kind]}"
        hint = f"Ask for less, for example --set {key}={most[kind]:g}."
        rule = f"a trial asks for {amount:g} {kind}, which must not be more than a machine has"
        return format_error(rule, got=f"{most[kind]:g} {kind}", where=key, hint=hint)
    asked = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items() if amount)
    return format_error(
        f"a trial asks for {asked}, which one machine must have", got="only some of it on each"
    )


def nodes_of(found: Iterable[Mapping[str, Any]]) -> tuple[Nodes, ...]:
    """Return the live machines in the result of ``ray.nodes()``."""
    return tuple(Nodes(count=1, resources=node["Resources"]) for node in found if node["Alive"])


def growth(bootstrap: Path | None = None) -> tuple[Nodes, ...] | None:
    """Return the machines that the cluster of this head may grow to.

    The head is one of the cluster's node types. Providers without node types (on-prem) already have all of
    their machines.

    Args:
        bootstrap: The cluster's file. None for :data:`BOOTSTRAP`.

    Returns:
        The machines. Empty if the cluster does not grow. None if it may grow, but this machine has no
        information about its limit.
    """
    path = bootstrap or Path(BOOTSTRAP).expanduser()
    if not path.is_file():
        # KubeRay's operator has this information. Inside a pod, only its variable shows that an operator
        # exists.
        return None if os.environ.get(_KUBERAY) else ()
    from ruamel.yaml import YAML

    cluster = YAML(typ="safe").load(path)
    types = cluster.get("available_node_types", {}).items()
    bound = int(cluster.get("max_workers", 0))
    head = cluster.get("head_node_type")
    return tuple(
        Nodes(
            count=1 if name == head else min(bound, int(kind.get("max_workers", bound))),
            resources=kind.get("resources", {}),
        )
        for name, kind in types
    )


#: Runs the training step of a trial, given its configuration and the facts of its images, on a separate GPU.
#: Returns None if the whole batch does not fit.
Measure = Callable[[TrialConfig, DatasetInfo], "Occupancy | None"]

#: Fields that determine the cost of a training step.
_SHARING_FIELDS: Final = (
    *("dataset", "preset", "layout", "depth", "width", "image_size", "mask", "added_reference"),
    *("batch_size", "precision", "optimizer", "compile", "cuda_graphs", "checkpoint_activations"),
)

#: Maximum number of trials on a GPU, because the host must feed data to each of them.
MOST: Final = 8

#: Share of a GPU's memory that is planned for trials. The rest is for fragmentation and for the images
#: (:mod:`tune_rescon.data.batch_sources` uses an eighth of the free memory).
_PLANNED: Final = 0.75


def packed(space: Space, facts: Mapping[str, DatasetInfo], measure: Measure) -> tuple[Space, str]:
    """Set the share of a GPU for each trial of ``space``, and explain the choice.

    All trials get the same share, so the largest trial determines it.

    Args:
        space: The space of the search.
        facts: The facts of each dataset, by name.
        measure: Runs the training step of the largest trial on a GPU.

    Returns:
        ``space`` with the share, and a message that explains it.
    """
    config, images = largest_trial(space, facts)
    found = measure(config, images)
    if found is None:
        trials, words = 1, "One trial a GPU: a whole batch of the space's largest network fills it."
    else:
        trials = trials_per_gpu(busy=found.busy, used=found.used, total=found.total)
        words = (
            f"Trials that share a GPU: {trials}. A step of the space's largest network keeps {found.device}"
            f" busy for {found.busy:.0%} of its time and takes {found.used / 1e9:.1f} of"
            f" {found.total / 1e9:.1f} GB."
        )
    resources = space.resources_per_trial.model_copy(update={"gpu": 1 / trials})
    return space.model_copy(update={"resources_per_trial": resources}), words


def trials_per_gpu(*, busy: float, used: int, total: int) -> int:
    """Return the number of trials that can share a GPU without waiting much for each other.

    Args:
        busy: The share of its time for which one trial keeps the GPU busy.
        used: The memory that one trial uses, in bytes.
        total: The memory of the GPU, in bytes.

    >>> trials_per_gpu(busy=0.2, used=2, total=40), trials_per_gpu(busy=0.2, used=10, total=40)
    (5, 3)
    >>> trials_per_gpu(busy=0.6, used=2, total=40), trials_per_gpu(busy=0.01, used=1, total=400)
    (1, 8)
    """
    by_time = MOST if busy * MOST <= 1 else int(1 / busy)
    by_memory = int(_PLANNED * total / used)
    return max(1, min(by_time, by_memory, MOST))


def largest_trial(space: Space, facts: Mapping[str, DatasetInfo]) -> tuple[TrialConfig, DatasetInfo]:
    """Return the trial of ``space`` whose step has the most multiplications, and the facts of its images."""
    seen = [
        TrialConfig.from_dict({**space.fixed, **chosen})
        for chosen in corners(space.parameters, _SHARING_FIELDS)
    ]

    def step_macs(config: TrialConfig) -> int:
        images = facts[config.dataset or space.dataset.name]
        spec = resolve_network(config, classes=images.classes, in_channels=images.channels)
        return count(spec).macs * config.batch_size

    config = max(seen, key=step_macs)
    return config, facts[config.dataset or space.dataset.name]


#: Fields that, together with the micro-batch size, determine the memory of a trial whose batches are split
#: into the smallest micro-batches.
_MEMORY_FIELDS: Final = (
    "dataset",
    "preset",
    "layout",
    "depth",
    "width",
    "image_size",
    "attention",
    "attention_learning",
    "mask",
    "added_reference",
    "optimizer",
    "precision",
    "compile",
    "cuda_graphs",
    "checkpoint_activations",
)


def memory_signature(config: TrialConfig) -> Hashable:
    """Return a key that is equal for trials that need the same memory.

    >>> small, again = TrialConfig(depth=56, learning_rate=0.1), TrialConfig(depth=56, learning_rate=0.2)
    >>> memory_signature(small) == memory_signature(again) != memory_signature(TrialConfig(depth=92))
    True
    """
    fields = (getattr(config, name) for name in _MEMORY_FIELDS)
    return (*fields, config.ema_decay > 0, smallest_piece(config.batch_size))
