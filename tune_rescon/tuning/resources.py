"""The resources of trials: whether one fits on the machines, how many run at once, how many share a GPU."""

from __future__ import annotations

import functools
import math
import os
import subprocess
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetInfo
from tune_rescon.errors import ResourceError, counted, format_error
from tune_rescon.models import describe_network, network_cost
from tune_rescon.spaces import AutoResources, Resources, Space, corners
from tune_rescon.training.microbatches import smallest_micro_batch

if TYPE_CHECKING:
    from tune_rescon.training.probe import Occupancy

__all__ = [
    "Measure",
    "Nodes",
    "autoscaler_limits",
    "choose_resources",
    "concurrent_trials",
    "fit_to_machine",
    "largest_trial",
    "machine_message",
    "memory_signature",
    "nodes_of",
    "slots_here",
    "this_machine",
    "trials_per_gpu",
    "with_gpu_share",
]


#: Path where `ray up` leaves the cluster's file on its head. The file has the limits of the autoscaler.
BOOTSTRAP: Final = "~/ray_bootstrap_config.yaml"

#: Environment variable that is set in the pods of a cluster created by KubeRay. Ray reads it, too.
_KUBERAY: Final = "RAY_USAGE_STATS_KUBERAY_IN_USE"

#: Ray's name of a resource -> the key in a space that requests it.
_KEYS: Final = {"CPU": "cpu", "GPU": "gpu"}

#: Seconds that ``nvidia-smi`` may take.
_GPU_LIST_SECONDS: Final = 20.0

#: Tolerance for rounding. Ray's resources are multiples of 1/10000, and three times a third must fit into a
#: whole.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Machines of one kind."""

    count: int
    resources: Mapping[str, float]
    """Resources of each machine, by Ray's names."""

    def capacity(self, need: Mapping[str, float]) -> int:
        """Return how many processes that need the resources ``need`` these machines can run at once."""
        wanted = [(kind, amount) for kind, amount in need.items() if amount]
        fits = [int(self.resources.get(kind, 0.0) / amount + _ROUNDING) for kind, amount in wanted]
        return self.count * min(fits, default=1)


def concurrent_trials(
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
    places = max(_capacity(now, need), _capacity(later or (), need))
    fits = places // workers
    if not fits and later is None:
        rule = "must be a number, because no present machine has room for a trial and the cluster may grow"
        raise ResourceError(
            format_error(rule, got="null", where="budget.concurrent", hint="Give --concurrent N.")
        )
    if places and not fits:
        raise ResourceError(_workers_error(workers, places))
    if not fits:
        raise ResourceError(_resources_error([*now, *(later or ())], need))
    return min(fits, wanted) if wanted else fits


def _capacity(nodes: Iterable[Nodes], need: Mapping[str, float]) -> int:
    return sum(kind.capacity(need) for kind in nodes)


def _workers_error(workers: int, places: int) -> str:
    hint = f"Ask for fewer, for example --set resources_per_trial.workers={places}."
    rule = f"the machines must have room for all {workers} workers of a trial at once"
    return format_error(rule, got=f"room for {places}", where="resources_per_trial.workers", hint=hint)


def _resources_error(nodes: Sequence[Nodes], need: Mapping[str, float]) -> str:
    largest = {kind: max((node.resources.get(kind, 0.0) for node in nodes), default=0.0) for kind in need}
    for kind, amount in need.items():
        if amount <= largest[kind]:
            continue
        if kind not in _KEYS:
            kinds = sorted(
                {name for node in nodes for name in node.resources if ":" in name and "node:" not in name}
            )
            return format_error(f"a trial needs a node with {kind}", got=", ".join(kinds) or "none")
        key = f"resources_per_trial.{_KEYS[kind]}"
        short = {name: largest[name] for name in _KEYS if need.get(name, 0.0) > largest.get(name, 0.0)}
        fits = " ".join(f"--set resources_per_trial.{_KEYS[name]}={has:g}" for name, has in short.items())
        hint = f"Ask for less, for example {fits}. `--set resources_per_trial=auto` chooses what fits."
        rule = f"a trial asks for {amount:g} {kind}, which must not be more than a machine has"
        return format_error(rule, got=f"{largest[kind]:g} {kind}", where=key, hint=hint)
    asked = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items() if amount)
    return format_error(
        f"one machine must have all that a trial asks for ({asked})", got="only some of it on each"
    )


