"""The plots of the page, in their order, each with a heading and a note."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.errors import counted
from tune_rescon.metric_names import watched_metric
from tune_rescon.reporting.analysis import (
    Axis,
    CostFront,
    GpuUse,
    Throughput,
    Timeline,
    cost_fronts,
    gpu_use,
    incumbents,
    parameter_axes,
    savings,
    shared_epoch,
    throughput,
    timeline,
    values_at,
)
from tune_rescon.reporting.analysis.parameters import ABSENT
from tune_rescon.reporting.formatting import (
    STATE_COLOUR,
    STATE_ORDER,
    device_hours_words,
    duration,
    format_number,
)
from tune_rescon.reporting.page.chart_parts import (
    Chart,
    axis,
    clock,
    gantt,
    importance_bars,
    jitter,
    parallel_coordinates,
    rounded,
    survival_bars,
)
from tune_rescon.tuning import StudyResult, TrialRecord, parameter_importance

__all__ = [
    "Panel",
    "comparison_panels",
    "costs",
    "incumbent_curves",
    "learning_curves",
    "panels",
    "slices",
    "speed_steps",
]


#: Opacity of the many stopped and paused trials, whose lines are a background.
_FAINT: Final = {TrialState.STOPPED: 0.45, TrialState.PAUSED: 0.45}

#: Number of trials of a state from which their lines are thin, because thicker lines would hide each other.
MANY: Final = 150


def learning_curves(result: StudyResult) -> Chart:
    """Return a line for each trial, with a mark at its end, and the rungs.

    One trace contains all lines of a state, with gaps between them, because a thousand traces would take
    seconds to draw.
    """
    data: list[dict[str, Any]] = []
    for state in STATE_ORDER:
        trials = [trial for trial in result.trials if trial.state is state and trial.epochs]
        if trials:
            data += [_lines(state, trials), _ends(state, trials)]
    if result.best is not None:
        data.append(_winner(result.best))
    return Chart(
        key="curves",
        label=f"{watched_metric(result.metric)} by epoch, a line for each trial",
        data=data,
        layout={
            "xaxis": axis("epoch", rangemode="tozero"),
            "yaxis": axis(watched_metric(result.metric)),
            "shapes": [_rung(level) for level in result.levels[:-1]],
        },
        height=440,
    )


def _lines(state: TrialState, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(chain.from_iterable([*range(1, t.epochs + 1), None] for t in trials)),
        "y": list(chain.from_iterable([*rounded(t.curve), None] for t in trials)),
        "customdata": list(chain.from_iterable([t.number] * t.epochs + [None] for t in trials)),
        "hovertemplate": "trial %{customdata}, epoch %{x}: %{y}<extra></extra>",
        "legendgroup": state.value,
        "showlegend": False,
        "line": {"color": STATE_COLOUR[state], "width": 1.3 if len(trials) < MANY else 0.6},
        "opacity": _FAINT.get(state, 0.9),
    }


def _ends(state: TrialState, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return the marks at the ends of the lines; a trial of one epoch has only its mark."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{state.value} ({len(trials)})",
        "x": [trial.epochs for trial in trials],
        "y": rounded(trial.curve[-1] for trial in trials),
        "customdata": [trial.number for trial in trials],
        "hovertemplate": "trial %{customdata}, epoch %{x}: %{y}<extra></extra>",
        "legendgroup": state.value,
        "marker": {"color": STATE_COLOUR[state], "size": 5},
        "opacity": 0.85,
    }


def _winner(trial: TrialRecord) -> dict[str, Any]:
    """Return the best trial's line, which is drawn again above all others."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"best: trial {trial.number}",
        "x": list(range(1, trial.epochs + 1)),
        "y": rounded(trial.curve),
        "hoverinfo": "skip",
        "line": {"color": "ink", "width": 2.2},
    }


def _rung(level: int) -> dict[str, Any]:
    return {
        "type": "line",
        "layer": "below",
        "x0": level,
        "x1": level,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "#8886", "width": 1, "dash": "dot"},
    }


#: Width of the band of the points of one choice.
SPREAD: Final = 0.12

HEIGHT: Final = 260


