"""The panels of the page, in their order: charts with a heading and a note."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tune_rescon.errors import counted
from tune_rescon.reporting.analysis import (
    GpuUse,
    Incumbent,
    Throughput,
    gpu_use,
    grouping,
    groups,
    savings,
    shared_epoch,
    throughput,
    timeline,
    values_at,
)
from tune_rescon.reporting.formatting import duration, format_device_hours, format_number, setting_text
from tune_rescon.reporting.page.chart import Panel
from tune_rescon.reporting.page.charts import (
    costs,
    group_curves,
    importance_bars,
    incumbent_curves,
    learning_curves,
    parallel_coordinates,
    slices,
    survival_bars,
)
from tune_rescon.reporting.page.time_charts import gantt, speed_steps, utilisation_steps
from tune_rescon.tuning import StudyResult, parameter_importance

__all__ = ["comparison_panels", "panels"]


def panels(result: StudyResult) -> Iterator[Panel]:
    """Yield the panels that have data; none before the first epoch."""
    if not any(trial.epochs for trial in result.trials):
        return
    yield Panel(
        heading="Learning curves",
        note="Each line is a trial, its dot where it ended; dotted lines are rungs."
        " Click a legend entry to hide it, a double click shows it alone.",
        charts=[learning_curves(result)],
    )
    yield from _by_group(result)
    yield from _by_parameter(result)
    yield Panel(heading="Rungs", note=_rung_note(result), charts=[survival_bars(result)], half=True)
    yield Panel(
        heading=f"{result.metric} against cost",
        note="After each trial's last epoch, coloured by final state. Circled: the Pareto front of the"
        " trials with the most epochs.",
        charts=costs(result),
    )
    found, trained, use = timeline(result), throughput(result), gpu_use(result)
    if found.stretches:
        yield Panel(
            heading="Slots",
            note=f"{found.slots} at once at most, in epochs for {found.utilisation:.0%} of"
            f" {duration(found.seconds)}. Times when no driver ran are left out of that."
            f"{_speed_note(result, trained) if trained else ''}{_use_note(use) if use else ''}",
            charts=[
                gantt(found),
                *([speed_steps(found, trained)] if trained else []),
                *([utilisation_steps(found, use)] if use and use.levels else []),
            ],
        )


def comparison_panels(results: Sequence[StudyResult]) -> Iterator[Panel]:
    """Yield the panels that compare several searches."""
    yield Panel(
        heading="Best so far",
        note="The best trial so far of each search: most epochs first, then best value.",
        charts=[incumbent_curves(results)],
    )


def _by_group(result: StudyResult) -> Iterator[Panel]:
    """Yield the panel that compares networks, or other groups of trials, at equal cost."""
    found, name = groups(result), grouping(result)
    if not found or name is None:
        return
    shared = min(one.hours for one in found)
    within = format_device_hours(shared, result.device)
    yield Panel(
        heading=f"By {name.replace('_', ' ')}",
        note=f"Compare them at equal cost: at the dotted line, {within}, which is the least that was spent on"
        " one of them. A value counts whatever the epochs of its trial.",
        headings=(name, "trials", "epochs", "spent", "best", f"best within {within}"),
        rows=[
            (
                setting_text(name, one.value),
                str(one.trials),
                str(one.epochs),
                format_device_hours(one.hours, result.device),
                _reached(one.best[-1] if one.best else None),
                _reached(one.best_within(shared)),
            )
            for one in found
        ],
        charts=[group_curves(result, name, found, shared)],
    )


def _reached(one: Incumbent | None) -> str:
    return "-" if one is None else f"{format_number(one.value)} (trial {one.number}, epoch {one.epoch})"


def _by_parameter(result: StudyResult) -> Iterator[Panel]:
    """Yield the panels that need values at a shared epoch."""
    epoch = shared_epoch(result)
    if not epoch:
        return
    values = values_at(result, epoch)
    after = f"after epoch {epoch}, which {counted(len(values), 'trial')} reached"
    yield Panel(
        heading="Parallel coordinates",
        note=f"Each line is a trial, coloured by its {result.metric} {after}. Click a class to hide it.",
        charts=[parallel_coordinates(result, values, epoch)],
    )
    found = slices(result, values)
    if found:
        yield Panel(heading="Slices", note=f"{result.metric} {after}, coloured by final state.", charts=found)
    shares = parameter_importance(result.space, {t.number: t for t in result.trials}, values)
    if shares:
        yield Panel(
            heading="Importance",
            note=f"For reaching the best tenth {after} (PED-ANOVA).",
            charts=[importance_bars(shares)],
            half=True,
        )


def _speed_note(result: StudyResult, trained: Throughput) -> str:
    each = f"each of {trained.devices} {result.device}s" if trained.devices > 1 else f"the {result.device}"
    return (
        f" Training images per second: {format_number(trained.per_device)} on average for {each},"
        f" {format_number(trained.one_trial)} in a trial."
    )


def _use_note(use: GpuUse) -> str:
    busy = "" if use.utilisation is None else f" In epochs the GPU ran kernels for {use.utilisation:.0%}."
    shares = ", ".join(f"{cause} {share:.1%}" for cause, share in use.shares.items())
    return f"{busy} Of the slots' time: {shares}; the rest is training steps."


def _rung_note(result: StudyResult) -> str:
    saved = savings(result)
    scheduling = "".join(f" {line}" for line in result.scheduling)
    if not saved.epochs_saved:
        return f"Trials that reached each rung; no trial was stopped early.{scheduling}"
    return (
        f"Early stopping saved {saved.epochs_saved} of {counted(saved.epochs + saved.epochs_saved, 'epoch')}"
        f" ({saved.share:.0%}), about {format_device_hours(saved.hours_saved, result.device)}."
        f"{scheduling}"
    )
