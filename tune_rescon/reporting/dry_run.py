"""What a search would do and cost: ``--dry-run`` and ``--measure``; a budget by measuring: ``--quick``,
``--quality``.

Ray and MLflow are not imported. torch is imported only to time training steps, and to build a network of timm
or of the user, whose cost is counted by building it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetInfo, describe
from tune_rescon.errors import counted, hide_passwords
from tune_rescon.models import Cost, describe_network, network_cost
from tune_rescon.reporting.formatting import duration, format_number, setting_text
from tune_rescon.spaces import (
    Space,
    count_points,
    dump_space,
    extreme_value,
    first_rows,
    preview,
    trial_config,
)
from tune_rescon.tuning import (
    cache_messages,
    datasets_of,
    evaluation_messages,
    possible_rungs,
    with_store_size,
)
from tune_rescon.tuning.constraints import CONSTRAINED_DRAWS, check_constraints, violation_of
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.prepare import check_external_networks, check_metric_classes
from tune_rescon.tuning.resources import memory_signature, slots_here
from tune_rescon.tuning.stopping.auto_messages import plan_messages, planned_epochs

__all__ = ["EFFORTS", "fit_to_hours", "fitting_budget", "print_dry_run", "speed_message", "stopping_line"]

#: Maximum number of samples shown.
SAMPLES: Final = 8

#: Multiply-adds of a training step over those of its forward pass; the backward pass does each of them twice.
FORWARD_AND_BACKWARD: Final = 3


def print_dry_run(space: Space, console: Console, *, data_root: Path, measure: bool = False) -> None:
    """Print the resolved space, its rungs, its images, and the first samples with their cost.

    Args:
        space: the space of the search.
        console: the console to print to.
        data_root: the directory of the datasets.
        measure: True to time training steps of the samples on this machine. This imports torch and takes some
            seconds for each network.

    Raises:
        UserError: the dataset is missing, a network does not exist, or a trial to be measured does not fit on
            this machine.
    """
    space = with_store_size(space, None)
    # The URL of an archive may contain a signature.
    _print_line(console, hide_passwords(dump_space(space)))
    _print_line(console, f"rungs (epochs): {', '.join(map(str, possible_rungs(space)))}")
    for line in plan_messages(space) if space.scheduler.type == "auto" else [stopping_line(space)]:
        _print_line(console, line)
    if space.metric.against:
        _print_line(console, f"a Pareto front: {space.metric.name} against {space.metric.against}")
    points = count_points(space.parameters, most=space.budget.trials)
    if points is not None and points < space.budget.trials and not space.sampler.repeats:
        _print_line(console, f"the space has {counted(points, 'point')}: the search ends when all have run")
    datasets = {dataset.name: describe(dataset, data_root=data_root) for dataset in datasets_of(space)}
    for name, info in datasets.items():
        check_metric_classes(space, info)
        account, evaluation = [], []
        if info.account is not None:
            account, evaluation = info.account.lines(), evaluation_messages(space, info)
        for line in (*account, *cache_messages(space, info), *evaluation):
            _print_line(console, f"{name}: {line}")
    check_external_networks(space)
    check_external_networks(space, datasets)
    model = CostModel(space=space, datasets=datasets)
    if (message := check_constraints(model)) is not None:
        _print_line(console, message)
    samples = _first_samples(model, min(SAMPLES, space.budget.trials))
    if not measure:
        console.print(_sample_table(space, samples, datasets))
        return
    here, slots = slots_here(space)
    seconds = measure_epochs(here, samples, datasets, progress=console.print)
    console.print(_sample_table(space, samples, datasets, epoch_seconds=seconds))
    _print_line(console, speed_message(here, seconds, slots=slots))


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def stopping_line(space: Space) -> str:
    """Return a line that tells where the scheduler stops or pauses which trials."""
    scheduler, fidelity = space.scheduler, space.fidelity
    group = f" of its {scheduler.group_by}" if scheduler.group_by else ""
    best = f"among the best 1 in {scheduler.reduction_factor} there{group}"
    if not scheduler.stops_trials:
        return f"none: every trial trains for {counted(fidelity.max, 'epoch')}"
    if scheduler.type == "median":
        return (
            f"median: from epoch {fidelity.min} on a trial ends when it falls behind the median there{group}"
        )
    if scheduler.variant == "promote":
        return f"asha, promote: a trial waits at each rung until it is {best}"
    return f"asha, stop: a trial ends at a rung where it is not {best}"


def _first_samples(model: CostModel, count: int) -> list[dict[str, Any]]:
    """Return the first ``count`` samples that satisfy the constraints."""
    space, violation = model.space, violation_of(model)
    if violation is None:
        return preview(space, count)
    # As many draws as `check_constraints` needs to find one that keeps to them.
    drawn = first_rows(space) if space.sampler.type == "grid" else preview(space, CONSTRAINED_DRAWS)
    allowed = (row for row in drawn if violation(trial_config(space, row).to_dict()) is None)
    return [dict(row) for row in islice(allowed, count)]


def _sample_table(
    space: Space,
    samples: Sequence[Mapping[str, Any]],
    datasets: Mapping[str, DatasetInfo],
    *,
    epoch_seconds: Sequence[float] | None = None,
) -> Table:
    table = Table(title="First samples, each with its cost if it is never stopped", title_justify="left")
    last = "worst-case PMACs" if epoch_seconds is None else "time here"
    for heading in (*space.parameters, "params M", "GMACs", last):
        table.add_column(heading, justify="right", overflow="fold")
    for index, sample in enumerate(samples):
        *cells, macs = _row(space, sample, datasets)
        measured = None if epoch_seconds is None else duration(epoch_seconds[index] * space.fidelity.max)
        table.add_row(*cells, measured or macs)
    return table


def _row(space: Space, sample: Mapping[str, Any], datasets: Mapping[str, DatasetInfo]) -> list[str]:
    config = trial_config(space, sample)
    info = datasets[space.dataset_config(config.dataset).name]
    cost = network_cost(describe_network(config, classes=info.classes, in_channels=info.channels))
    return [
        *(escape(setting_text(name, sample.get(name))) for name in space.parameters),
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.macs / 1e9:.3f}",
        format_number(_training_macs(cost, info, space.fidelity.max) / 1e15),
    ]


def _training_macs(cost: Cost, info: DatasetInfo, epochs: int) -> float:
    """Return the multiply-adds of ``epochs`` epochs of training and validation."""
    epoch = FORWARD_AND_BACKWARD * info.train_images + info.val_images
    return float(cost.macs) * epoch * epochs


#: Hours of a search on this machine, by the name of the effort.
EFFORTS: Final[Mapping[str, float]] = {"quick": 1 / 6, "good": 1.0, "best": 8.0}

#: Number of trainings to the last epoch that the hours allow if no trial is stopped. Most trials are stopped
#: early, so that more of them can start: at most :data:`_TRIALS_PER_TRAINING` times as many.
_TRAININGS: Final = 12
_TRIALS_PER_TRAINING: Final = 10

#: Number of the first samples whose networks are measured.
_MEASURED: Final = 6

#: Seconds for which the steps of a network are timed, after a first step that is not timed.
_SECONDS: Final = 2.0

#: Time of a validation image as a share of a training image's: it has only a forward pass.
_VALIDATION: Final = 1 / 3


def measure_epochs(
    space: Space,
    samples: Sequence[Mapping[str, Any]],
    datasets: Mapping[str, DatasetInfo],
    *,
    progress: Callable[[str], object],
) -> list[float]:
    """Return the seconds of an epoch for each sample, estimated by training steps on this machine.

    A step trains a whole batch of random images, on the threads or the GPU that a trial gets. Reading and
    augmenting images is not measured, because trials do this at the same time. Samples with the same memory
    signature have the same speed and are measured once.

    Args:
        space: the space, with fixed resources of a trial.
        samples: values of its parameters.
        datasets: the description of each dataset by name.
        progress: called with a message before each measurement.

    Raises:
        ResourceError: trials get a GPU, but torch finds none.
    """
    measured: dict[Hashable, float] = {}
    seconds = []
    for sample in samples:
        config = trial_config(space, sample)
        info = datasets[space.dataset_config(config.dataset).name]
        key = (memory_signature(config), info.name)
        if key not in measured:
            progress(f"measuring network {len(measured) + 1} on this machine")
            steps = math.ceil(info.train_images / config.batch_size)
            validation = _VALIDATION * info.val_images / config.batch_size
            measured[key] = _step_seconds(space, config, info) * (steps + validation)
        seconds.append(measured[key])
    return seconds


def _step_seconds(space: Space, config: TrialConfig, info: DatasetInfo) -> float:
    # Imported here because they import torch, which a plain dry run does not need.
    from tune_rescon.training.device import resolve_device
    from tune_rescon.training.probe import build_trial_step

    resources = space.resources_per_trial
    placement = resolve_device("cuda" if resources.gpus else "cpu", precision=config.precision)
    step = build_trial_step(config, placement, classes=info.classes, in_channels=info.channels)
    with placement.active(resources.cpu):
        float(step())
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < _SECONDS or not count:
            # Reading the loss waits for the device.
            float(step())
            count += 1
    return elapsed / count


def fit_to_hours(
    space: Space, hours: float, *, data_root: Path, progress: Callable[[str], object]
) -> tuple[list[str], str]:
    """Measure epochs on this machine, and return the settings of a budget of ``hours``, and a message about
    them.

    Args:
        space: the space.
        hours: the time of the search.
        data_root: the directory of the datasets.
        progress: called with a message before each measurement.

    Raises:
        UserError: the dataset is missing, a trial does not fit on this machine, or no network keeps to the
            constraints.
    """
    here, slots = slots_here(space)
    datasets = {dataset.name: describe(dataset, data_root=data_root) for dataset in datasets_of(space)}
    model = CostModel(space=here, datasets=datasets)
    check_constraints(model)
    samples = _first_samples(model, _MEASURED)
    seconds = measure_epochs(here, samples, datasets, progress=progress)
    mean = sum(seconds) / len(seconds)
    settings = fitting_budget(space, hours, epoch_seconds=mean, slots=slots)
    message = (
        f"An epoch takes {duration(mean)} on this machine in the mean of {counted(len(seconds), 'trial')},"
        f" and {slots} run at once: {', '.join(settings)}"
    )
    return settings, message


def fitting_budget(space: Space, hours: float, *, epoch_seconds: float, slots: int) -> list[str]:
    """Return the settings of a budget: the hours, the last epoch, and the maximum number of trials.

    The scheduler ``auto`` divides the hours. The last epoch is not later than in the space, and not before
    the end of the warm-up.

    Args:
        space: the space.
        hours: the time of the search.
        epoch_seconds: the mean time of an epoch.
        slots: the number of trials that run at once.
    """
    epochs = hours * 3600 * slots / epoch_seconds
    _, warmup = extreme_value("warmup_epochs", space.fixed, space.parameters, largest=True)
    last_epoch = min(space.fidelity.max, max(math.ceil(warmup), int(epochs / _TRAININGS), 1))
    trials = max(space.budget.trials, int(_TRIALS_PER_TRAINING * epochs / last_epoch))
    return [
        f"scheduler={json.dumps({'type': 'auto', 'group_by': space.scheduler.group_by})}",
        f"budget.hours={hours:.4g}",
        f"budget.trials={trials}",
        f"fidelity.min={min(space.fidelity.min, last_epoch)}",
        f"fidelity.max={last_epoch}",
    ]


def speed_message(space: Space, epoch_seconds: Sequence[float], *, slots: int) -> str:
    """Return a message about the time that the search takes at the measured speed.

    Args:
        space: the space.
        epoch_seconds: the seconds of an epoch of some samples.
        slots: the number of trials that run at once.
    """
    least, most, mean = min(epoch_seconds), max(epoch_seconds), sum(epoch_seconds) / len(epoch_seconds)
    speed = f"measured on this machine: an epoch takes {duration(least)}"
    if most > least:
        speed += f" to {duration(most)}, {duration(mean)} in the mean of these samples"
    planned = planned_epochs(space) if space.scheduler.type == "auto" else None
    at_once = f"{counted(slots, 'trial')} at once"
    if space.budget.hours is not None:
        epochs = int(space.budget.hours * 3600 / mean * slots)
        hours = counted(space.budget.hours, "hour")
        return f"{speed}; {hours}, {at_once}, are about {counted(epochs, 'epoch')}"
    if planned is not None:
        expected = duration(planned * mean / slots)
        return f"{speed}; {counted(planned, 'epoch')}, {at_once}, take about {expected}"
    last = space.fidelity.max
    # The last trainings may not fill all slots.
    longest = duration(math.ceil(space.budget.trials / slots) * last * mean)
    return f"{speed}; {counted(space.budget.trials * last, 'epoch')}, {at_once}, take at most {longest}"