def slices(result: StudyResult, values: Mapping[int, float]) -> list[Chart]:
    """Return a plot of the values against each parameter."""
    return [_slice(result, values, one) for one in parameter_axes(result)]


def _slice(result: StudyResult, values: Mapping[int, float], one: Axis) -> Chart:
    trials = [trial for trial in result.trials if trial.number in values]
    points = _points(
        x=[_beside(one, trial.number) for trial in trials],
        y=[values[trial.number] for trial in trials],
        colours=[STATE_COLOUR[trial.state] for trial in trials],
        words=[[trial.number, format_number(trial.setting(one.name))] for trial in trials],
    )
    points["hovertemplate"] = (
        f"trial %{{customdata[0]}}: {one.name} %{{customdata[1]}}, %{{y}}<extra></extra>"
    )
    scale = {"tickvals": [at for at, _ in one.ticks], "ticktext": [text for _, text in one.ticks]}
    return Chart(
        key=f"slice-{one.name}",
        label=f"{result.metric} against {one.name}",
        data=[points],
        layout={
            "xaxis": axis(f"{one.name}{' (log)' if one.log else ''}", **scale),
            "yaxis": axis(""),
            "showlegend": False,
        },
        height=HEIGHT,
    )


def _beside(one: Axis, number: int) -> float:
    place = one.positions[number]
    spread = SPREAD if one.is_categorical else SPREAD / 2 if place == ABSENT else 0.0
    return place + jitter(number, spread)


def costs(result: StudyResult) -> list[Chart]:
    """Return a plot of the last values against each cost.

    Each plot has the Pareto front of the trials with the most epochs.
    """
    return [_cost(result, index, front) for index, front in enumerate(cost_fronts(result))]


def _cost(result: StudyResult, index: int, front: CostFront) -> Chart:
    points = _points(
        x=[cost for _, cost in front.points],
        y=[trial.value for trial, _ in front.points],
        colours=[STATE_COLOUR[trial.state] for trial, _ in front.points],
        words=[[trial.number, trial.epochs] for trial, _ in front.points],
    )
    where = "%{x:.4g}, %{y} after epoch %{customdata[1]}"
    points["hovertemplate"] = f"trial %{{customdata[0]}}: {where}<extra></extra>"
    return Chart(
        key=f"cost-{index}",
        label=f"{result.metric} against {front.title}",
        data=[points, _front(front)],
        layout={
            "xaxis": axis(front.title, rangemode="tozero"),
            "yaxis": axis(""),
            "showlegend": False,
        },
        height=HEIGHT,
    )


def _front(front: CostFront) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "Pareto front",
        "x": rounded(cost for _, cost in front.front),
        "y": rounded(trial.value for trial, _ in front.front),
        # A step, because between two points the best achievable value is that of the cheaper point.
        "line": {"color": "#8a94a0", "dash": "dot", "shape": "hv", "width": 1.5},
        "marker": {"symbol": "circle-open", "size": 13, "color": "#8a94a0", "line": {"width": 1.5}},
        "hoverinfo": "skip",
    }


