"""Results of the finals: mean and standard deviation over the trainings of each configuration, as tables.

The tables are for a terminal, for MLflow's note and for ``finals.json``.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tune_rescon.errors import counted
from tune_rescon.metric_names import TEST_METRICS, is_test_metric
from tune_rescon.reporting import SearchPresentation, markdown_table, print_result
from tune_rescon.reporting.formatting import command_for, format_number, pairs
from tune_rescon.tuning import (
    SearchFolder,
    SearchState,
    StudyResult,
    TrialRecord,
    repeated,
    write_atomically,
)

__all__ = [
    "Estimate",
    "EvaluatedConfig",
    "FinalsPresentation",
    "Lead",
    "evaluated_configs",
    "evaluation_document",
    "evaluation_rows",
    "print_evaluation",
    "print_finals",
]

#: Confidence level of the intervals: how often such an interval contains the true difference.
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean and spread of a metric over the trainings of one configuration."""

    mean: float
    spread: float
    """Sample standard deviation; nan for a single training."""
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from ``values``, which must not be empty."""
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(mean=statistics.fmean(values), spread=spread, values=tuple(values))

    def __str__(self) -> str:
        """Return the mean and, if it is known, the spread."""
        spread = f" ± {self.spread:.2g}" if math.isfinite(self.spread) else ""
        return f"{format_number(self.mean)}{spread}"


@dataclass(frozen=True, kw_only=True)
class EvaluatedConfig:
    """One configuration that was trained to its last epoch, once for each seed."""

    trials: tuple[TrialRecord, ...]
    figures: Mapping[str, Estimate]
    """Estimates by the metric names of ``metric_names.TEST_METRICS``."""
    by_class: Mapping[str, Estimate] = field(default_factory=dict)
    """Accuracy on the test images of each class, by class name."""
    params_m: float
    """Number of parameters, in millions."""
    gmacs: float
    """Multiply-adds of one image's forward pass, in billions."""
    hours: float
    """Device-hours of all trainings."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The lead of one configuration's mean over another's."""

    difference: float
    """Difference of the means; positive if the first configuration is better."""
    margin: float
    """Half the width of the :data:`CONFIDENCE` interval of the difference, over the seeds. It is infinite if
    one of the two configurations was trained once, because the effect of the seed is then unknown."""

    @classmethod
    def of(cls, first: Estimate, second: Estimate, *, maximize: bool) -> Lead:
        """Return the lead of ``first`` over ``second``, by Welch's t interval (Biometrika, 1947).

        With only two or three trainings each, the interval is several standard errors wide.

        Args:
            first: the estimate of the first configuration.
            second: the estimate of the second configuration.
            maximize: True if a higher value is better.

        >>> Lead.of(Estimate.of([0.8, 0.82]), Estimate.of([0.7, 0.71]), maximize=True).margin > 0.03
        True
        >>> Lead.of(Estimate.of([0.8]), Estimate.of([0.7, 0.71]), maximize=True).margin
        inf
        """
        difference = first.mean - second.mean if maximize else second.mean - first.mean
        parts = [(one.spread**2 / len(one.values), len(one.values) - 1) for one in (first, second)]
        variance = sum(part for part, _ in parts)
        if not math.isfinite(variance):
            return cls(difference=difference, margin=math.inf)
        if variance == 0:
            return cls(difference=difference, margin=0.0)
        # Imported here, because the import takes a second and only the end of the finals needs it.
        from scipy.stats import t

        freedom = variance**2 / sum(part**2 / free for part, free in parts)
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
        return cls(difference=difference, margin=quantile * math.sqrt(variance))

    @property
    def is_known(self) -> bool:
        """True if both configurations were trained with several seeds."""
        return math.isfinite(self.margin)

    @property
    def is_beyond_seeds(self) -> bool:
        """True if the whole interval is above zero."""
        return self.difference > self.margin


def evaluated_configs(result: StudyResult) -> tuple[EvaluatedConfig, ...]:
    """Return the configurations with at least one finished training, the best mean first."""
    configs = [_evaluated_config(result, trials) for trials in repeated(result.trials)]
    return tuple(sorted(configs, key=lambda one: one.figures[result.metric].mean, reverse=result.maximize))


def evaluation_document(result: StudyResult, configs: Sequence[EvaluatedConfig]) -> dict[str, Any]:
    """Return the content of ``finals.json`` as plain values."""
    return {
        "name": result.name,
        "dataset": result.space.dataset.name,
        "epochs": result.space.fidelity.max,
        "metric": result.metric,
        "finalists": [
            {
                "trials": [trial.number for trial in one.trials],
                "parameters": dict(one.trials[0].parameters),
                "params_m": one.params_m,
                "gmacs": one.gmacs,
                "hours": one.hours,
                **{name: _plain(estimate) for name, estimate in one.figures.items()},
                "accuracy_by_class": {name: _plain(estimate) for name, estimate in one.by_class.items()},
            }
            for one in configs
        ],
    }


def _evaluated_config(result: StudyResult, trials: tuple[TrialRecord, ...]) -> EvaluatedConfig:
    # An earlier version may have recorded fewer metrics of a training.
    names = [
        name
        for name in trials[0].history
        if is_test_metric(name) and all(name in trial.history for trial in trials)
    ]
    cost = result.costs[trials[0].number]
    figures = {name: Estimate.of([trial.history[name][-1] for trial in trials]) for name in names}
    return EvaluatedConfig(
        trials=trials,
        figures={name: figures[name] for name in TEST_METRICS if name in figures},
        by_class={name.partition("/")[2]: figures[name] for name in names if "/" in name},
        params_m=cost.params_m,
        gmacs=cost.gmacs,
        hours=math.fsum(result.compute_hours(trial) for trial in trials),
    )


