"""Charts of a whole search: rungs, costs, best values so far, and slots over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.reporting.charts import HEIGHT, Chart, dotted_line, markers, numeric_axis, plain, rounded
from tune_rescon.reporting.formatting import MUTED, STATE_COLOUR, STATE_ORDER, setting_text
from tune_rescon.reporting.hours import spent_hours, spent_unit
from tune_rescon.reporting.incumbents import Group, Incumbent, incumbents
from tune_rescon.reporting.summary import CostFront, cost_fronts, rung_survival
from tune_rescon.reporting.timeline import GpuUse, Stretch, Throughput, Timeline
from tune_rescon.tuning import StudyResult

__all__ = [
    "costs",
    "gantt",
    "group_curves",
    "incumbent_curves",
    "speed_steps",
    "survival_bars",
    "utilisation_steps",
]

#: Colours of lines that are compared.
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a94a0")


def survival_bars(result: StudyResult) -> Chart:
    """Return the number of trials that reached each rung, by their state after it."""
    rungs = rung_survival(result)
    parts = (
        ("continued or finished", STATE_COLOUR[TrialState.FINISHED], [rung.continued for rung in rungs]),
        ("stopped there", STATE_COLOUR[TrialState.STOPPED], [rung.stopped for rung in rungs]),
        ("failed or unfinished", MUTED, [rung.other for rung in rungs]),
    )
    return Chart(
        key="survival",
        label="trials that reached each rung",
        data=[
            {
                "type": "bar",
                "name": name,
                "x": [str(rung.epoch) for rung in rungs],
                "y": counts,
                "hovertemplate": f"epoch %{{x}}: %{{y}} {name}<extra></extra>",
                "marker": {"color": colour, "opacity": 0.85},
            }
            for name, colour, counts in parts
        ],
        layout={
            "barmode": "stack",
            "bargap": 0.4,
            "xaxis": numeric_axis("rung, epochs", type="category"),
            "yaxis": numeric_axis("trials"),
        },
        height=240,
    )


def costs(result: StudyResult) -> list[Chart]:
    """Return a plot of the trials' values against each cost.

    Each plot has the Pareto front of the trials with the most epochs.
    """
    return [_cost(result, index, front) for index, front in enumerate(cost_fronts(result))]


def _cost(result: StudyResult, index: int, front: CostFront) -> Chart:
    points = markers(
        (cost for _, cost in front.points),
        (trial.value for trial, _ in front.points),
        colours=[STATE_COLOUR[trial.state] for trial, _ in front.points],
        customdata=[[trial.number, trial.value_epoch, trial.epochs] for trial, _ in front.points],
        hover="trial %{customdata[0]}: %{x:.4g}, %{y} at epoch %{customdata[1]} of %{customdata[2]}",
    )
    return Chart(
        key=f"cost-{index}",
        label=f"{result.metric} against {front.title}",
        data=[points, _front(front)],
        layout={
            "xaxis": numeric_axis(front.title, rangemode="tozero"),
            "yaxis": numeric_axis(result.metric),
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
        "line": {"color": MUTED, "dash": "dot", "shape": "hv", "width": 1.5},
        "marker": {"symbol": "circle-open", "size": 13, "color": MUTED, "line": {"width": 1.5}},
        "hoverinfo": "skip",
    }


def incumbent_curves(results: Sequence[StudyResult]) -> Chart:
    """Return the best value so far of each search, by the hours that it had spent."""
    hours = " or ".join(sorted({spent_unit(result) for result in results}))
    metrics = ", ".join(sorted({result.metric for result in results}))
    totals = [spent_hours(result, result.trials) for result in results]
    return Chart(
        key="incumbents",
        label=f"best {metrics} so far, by {hours}",
        data=[
            _incumbent_line(result.name, incumbents(result), total, colour)
            for result, total, colour in zip(results, totals, cycle(COLOURS), strict=False)
        ],
        layout={
            "xaxis": numeric_axis(f"{hours} spent", rangemode="tozero"),
            "yaxis": numeric_axis(f"{metrics} of the best trial"),
            "showlegend": True,
        },
    )


def group_curves(result: StudyResult, name: str, groups: Sequence[Group], shared: float) -> Chart:
    """Return the best value so far of each group, by the hours that the group had spent.

    Args:
        result: the search.
        name: the parameter that defines the groups.
        groups: the groups, the best first.
        shared: the hours that every group has spent, which a dotted line marks.
    """
    hours = spent_unit(result)
    return Chart(
        key="groups",
        label=f"best {result.metric} so far of each {name}, by its {hours}",
        data=[
            _incumbent_line(setting_text(name, group.value), group.best, group.hours, colour)
            for group, colour in zip(groups, cycle(COLOURS), strict=False)
        ],
        layout={
            "xaxis": numeric_axis(f"{hours} spent on it", rangemode="tozero"),
            "yaxis": numeric_axis(f"best {result.metric}"),
            "shapes": [dotted_line(shared)],
            "showlegend": True,
        },
        height=320,
    )


def _incumbent_line(name: str, changes: Sequence[Incumbent], total: float, colour: str) -> dict[str, Any]:
    """Return a step line of the best value. It ends at ``total`` hours, with the last value."""
    last = changes[-1:]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": rounded([*(change.hours for change in changes), *(total for _ in last)]),
        "y": rounded(change.value for change in (*changes, *last)),
        "customdata": [[change.number, change.epoch] for change in (*changes, *last)],
        "hovertemplate": "trial %{customdata[0]} at epoch %{customdata[1]}: %{y}",
        "line": {"shape": "hv", "width": 2, "color": colour},
    }


#: Heights of the plot of slots, in pixels: the largest and the smallest row, the frame, and the whole plot.
MAX_ROW: Final = 26
MIN_ROW: Final = 7
FRAME: Final = 90
MAX_HEIGHT: Final = 900


def gantt(timeline: Timeline) -> Chart:
    """Return a row for each slot, with bars for the trials that ran in it."""
    row = min(MAX_ROW, max(MIN_ROW, (MAX_HEIGHT - FRAME) // max(timeline.slots, 1)))
    start, unit, seconds = _clock(timeline)
    data = [
        _bars(state, stretches, start, seconds)
        for state in STATE_ORDER
        if (stretches := [stretch for stretch in timeline.stretches if stretch.state is state])
    ]
    return Chart(
        key="gantt",
        label="the trials of each slot over time",
        data=data,
        layout={
            "barmode": "overlay",
            "xaxis": numeric_axis(f"{unit} since the first epoch", rangemode="tozero"),
            "yaxis": numeric_axis(
                "slot", range=[timeline.slots + 0.5, 0.5], dtick=max(1, timeline.slots // 16), showgrid=False
            ),
        },
        height=FRAME + row * max(timeline.slots, 3),
    )


def _clock(timeline: Timeline) -> tuple[float, str, float]:
    """Return the time at which the time axis starts, the axis's unit, and the unit's seconds."""
    start = min((stretch.start for stretch in timeline.stretches), default=0.0)
    # Length of the whole axis, which includes the times when no driver ran.
    seconds = max((stretch.end for stretch in timeline.stretches), default=0.0) - start
    return (start, "hours", 3600.0) if seconds > 5400 else (start, "minutes", 60.0)


def _bars(state: TrialState, stretches: Sequence[Stretch], start: float, seconds: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": state.value,
        "y": [stretch.slot + 1 for stretch in stretches],
        # Without a width, plotly makes a state's bars as wide as the distance between two of its slots.
        "width": 0.85,
        "base": rounded((stretch.start - start) / seconds for stretch in stretches),
        "x": rounded((stretch.end - stretch.start) / seconds for stretch in stretches),
        "customdata": [[stretch.number, *stretch.epochs] for stretch in stretches],
        "hovertemplate": "trial %{customdata[0]}, epochs %{customdata[1]} to %{customdata[2]}<extra></extra>",
        "marker": {"color": STATE_COLOUR[state], "opacity": 0.85, "line": {"width": 0.5, "color": "page"}},
    }


def speed_steps(timeline: Timeline, throughput: Throughput) -> Chart:
    """Return the summed speeds of all trials over time."""
    times = [throughput.start + index * throughput.interval for index in range(len(throughput.speeds) + 1)]
    return Chart(
        key="speed",
        label="images trained per second by all trials at once",
        data=[_steps(timeline, times, throughput.speeds, colour="#0072b2", hover="%{y:,.4~r} images/s")],
        layout=_over_time(timeline, numeric_axis("images/s, all trials", rangemode="tozero")),
        height=300,
    )


def utilisation_steps(timeline: Timeline, use: GpuUse) -> Chart:
    """Return the utilisation of the GPUs over time."""
    times = [use.start + index * use.interval for index in range(len(use.levels) + 1)]
    return Chart(
        key="utilisation",
        label="utilisation of the GPUs",
        data=[_steps(timeline, times, use.levels, colour="#009e73", hover="%{y:.0%}")],
        layout=_over_time(timeline, numeric_axis("GPU utilisation", range=[0, 1], tickformat=".0%")),
        height=220,
    )


def _steps(
    timeline: Timeline, times: Sequence[float], levels: Sequence[float], *, colour: str, hover: str
) -> dict[str, Any]:
    """Return a filled step line of ``levels``; ``times`` has their starts, and the end of the last one."""
    start, _, seconds = _clock(timeline)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded((time - start) / seconds for time in times),
        "y": rounded([*levels, 0.0]),
        "line": {"shape": "hv", "width": 1.2, "color": colour},
        "fill": "tozeroy",
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _over_time(timeline: Timeline, yaxis: Mapping[str, Any]) -> dict[str, Any]:
    _, unit, _ = _clock(timeline)
    xaxis = numeric_axis(f"{unit} since the first epoch", rangemode="tozero")
    return {"xaxis": xaxis, "yaxis": yaxis, "showlegend": False}