def _points(x: list[float], y: list[float], colours: list[str], words: list[list[Any]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(x),
        "y": rounded(y),
        "customdata": words,
        "marker": {"color": colours, "size": 5, "opacity": 0.75},
    }


_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a94a0")


def incumbent_curves(results: Sequence[StudyResult]) -> Chart:
    """Return the best value so far of each search, by device-hours."""
    devices = " or ".join(sorted({result.device for result in results}))
    metrics = ", ".join(sorted({result.metric for result in results}))
    return Chart(
        key="incumbents",
        label=f"best {metrics} so far, by {devices}-hours",
        data=[_line(result, _COLOURS[index % len(_COLOURS)]) for index, result in enumerate(results)],
        layout={
            "xaxis": axis(f"{devices}-hours spent", rangemode="tozero"),
            "yaxis": axis(f"{metrics} of the leader"),
            "showlegend": True,
        },
    )


def _line(result: StudyResult, colour: str) -> dict[str, Any]:
    leaders = incumbents(result)
    # Extend the line to the end, because the last leader remained the best.
    spent = sum(result.compute_hours(trial) for trial in result.trials)
    ends = [leaders[-1]] if leaders else []
    return {
        "type": "scatter",
        "mode": "lines",
        "name": result.name,
        "x": rounded([*(leader.hours for leader in leaders), *(spent for _ in ends)]),
        "y": rounded(leader.value for leader in (*leaders, *ends)),
        "customdata": [[leader.number, leader.epoch] for leader in (*leaders, *ends)],
        "hovertemplate": "trial %{customdata[0]} at epoch %{customdata[1]}: %{y}",
        "line": {"shape": "hv", "width": 2, "color": colour},
    }


def speed_steps(found: Timeline, trained: Throughput) -> Chart:
    """Return the summed speeds of all trials over time."""
    begins = [trained.begun + index * trained.part for index in range(len(trained.speeds) + 1)]
    return Chart(
        key="speed",
        label="images trained per second by all trials at once",
        data=[_steps(found, begins, trained.speeds, colour="#0072b2", hover="%{y:.4~g} images/s")],
        layout=_over_time(found, axis("images/s, all trials", rangemode="tozero")),
        height=300,
    )


def utilisation_steps(found: Timeline, use: GpuUse) -> Chart:
    """Return the utilisation of the GPUs over time."""
    begins = [use.begun + index * use.part for index in range(len(use.levels) + 1)]
    return Chart(
        key="utilisation",
        label="utilisation of the GPUs",
        data=[_steps(found, begins, use.levels, colour="#009e73", hover="%{y:.0%}")],
        layout=_over_time(found, axis("GPU utilisation", range=[0, 1], tickformat=".0%")),
        height=220,
    )


def _steps(
    found: Timeline, begins: Sequence[float], levels: Sequence[float], *, colour: str, hover: str
) -> dict[str, Any]:
    """Return a filled line of ``levels``; ``begins`` has the begin of each and the end of the last one."""
    begin, _, seconds = clock(found)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded((moment - begin) / seconds for moment in begins),
        "y": rounded([*levels, 0.0]),
        "line": {"shape": "hv", "width": 1.2, "color": colour},
        "fill": "tozeroy",
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _over_time(found: Timeline, yaxis: Mapping[str, Any]) -> dict[str, Any]:
    _, unit, _ = clock(found)
    xaxis = axis(f"{unit} since the first epoch", rangemode="tozero")
    return {"xaxis": xaxis, "yaxis": yaxis, "showlegend": False}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One or more plots under a heading."""

    heading: str
    note: str
    """Explanation of the plots, in a sentence or two."""
    charts: Sequence[Chart]
    half: bool = False
    """True: two such panels share a row if there is room."""


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
    yield from _by_parameter(result)
    yield Panel(heading="Rungs", note=_rung_words(result), charts=[survival_bars(result)], half=True)
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
            f"{_speed_words(result, trained) if trained else ''}{_use_words(use) if use else ''}",
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


def _speed_words(result: StudyResult, trained: Throughput) -> str:
    each = f"each of {trained.devices} {result.device}s" if trained.devices > 1 else f"the {result.device}"
    return (
        f" Training images per second: {format_number(trained.per_device)} on average for {each},"
        f" {format_number(trained.one_trial)} in a trial."
    )


def _use_words(use: GpuUse) -> str:
    busy = "" if use.utilisation is None else f" In epochs the GPU ran kernels for {use.utilisation:.0%}."
    shares = ", ".join(f"{cause} {share:.1%}" for cause, share in use.shares.items())
    return f"{busy} Of the slots' time: {shares}; the rest is training steps."


def _rung_words(result: StudyResult) -> str:
    saved = savings(result)
    scheduling = "".join(f" {line}" for line in result.scheduling)
    if not saved.epochs_saved:
        return f"Trials that reached each rung; no trial was stopped early.{scheduling}"
    return (
        f"Early stopping saved {saved.epochs_saved} of {counted(saved.epochs + saved.epochs_saved, 'epoch')}"
        f" ({saved.share:.0%}), about {device_hours_words(saved.hours_saved, result.device)}."
        f"{scheduling}"
    )
