"""``--dry-run``: print the search that would run and its maximum cost, without Ray or MLflow.

Nor does it import torch, unless a network is timm's or a user's own: these have to be built to be counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tune_rescon.data import DatasetInfo, describe
from tune_rescon.errors import counted, hide_passwords
from tune_rescon.models import Cost, describe_network, network_cost
from tune_rescon.reporting.formatting import duration, format_number
from tune_rescon.reporting.measured_speed import measure_epochs, speed_message
from tune_rescon.spaces import Space, count_points, dump_space, preview, trial_config
from tune_rescon.tuning import cache_words, datasets_of, evaluation_words, possible_rungs, with_store_size
from tune_rescon.tuning.constraints import check_constraints, violation_of
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.prepare import check_external_networks, check_metric_classes
from tune_rescon.tuning.resources import slots_here
from tune_rescon.tuning.stopping.auto_words import plan_words

__all__ = ["print_dry_run", "stopping_line"]

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
        measure: True to time training steps of the samples on this machine, which imports torch and takes
            some seconds for each network.

    Raises:
        UserError: the dataset is missing, a network does not exist, or, to be measured, a trial
            does not fit on this machine.
    """
    space = with_store_size(space, None)
    # The URL of an archive may contain a signature.
    _print_line(console, hide_passwords(dump_space(space)))
    _print_line(console, f"rungs (epochs): {', '.join(map(str, possible_rungs(space)))}")
    for line in plan_words(space) if space.scheduler.type == "auto" else [stopping_line(space)]:
        _print_line(console, line)
    if space.metric.against:
        _print_line(console, f"a Pareto front: {space.metric.name} against {space.metric.against}")
    points = count_points(space.parameters, most=space.budget.trials)
    if points is not None and points < space.budget.trials and not space.sampler.repeats:
        _print_line(console, f"the space has {counted(points, 'point')}: the search ends when all have run")
    datasets = {dataset.name: describe(dataset, data_root=data_root) for dataset in datasets_of(space)}
    for name, known in datasets.items():
        check_metric_classes(space, known)
        account = known.account.lines() if known.account else []
        evaluated_by = [] if known.account is None else evaluation_words(space, known)
        for line in (*account, *cache_words(space, known), *evaluated_by):
            _print_line(console, f"{name}: {line}")
    check_external_networks(space)
    check_external_networks(space, datasets)
    model = CostModel(space=space, datasets=datasets)
    if (message := check_constraints(model)) is not None:
        _print_line(console, message)
    samples = _first_samples(model)
    if not measure:
        console.print(_samples(space, samples, datasets))
        return
    here, slots = slots_here(space)
    seconds = measure_epochs(here, samples, datasets, progress=console.print)
    console.print(_samples(space, samples, datasets, epoch_seconds=seconds))
    _print_line(console, speed_message(here, seconds, slots=slots))


def _print_line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def stopping_line(space: Space) -> str:
    """Return in words which scheduler stops trials, where and why."""
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


def _first_samples(model: CostModel) -> list[dict[str, Any]]:
    """Return the first samples that keep to the constraints."""
    space, violation = model.space, violation_of(model)
    most = min(SAMPLES, space.budget.trials)
    if violation is None:
        return preview(space, most)
    drawn = preview(space, 20 * most)
    return [row for row in drawn if violation(trial_config(space, row).to_dict()) is None][:most]


def _samples(
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
    known = datasets[space.dataset_config(config.dataset).name]
    cost = network_cost(describe_network(config, classes=known.classes, in_channels=known.channels))
    return [
        *(escape(format_number(sample.get(name))) for name in space.parameters),
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.macs / 1e9:.3f}",
        format_number(_training_macs(cost, known, space.fidelity.max) / 1e15),
    ]


def _training_macs(cost: Cost, info: DatasetInfo, epochs: int) -> float:
    """Return the multiply-adds of ``epochs`` epochs of training and validation."""
    epoch = FORWARD_AND_BACKWARD * info.train_images + info.val_images
    return float(cost.macs) * epoch * epochs
