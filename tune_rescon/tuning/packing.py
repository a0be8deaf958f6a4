"""How many trials share a GPU where the space leaves that open (``resources_per_trial.gpu: auto``).

Processes on one GPU take turns: while one's kernels run, the others' wait. So trials gain from sharing as far
as a single one leaves the device idle, between kernels that are too short for the host to keep up with, and
as far as its memory goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetFacts
from tune_rescon.models import count, resolve_network
from tune_rescon.spaces import Space, corners

if TYPE_CHECKING:
    from tune_rescon.training.gpu_probe import Occupancy

__all__ = ["Measure", "largest_trial", "packed", "trials_per_gpu"]

#: Runs the training step of a trial on a GPU of its own: its configuration, and its images' facts. None: the
#: whole batch does not fit.
Measure = Callable[[TrialConfig, DatasetFacts], "Occupancy | None"]

#: Fields that decide what a step costs.
_FIELDS: Final = (
    *("dataset", "preset", "layout", "depth", "width", "image_size", "mask", "added_reference"),
    *("batch_size", "precision", "optimizer", "compile", "cuda_graphs", "checkpoint_activations"),
)

#: Trials on a GPU at most: the host has each of them to feed.
MOST: Final = 8

#: Share of a GPU's memory that is planned with; fragmentation needs the rest, and the images
#: (:mod:`tune_rescon.data.batch_sources` takes an eighth of what is free).
_PLANNED: Final = 0.75


def packed(space: Space, facts: Mapping[str, DatasetFacts], measure: Measure) -> tuple[Space, str]:
    """``space`` with the share of a GPU that its largest trial needs, and how that came about, in words.

    All trials get the same share, so the largest one decides.
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
    """Trials that a GPU serves at once, none of which then waits much for the others.

    Args:
        busy: share of its time for which one keeps it busy.
        used: bytes one takes.
        total: bytes it has.

    >>> trials_per_gpu(busy=0.2, used=2, total=40), trials_per_gpu(busy=0.2, used=10, total=40)
    (5, 3)
    >>> trials_per_gpu(busy=0.6, used=2, total=40), trials_per_gpu(busy=0.01, used=1, total=400)
    (1, 8)
    """
    by_time = MOST if busy * MOST <= 1 else int(1 / busy)
    by_memory = int(_PLANNED * total / used)
    return max(1, min(by_time, by_memory, MOST))


def largest_trial(space: Space, facts: Mapping[str, DatasetFacts]) -> tuple[TrialConfig, DatasetFacts]:
    """The trial of ``space`` whose step multiplies most, and the facts of its images."""
    seen = [TrialConfig.from_dict({**space.fixed, **chosen}) for chosen in corners(space.parameters, _FIELDS)]

    def step_macs(config: TrialConfig) -> int:
        images = facts[config.dataset or space.dataset.name]
        spec = resolve_network(config, classes=images.classes, in_channels=images.channels)
        return count(spec).macs * config.batch_size

    config = max(seen, key=step_macs)
    return config, facts[config.dataset or space.dataset.name]