def nodes_of(found: Iterable[Mapping[str, Any]]) -> tuple[Nodes, ...]:
    """Return the live machines in the result of ``ray.nodes()``."""
    return tuple(Nodes(count=1, resources=node["Resources"]) for node in found if node["Alive"])


def autoscaler_limits(bootstrap: Path | None = None) -> tuple[Nodes, ...] | None:
    """Return the machines that the autoscaler of this head's cluster may start, the head included.

    The answer is in the cluster's file, ``bootstrap`` or :data:`BOOTSTRAP`. It is empty if the cluster does
    not grow, as with providers without node types (on-prem), which have all of their machines. It is None if
    the cluster may grow, but this machine has no information about its limit.
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


#: Largest number of CPU cores that ``auto`` gives a trial with a GPU: its images need no more.
_CORES_BESIDE_A_GPU: Final = 4

#: Memory that ``auto`` plans for each trial that trains on CPU cores, and the largest number of such trials.
_MEMORY_OF_A_TRIAL: Final = 2 * 1024**3
_MOST_ON_CPU: Final = 8


def this_machine(
    environment: Mapping[str, str] = os.environ, list_gpus: Callable[[], int] | None = None
) -> Nodes:
    """Return the CPU cores, the memory and the GPUs of this machine that a search may use.

    ``CUDA_VISIBLE_DEVICES`` in ``environment`` hides GPUs. ``list_gpus`` returns their number; None asks
    ``nvidia-smi``, because torch and Ray take seconds to import.
    """
    import psutil
    from joblib import cpu_count

    visible = _visible_gpus(environment.get("CUDA_VISIBLE_DEVICES"))
    gpus = min(visible, (list_gpus or _listed_gpus)()) if visible else 0
    resources = {
        "CPU": float(cpu_count()),
        "GPU": float(gpus),
        "memory": float(psutil.virtual_memory().total),
    }
    return Nodes(count=1, resources=resources)


def _visible_gpus(variable: str | None) -> float:
    """Return the number of GPUs that CUDA_VISIBLE_DEVICES allows; inf without the variable.

    CUDA ignores what follows an entry that names no device. Slurm writes NoDevFiles in a job without GPUs.

    >>> _visible_gpus(None), _visible_gpus("0,1"), _visible_gpus("0,-1,1"), _visible_gpus("NoDevFiles")
    (inf, 2, 1, 0)
    """
    if variable is None:
        return math.inf
    entries = map(str.strip, variable.split(","))
    return len(list(takewhile(lambda entry: entry not in ("", "-1", "NoDevFiles"), entries)))


# Cached, because a command checks the machine before the search does.
@functools.cache
def _listed_gpus() -> int:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_GPU_LIST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        # In a container the program may be missing although the GPUs are there.
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def choose_resources(space: Space, nodes: Sequence[Nodes], *, where: str) -> tuple[Space, str]:
    """Replace ``resources_per_trial: auto`` by resources that suit the machines, and explain the choice.

    With GPUs, a trial gets one of them, and its share of the CPU cores, at most four. Without GPUs, the cores
    are divided among as many trials as cores and memory allow, at most eight.

    Args:
        space: The space, with :class:`.AutoResources`.
        nodes: The machines, also those that a cluster may add.
        where: The machines in words, such as "this machine".
    """
    with_gpu = [node.resources for node in nodes if node.resources.get("GPU", 0.0) >= 1]
    usable = with_gpu or [node.resources for node in nodes if node.resources.get("CPU", 0.0) >= 1]
    chosen = [_for_node(node) for node in usable] or [Resources()]
    # If there are several kinds of machines, the smallest resources fit on each.
    resources = min(chosen, key=lambda each: each.cpu)
    gpu = "1 GPU" if resources.gpu else "no GPU"
    cores = counted(resources.cpu, "CPU core")
    message = (
        f"Each trial gets {cores} and {gpu}, which suits {where} (resources_per_trial: auto). To change it:"
        f" --set 'resources_per_trial={{cpu: {resources.cpu}, gpu: {resources.gpu:g}}}'"
    )
    return space.model_copy(update={"resources_per_trial": resources}), message


def _for_node(node: Mapping[str, float]) -> Resources:
    """Return the resources of a trial on a machine.

    >>> _for_node({"CPU": 16.0, "GPU": 2.0}).cpu, _for_node({"CPU": 2.0, "GPU": 1.0}).cpu
    (4, 2)
    >>> _for_node({"CPU": 2.0, "memory": 8e9}).cpu, _for_node({"CPU": 32.0, "memory": 8e9}).cpu
    (1, 10)
    """
    cpus, gpus = int(node.get("CPU", 1.0)), int(node.get("GPU", 0.0))
    if gpus:
        return Resources(cpu=max(1, min(_CORES_BESIDE_A_GPU, cpus // gpus)), gpu=1.0)
    # A cluster's node type may not give its memory.
    room = int(node.get("memory", _MOST_ON_CPU * _MEMORY_OF_A_TRIAL) / _MEMORY_OF_A_TRIAL)
    trials = max(1, min(cpus, room, _MOST_ON_CPU))
    return Resources(cpu=max(1, cpus // trials), gpu=0.0)


def fit_to_machine(space: Space) -> tuple[Space, str]:
    """Check, before images are decoded and Ray starts, that a trial of ``space`` fits on this machine.

    Returns:
        ``space``, with the resources that ``auto`` chooses here, and a message about that choice. The message
        is empty if the space gives the resources.

    Raises:
        ResourceError: If a trial does not fit. The message has the settings that fit.
    """
    if isinstance(space.resources_per_trial, AutoResources):
        return choose_resources(space, [this_machine()], where="this machine")
    _slots_on_machine(space)
    return space, ""


def _slots_on_machine(space: Space) -> int:
    resources = space.resources_per_trial
    # Ray may use more cores than this_machine counts.
    available = {**this_machine().resources, "CPU": float(os.cpu_count() or 1)}
    need = {kind: amount for kind, amount in resources.by_name().items() if kind in _KEYS}
    machine = Nodes(count=1, resources=available)
    return concurrent_trials([machine], [], need, space.budget.concurrent, workers=resources.workers)


def slots_here(space: Space) -> tuple[Space, int]:
    """Return the space of :func:`fit_to_machine`, and how many of its trials run at once on this machine.

    Raises:
        ResourceError: If a trial does not fit.
    """
    space, _ = fit_to_machine(space)
    return space, min(_slots_on_machine(space), space.budget.trials)


def machine_message(space: Space) -> str:
    """Return a message for a dry run: what ``auto`` chooses here, or whether the given resources fit here."""
    try:
        return fit_to_machine(space)[1] or "A trial's resources fit on this machine."
    except ResourceError as error:
        return f"On this machine a search would be refused: {error}"


#: Runs the training step of a trial, given its configuration and its images, on a separate GPU.
#: Returns None if the whole batch does not fit.
Measure = Callable[[TrialConfig, DatasetInfo], "Occupancy | None"]

#: Fields that determine the cost of a training step.
_SHARING_FIELDS: Final = (
    *("dataset", "network", "preset", "layout", "depth", "width", "image_size", "mask", "added_reference"),
    *("batch_size", "precision", "optimizer", "compile", "cuda_graphs", "checkpoint_activations"),
)

#: Maximum number of trials on a GPU, because the host must feed data to each of them.
MAX_TRIALS_PER_GPU: Final = 8

#: Share of a GPU's memory that is planned for trials. The rest is for fragmentation and for the images
#: (:mod:`tune_rescon.data.batch_sources` uses an eighth of the free memory).
_PLANNED: Final = 0.75


def with_gpu_share(space: Space, datasets: Mapping[str, DatasetInfo], measure: Measure) -> tuple[Space, str]:
    """Set the share of a GPU for each trial of ``space``, and explain the choice.

    All trials get the same share, so the largest trial determines it.

    Args:
        space: The space of the search.
        datasets: The description of each dataset, by name.
        measure: Runs the training step of the largest trial on a GPU.

    Returns:
        ``space`` with the share, and a message that explains it.
    """
    config, images = largest_trial(space, datasets)
    occupancy = measure(config, images)
    if occupancy is None:
        trials, message = 1, "One trial per GPU: a whole batch of the space's largest network fills it."
    else:
        trials = trials_per_gpu(busy=occupancy.busy, used=occupancy.used, total=occupancy.total)
        message = (
            f"Trials that share a GPU: {trials}. A step of the space's largest network keeps"
            f" {occupancy.device} busy for {occupancy.busy:.0%} of its time and takes"
            f" {occupancy.used / 1e9:.1f} of {occupancy.total / 1e9:.1f} GB."
        )
    resources = space.resources_per_trial.model_copy(update={"gpu": 1 / trials})
    return space.model_copy(update={"resources_per_trial": resources}), message


def trials_per_gpu(*, busy: float, used: int, total: int) -> int:
    """Return the number of trials that can share a GPU without waiting much for each other.

    Args:
        busy: The share of the time for which one trial keeps the GPU busy.
        used: The memory that one trial uses, in bytes.
        total: The memory of the GPU, in bytes.

    >>> trials_per_gpu(busy=0.2, used=2, total=40), trials_per_gpu(busy=0.2, used=10, total=40)
    (5, 3)
    >>> trials_per_gpu(busy=0.6, used=2, total=40), trials_per_gpu(busy=0.01, used=1, total=400)
    (1, 8)
    """
    by_time = MAX_TRIALS_PER_GPU if busy * MAX_TRIALS_PER_GPU <= 1 else int(1 / busy)
    by_memory = int(_PLANNED * total / used)
    return max(1, min(by_time, by_memory, MAX_TRIALS_PER_GPU))


def largest_trial(space: Space, datasets: Mapping[str, DatasetInfo]) -> tuple[TrialConfig, DatasetInfo]:
    """Return the trial of ``space`` whose step has the most multiplications, and its dataset."""
    configs = [TrialConfig.from_dict({**space.fixed, **row}) for row in corners(space, _SHARING_FIELDS)]

    def step_macs(config: TrialConfig) -> int:
        images = datasets[config.dataset or space.dataset.name]
        spec = describe_network(config, classes=images.classes, in_channels=images.channels)
        return network_cost(spec).macs * config.batch_size

    config = max(configs, key=step_macs)
    return config, datasets[config.dataset or space.dataset.name]


#: Fields that, together with the micro-batch size, determine the memory of a trial whose batches are split
#: into the smallest micro-batches.
_MEMORY_FIELDS: Final = (
    *("dataset", "network", "preset", "layout", "depth", "width", "image_size"),
    *("attention", "attention_learning", "mask", "added_reference"),
    *("optimizer", "precision", "compile", "cuda_graphs", "checkpoint_activations"),
)


def memory_signature(config: TrialConfig) -> Hashable:
    """Return a key that is equal for trials that need the same memory.

    >>> small, again = TrialConfig(depth=56, learning_rate=0.1), TrialConfig(depth=56, learning_rate=0.2)
    >>> memory_signature(small) == memory_signature(again) != memory_signature(TrialConfig(depth=92))
    True
    """
    fields = (getattr(config, name) for name in _MEMORY_FIELDS)
    return (*fields, config.ema_decay > 0, smallest_micro_batch(config.batch_size))
