"""The charts of a whole search: its rungs and costs, its best trials so far, and its slots over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.reporting.charts import HEIGHT, Chart, axis, dotted_line, markers, rounded
from tune_rescon.reporting.formatting import MUTED, STATE_COLOUR, STATE_ORDER, setting_text
from tune_rescon.reporting.incumbents import Group, Incumbent, incumbents
from tune_rescon.reporting.summary import CostFront, cost_fronts, hours_unit, rung_survival
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
        ("failed, paused or running", MUTED, [rung.otherwise for rung in rungs]),
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
            "xaxis": axis("rung, epochs", type="category"),
            "yaxis": axis("trials"),
        },
        height=240,
    )


def costs(result: StudyResult) -> list[Chart]:
    """Return a plot of the last values against each cost.

    Each plot has the Pareto front of the trials with the most epochs.
    """
    return [_cost(result, index, front) for index, front in enumerate(cost_fronts(result))]


def _cost(result: StudyResult, index: int, front: CostFront) -> Chart:
    points = markers(
        (cost for _, cost in front.points),
        (trial.value for trial, _ in front.points),
        colours=[STATE_COLOUR[trial.state] for trial, _ in front.points],
        customdata=[[trial.number, trial.epochs] for trial, _ in front.points],
        hover="trial %{customdata[0]}: %{x:.4g}, %{y} after epoch %{customdata[1]}",
    )
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
        "line": {"color": MUTED, "dash": "dot", "shape": "hv", "width": 1.5},
        "marker": {"symbol": "circle-open", "size": 13, "color": MUTED, "line": {"width": 1.5}},
        "hoverinfo": "skip",
    }


def incumbent_curves(results: Sequence[StudyResult]) -> Chart:
    """Return the best value so far of each search, by device-hours."""
    hours = " or ".join(sorted({hours_unit(result) for result in results}))
    metrics = ", ".join(sorted({result.metric for result in results}))
    spent = [sum(result.compute_hours(trial) for trial in result.trials) for result in results]
    return Chart(
        key="incumbents",
        label=f"best {metrics} so far, by {hours}",
        data=[
            _leader_line(result.name, incumbents(result), whole, colour)
            for result, whole, colour in zip(results, spent, cycle(COLOURS), strict=False)
        ],
        layout={
            "xaxis": axis(f"{hours} spent", rangemode="tozero"),
            "yaxis": axis(f"{metrics} of the leader"),
            "showlegend": True,
        },
    )


def group_curves(result: StudyResult, name: str, found: Sequence[Group], shared: float) -> Chart:
    """Return the best value so far of each group, by the device-hours that the group had spent.

    Args:
        result: the search.
        name: the parameter whose values the groups have.
        found: the groups, the best first.
        shared: the device-hours that all groups have spent, which a dotted line marks.
    """
    spent = hours_unit(result)
    return Chart(
        key="groups",
        label=f"best {result.metric} so far of each {name}, by its {spent}",
        data=[
            _leader_line(setting_text(name, one.value), one.best, one.hours, colour)
            for one, colour in zip(found, cycle(COLOURS), strict=False)
        ],
        layout={
            "xaxis": axis(f"{spent} spent on it", rangemode="tozero"),
            "yaxis": axis(f"best {result.metric}"),
            "shapes": [dotted_line(shared)],
            "showlegend": True,
        },
        height=320,
    )


def _leader_line(name: str, leaders: Sequence[Incumbent], spent: float, colour: str) -> dict[str, Any]:
    """Return the values of the leaders, up to the ``spent`` device-hours: the last one remained the best."""
    ends = leaders[-1:]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": rounded([*(leader.hours for leader in leaders), *(spent for _ in ends)]),
        "y": rounded(leader.value for leader in (*leaders, *ends)),
        "customdata": [[leader.number, leader.epoch] for leader in (*leaders, *ends)],
        "hovertemplate": "trial %{customdata[0]} at epoch %{customdata[1]}: %{y}",
        "line": {"shape": "hv", "width": 2, "color": colour},
    }


#: Heights in pixels: maximum and minimum of a slot's bar, the frame around the slots, and the maximum in all.
TALL: Final = 26
FLAT: Final = 7
FRAME: Final = 90
HIGHEST: Final = 900


def gantt(found: Timeline) -> Chart:
    """Return the slots, one above the other, with the trials that held them."""
    tall = min(TALL, max(FLAT, (HIGHEST - FRAME) // max(found.slots, 1)))
    begin, unit, seconds = _clock(found)
    data = [
        _bars(state, stretches, begin, seconds)
        for state in STATE_ORDER
        if (stretches := [stretch for stretch in found.stretches if stretch.state is state])
    ]
    return Chart(
        key="gantt",
        label="which trial held which slot when",
        data=data,
        layout={
            "barmode": "overlay",
            "xaxis": axis(f"{unit} since the first epoch", rangemode="tozero"),
            "yaxis": axis(
                "slot", range=[found.slots + 0.5, 0.5], dtick=max(1, found.slots // 16), showgrid=False
            ),
        },
        height=FRAME + tall * max(found.slots, 3),
    )


def _clock(found: Timeline) -> tuple[float, str, float]:
    """Return the time at which the axis of the slots begins, its unit, and the unit's seconds."""
    begin = min((stretch.begun for stretch in found.stretches), default=0.0)
    return (begin, "hours", 3600.0) if found.seconds > 5400 else (begin, "minutes", 60.0)


def _bars(state: TrialState, stretches: Sequence[Stretch], begin: float, seconds: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": state.value,
        "y": [stretch.slot + 1 for stretch in stretches],
        # Without a width, plotly makes a state's bars as wide as the distance between two of its slots.
        "width": 0.85,
        "base": rounded((stretch.begun - begin) / seconds for stretch in stretches),
        "x": rounded((stretch.ended - stretch.begun) / seconds for stretch in stretches),
        "customdata": [[stretch.number, *stretch.epochs] for stretch in stretches],
        "hovertemplate": "trial %{customdata[0]}, epochs %{customdata[1]} to %{customdata[2]}<extra></extra>",
        "marker": {"color": STATE_COLOUR[state], "opacity": 0.85, "line": {"width": 0.5, "color": "page"}},
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
    begin, _, seconds = _clock(found)
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
    _, unit, _ = _clock(found)
    xaxis = axis(f"{unit} since the first epoch", rangemode="tozero")
    return {"xaxis": xaxis, "yaxis": yaxis, "showlegend": False}