def _plain(estimate: Estimate) -> dict[str, Any]:
    spread = estimate.spread if math.isfinite(estimate.spread) else None
    return {"mean": estimate.mean, "spread": spread, "values": list(estimate.values)}


#: Number of classes of the best finalist that are printed: the worst ones if there are more.
CLASSES: Final = 10

_HEADINGS: Final = (
    "trials",
    "accuracy",
    "top-5",
    "loss",
    "calibration error",
    "params M",
    "GMACs",
    "images/s",
    "hours",
)


class FinalsPresentation(SearchPresentation):
    """Draws a search's page and plots, and writes the test results to its note and to ``finals.json``."""

    def note(self, result: StudyResult) -> str:
        """Return the table of the finalists, followed by the search's note."""
        configs = evaluated_configs(result)
        lines = markdown_table(_HEADINGS, evaluation_rows(configs)) if configs else []
        return "\n".join([*lines, "", super().note(result)])

    def conclude(self, result: StudyResult, folder: SearchFolder) -> list[Path]:
        """Write ``finals.json`` and the search's documents; return their paths."""
        document = evaluation_document(result, evaluated_configs(result))
        path = folder.path / "finals.json"
        write_atomically(path, json.dumps(document, indent=2) + "\n")
        return [path, *super().conclude(result, folder)]


def evaluation_rows(configs: Sequence[EvaluatedConfig]) -> list[tuple[str, ...]]:
    """Return the rows of the finalists under the table's headings, the best first.

    A dash stands for a metric that an earlier version did not record.
    """
    return [
        (
            " ".join(str(trial.number) for trial in one.trials),
            *(_cell(one, f"test_{name}") for name in ("accuracy", "top5", "loss", "calibration_error")),
            f"{one.params_m:.2f}",
            f"{one.gmacs:.3f}",
            f"{speed.mean:.0f}" if (speed := one.figures.get("test_images_per_second")) else "-",
            f"{one.hours:.3f}",
        )
        for one in configs
    ]


def _cell(one: EvaluatedConfig, metric: str) -> str:
    return str(one.figures.get(metric, "-"))


def print_finals(result: StudyResult, console: Console) -> None:
    """Print the result of final trainings, their test results, and how to use the best network."""
    print_result(result, console)
    print_evaluation(result, console)
    if result.best is not None and result.state is SearchState.FINISHED:
        command = command_for(result, "predict", result.name)
        console.print(f"Use it: {command} PATH...", markup=False, highlight=False, soft_wrap=True)


def print_evaluation(result: StudyResult, console: Console) -> None:
    """Print the test results: a table, the best finalist by class, and a caution about its lead."""
    configs = evaluated_configs(result)
    if not configs:
        return
    title = f"{result.name}: {counted(len(configs), 'finalist')} on the {_evaluation_images(result)}"
    table = Table(title=title, title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for row in evaluation_rows(configs):
        table.add_row(*row)
    console.print(table)
    console.print(_trainings(configs))
    for rank, one in enumerate(configs, start=1):
        console.print(f"{rank}. {pairs(one.trials[0].parameters)}", markup=False, soft_wrap=True)
    _print_classes(configs[0], console)
    _print_caution(result, configs, console)


def _print_classes(winner: EvaluatedConfig, console: Console) -> None:
    worst = sorted(winner.by_class.items(), key=lambda item: item[1].mean)[:CLASSES]
    which = f"worst {CLASSES} of {len(winner.by_class)}" if len(winner.by_class) > CLASSES else "all"
    classes = ", ".join(f"{name} {format_number(value.mean)}" for name, value in worst)
    console.print(f"The first one's accuracy by class ({which}): {classes}", markup=False, soft_wrap=True)


def _print_caution(result: StudyResult, configs: Sequence[EvaluatedConfig], console: Console) -> None:
    if len(configs) < 2:
        return
    console.print(
        f"The first of {len(configs)} was chosen by these very images: expect slightly less of it.",
        soft_wrap=True,
    )
    first, second = (one.figures[result.metric] for one in configs[:2])
    lead = Lead.of(first, second, maximize=result.maximize)
    if not lead.is_known:
        console.print(
            "One training of a network cannot distinguish a lead from the effect of the seed:"
            " train each several times (`--seeds 3`).",
            soft_wrap=True,
        )
    elif not lead.is_beyond_seeds:
        interval = f"{format_number(lead.difference)} ± {lead.margin:.2g} ({CONFIDENCE:.0%} interval)"
        console.print(
            f"Its lead on the second, {interval}, is within what the seed alone changes.", soft_wrap=True
        )


def _evaluation_images(result: StudyResult) -> str:
    """Return which images evaluated the networks: the validation images if the source has no test images."""
    dataset = result.space.dataset
    account = result.accounts.get(dataset.name)
    has_test = account is None or account.images["test"] or dataset.test_fraction is not None
    return "test images" if has_test else "validation images (there are no test images)"


def _trainings(configs: Sequence[EvaluatedConfig]) -> str:
    """Return a line with the number of trainings in each mean, which is smaller if a training has failed."""
    counts = sorted({len(one.trials) for one in configs})
    if counts == [1]:
        return "One training each."
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"Mean ± standard deviation over {several} trainings."
