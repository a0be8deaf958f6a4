"""The plots of a page, in their order, each with a heading and what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tune_rescon.reporting.analysis import Throughput, savings, shared_epoch, throughput, timeline, values_at
from tune_rescon.reporting.page.charts.bars import gantt, importance_bars, survival_bars
from tune_rescon.reporting.page.charts.chart import Chart
from tune_rescon.reporting.page.charts.comparison import incumbent_curves
from tune_rescon.reporting.page.charts.coordinates import parallel_coordinates
from tune_rescon.reporting.page.charts.curves import learning_curves
from tune_rescon.reporting.page.charts.scatters import costs, slices
from tune_rescon.reporting.page.charts.speed import speed_steps
from tune_rescon.reporting.words import duration, figure
from tune_rescon.tuning import StudyResult, parameter_importance

__all__ = ["Panel", "comparison_panels", "panels"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One or more plots under a heading."""

    heading: str
    note: str
    """What is seen, in a sentence or two."""
    charts: Sequence[Chart]
    half: bool = False
    """Two of these share a row where there is room."""


def panels(result: StudyResult) -> Iterator[Panel]:
    """All that there is something to show in; nothing before the first epoch."""
    if not any(trial.epochs for trial in result.trials):
        return
    yield Panel(
        heading="Learning curves",
        note="Each line is a trial, its dot where it ended; dotted lines are rungs."
        " A click on a fate hides it, a double click shows it alone.",
        charts=[learning_curves(result)],
    )
    yield from _by_parameter(result)
    yield Panel(heading="Rungs", note=_rung_words(result), charts=[survival_bars(result)], half=True)
    yield Panel(
        heading=f"{result.metric} against cost",
        note="After each trial's last epoch, coloured by fate. Ringed: the Pareto front of the trials that"
        " came furthest.",
        charts=costs(result),
    )
    found, trained = timeline(result), throughput(result)
    if found.stretches:
        yield Panel(
            heading="Slots",
            note=f"{found.slots} at once at most, in epochs for {found.utilisation:.0%} of"
            f" {duration(found.seconds)}. Times when no driver ran are left out of that."
            f"{_speed_words(result, trained) if trained else ''}",
            charts=[gantt(found), *([speed_steps(found, trained)] if trained else [])],
        )


def comparison_panels(results: Sequence[StudyResult]) -> Iterator[Panel]:
    """What compares several searches."""
    yield Panel(
        heading="Best so far",
        note="Of each search the leader: the trial that came furthest and is best there.",
        charts=[incumbent_curves(results)],
    )


def _by_parameter(result: StudyResult) -> Iterator[Panel]:
    """What needs values that can be compared."""
    epoch = shared_epoch(result)
    if not epoch:
        return
    values = values_at(result, epoch)
    after = f"after epoch {epoch}, which {len(values)} trials came to"
    yield Panel(
        heading="Parallel coordinates",
        note=f"Each line is a trial, coloured by its {result.metric} {after}. A click on a class hides it.",
        charts=[parallel_coordinates(result, values, epoch)],
    )
    found = slices(result, values)
    if found:
        yield Panel(heading="Slices", note=f"{result.metric} {after}, coloured by fate.", charts=found)
    shares = parameter_importance(result.space, {t.number: t for t in result.trials}, values)
    if shares:
        yield Panel(
            heading="Importance",
            note=f"For reaching the best tenth {after} (PED-ANOVA).",
            charts=[importance_bars(shares)],
            half=True,
        )


def _speed_words(result: StudyResult, trained: Throughput) -> str:
    each = f"each of {trained.devices} {result.device}s" if trained.devices > 1 else f"the {result.device}"
    return (
        f" The images that all trials trained per second: {figure(trained.per_device)} on average for {each},"
        f" {figure(trained.one_trial)} in a trial."
    )


def _rung_words(result: StudyResult) -> str:
    saved = savings(result)
    if not saved.epochs_saved:
        return "Trials that came to each rung; nobody was stopped early."
    return (
        f"Early stopping spared {saved.epochs_saved} of {saved.epochs + saved.epochs_saved} epochs"
        f" ({saved.share:.0%}), about {figure(round(saved.hours_saved, 2))} {result.device}-hours."
    )
