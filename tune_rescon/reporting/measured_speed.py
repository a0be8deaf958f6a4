"""``--dry-run --measure``: how long a space's networks train on this machine, from real training steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetInfo
from tune_rescon.errors import counted
from tune_rescon.reporting.formatting import duration
from tune_rescon.spaces import Space, trial_config
from tune_rescon.tuning.auto_words import planned_epochs
from tune_rescon.tuning.resources import memory_signature

__all__ = ["measure_epochs", "speed_words"]

#: Seconds of steps that are timed for each network, after one step that is not.
_SECONDS: Final = 2.0

#: The forward pass, which is all that a validation image needs, as a share of a training image's time.
_VALIDATION: Final = 1 / 3


def measure_epochs(
    space: Space,
    samples: Sequence[Mapping[str, Any]],
    datasets: Mapping[str, DatasetInfo],
    *,
    progress: Callable[[str], object],
) -> list[float]:
    """Return the seconds of an epoch for each sample, from training steps on this machine.

    A step has the whole batch, of random images, and the threads or the GPU that a trial gets. The reading
    and augmentation of images, which trials do beside the training, is not part of it. Samples that need the
    same memory have the same speed and are measured once.

    Args:
        space: The space, whose resources must be chosen.
        samples: Values of its parameters.
        datasets: The description of each dataset, by name.
        progress: Called with a message before each measurement.

    Raises:
        ResourceError: If trials get a GPU and torch finds none.
    """
    known: dict[Hashable, float] = {}
    seconds = []
    for sample in samples:
        config = trial_config(space, sample)
        images = datasets[space.dataset_config(config.dataset).name]
        key = (memory_signature(config), images.name)
        if key not in known:
            progress(f"measuring network {len(known) + 1} on this machine")
            step = _step_seconds(space, config, images)
            steps = math.ceil(images.train_images / config.batch_size)
            validation = _VALIDATION * images.val_images / config.batch_size
            known[key] = step * (steps + validation)
        seconds.append(known[key])
    return seconds


def _step_seconds(space: Space, config: TrialConfig, images: DatasetInfo) -> float:
    # Imported here because it imports torch, which a dry run does without.
    from tune_rescon.training.device import place
    from tune_rescon.training.gpu_probe import step_of

    resources = space.resources_per_trial
    placement = place("cuda" if resources.gpus else "cpu", precision=config.precision)
    step = step_of(config, placement, classes=images.classes, in_channels=images.channels)
    with placement.active(resources.cpu):
        float(step())
        began, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < _SECONDS or not count:
            # Reading the loss waits for the device.
            float(step())
            count += 1
    return passed / count


def speed_words(space: Space, epoch_seconds: Sequence[float], *, slots: int) -> str:
    """Return a sentence about how long the search takes at the measured speed.

    Args:
        space: The space.
        epoch_seconds: The seconds of an epoch of some samples.
        slots: The number of trials that run at once.
    """
    least, most, mean = min(epoch_seconds), max(epoch_seconds), sum(epoch_seconds) / len(epoch_seconds)
    speed = f"measured on this machine: an epoch takes {duration(least)}"
    if most > least:
        speed += f" to {duration(most)}, {duration(mean)} in the mean of these samples"
    whole = space.budget.trials * space.fidelity.max
    planned = planned_epochs(space) if space.scheduler.type == "auto" else None
    at_once = f"{counted(slots, 'trial')} at once"
    if space.budget.hours is not None:
        epochs = int(space.budget.hours * 3600 / mean * slots)
        return f"{speed}; {space.budget.hours:g} hours, {at_once}, are about {counted(epochs, 'epoch')}"
    count, kind = (whole, "at most") if planned is None else (planned, "about")
    return f"{speed}; {counted(count, 'epoch')}, {at_once}, take {kind} {duration(count * mean / slots)}"
