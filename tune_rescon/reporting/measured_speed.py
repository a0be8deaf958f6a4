"""How long a space's networks train on this machine, from real training steps, and what fits into hours.

``--dry-run --measure`` shows the first, ``--quick`` and ``--quality`` use the second.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetInfo, describe
from tune_rescon.errors import counted
from tune_rescon.reporting.formatting import duration
from tune_rescon.spaces import Space, longest_warmup, preview, trial_config
from tune_rescon.tuning import datasets_of
from tune_rescon.tuning.resources import memory_signature, slots_here
from tune_rescon.tuning.stopping.auto_words import planned_epochs

__all__ = ["EFFORTS", "fit_to_hours", "fitting_budget", "measure_epochs", "speed_message"]

#: Hours of a search on this machine, by the name of the effort.
EFFORTS: Final[Mapping[str, float]] = {"quick": 1 / 6, "good": 1.0, "best": 8.0}

#: Trainings to the last epoch for which the hours are enough, if no trial is stopped. The scheduler stops
#: most trials early; therefore more of them begin, at most :data:`_TRIALS` times as many.
_TRAININGS: Final = 12
_TRIALS: Final = 10

#: Networks that are measured, the first ones that the search would train.
_MEASURED: Final = 6

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
    from tune_rescon.training.device import resolve_device
    from tune_rescon.training.probe import step_of

    resources = space.resources_per_trial
    placement = resolve_device("cuda" if resources.gpus else "cpu", precision=config.precision)
    step = step_of(config, placement, classes=images.classes, in_channels=images.channels)
    with placement.active(resources.cpu):
        float(step())
        began, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < _SECONDS or not count:
            # Reading the loss waits for the device.
            float(step())
            count += 1
    return passed / count


def fit_to_hours(
    space: Space, hours: float, *, data_root: Path, progress: Callable[[str], object]
) -> tuple[list[str], str]:
    """Return the settings of a budget that fits into hours on this machine, and a sentence about them.

    Args:
        space: The space.
        hours: The time of the search.
        data_root: The directory of the datasets.
        progress: Called with a message before each measurement.

    Raises:
        UserError: The dataset is missing, or a trial does not fit on this machine.
    """
    here, slots = slots_here(space)
    datasets = {dataset.name: describe(dataset, data_root=data_root) for dataset in datasets_of(space)}
    samples = preview(here, _MEASURED)
    seconds = measure_epochs(here, samples, datasets, progress=progress)
    mean = sum(seconds) / len(seconds)
    settings = fitting_budget(space, hours, epoch_seconds=mean, slots=slots)
    message = (
        f"An epoch takes {duration(mean)} on this machine in the mean of {counted(len(seconds), 'trial')},"
        f" and {slots} run at once: {', '.join(settings)}"
    )
    return settings, message


def fitting_budget(space: Space, hours: float, *, epoch_seconds: float, slots: int) -> list[str]:
    """Return the settings of a budget: the hours, the epochs of the longest training, and the trials at most.

    The scheduler ``auto`` divides the hours. No training is longer than in the space, nor shorter than its
    warm-up.

    Args:
        space: The space.
        hours: The time of the search.
        epoch_seconds: The mean time of an epoch.
        slots: The number of trials that run at once.
    """
    epochs = hours * 3600 * slots / epoch_seconds
    _, warmup = longest_warmup(space.fixed, space.parameters)
    longest = min(space.fidelity.max, max(math.ceil(warmup), int(epochs / _TRAININGS), 1))
    trials = max(space.budget.trials, int(_TRIALS * epochs / longest))
    return [
        f"scheduler={json.dumps({'type': 'auto', 'group_by': space.scheduler.group_by})}",
        f"budget.hours={hours:.4g}",
        f"budget.trials={trials}",
        f"fidelity.min={min(space.fidelity.min, longest)}",
        f"fidelity.max={longest}",
    ]


def speed_message(space: Space, epoch_seconds: Sequence[float], *, slots: int) -> str:
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
        hours = counted(space.budget.hours, "hour")
        return f"{speed}; {hours}, {at_once}, are about {counted(epochs, 'epoch')}"
    count, kind = (whole, "at most") if planned is None else (planned, "about")
    return f"{speed}; {counted(count, 'epoch')}, {at_once}, take {kind} {duration(count * mean / slots)}"
