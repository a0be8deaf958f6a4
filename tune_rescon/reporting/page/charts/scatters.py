"""Small plots of a value against one thing: each parameter, each cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tune_rescon.reporting.analysis import Axis, CostFront, cost_fronts, parameter_axes
from tune_rescon.reporting.analysis.axes import ABSENT
from tune_rescon.reporting.fates import FATE_COLOUR
from tune_rescon.reporting.page.charts.chart import Chart, axis, jitter, rounded
from tune_rescon.reporting.words import figure
from tune_rescon.tuning import StudyResult

__all__ = ["costs", "slices"]

#: How far points of one choice lie apart.
SPREAD: Final = 0.12

HEIGHT: Final = 260


def slices(result: StudyResult, values: Mapping[int, float]) -> list[Chart]:
    """For each parameter, the values against it."""
    return [_slice(result, values, one) for one in parameter_axes(result)]


def _slice(result: StudyResult, values: Mapping[int, float], one: Axis) -> Chart:
    trials = [trial for trial in result.trials if trial.number in values]
    points = _points(
        x=[_beside(one, trial.number) for trial in trials],
        y=[values[trial.number] for trial in trials],
        colours=[FATE_COLOUR[trial.state] for trial in trials],
        words=[[trial.number, figure(trial.setting(one.name))] for trial in trials],
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
    """For each cost, the last values against it, with the Pareto front of the trials that came furthest."""
    return [_cost(result, index, front) for index, front in enumerate(cost_fronts(result))]


def _cost(result: StudyResult, index: int, front: CostFront) -> Chart:
    points = _points(
        x=[cost for _, cost in front.points],
        y=[trial.value for trial, _ in front.points],
        colours=[FATE_COLOUR[trial.state] for trial, _ in front.points],
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
        # A step: between two points, what can be had is the cheaper one's value.
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
