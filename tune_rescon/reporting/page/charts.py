"""The charts of trials, rungs and whole searches, in the order in which the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.metric_names import watched_metric
from tune_rescon.reporting.analysis import (
    Axis,
    CostFront,
    Group,
    Incumbent,
    RankClass,
    cost_fronts,
    incumbents,
    parameter_axes,
    rank_classes,
    rung_survival,
)
from tune_rescon.reporting.analysis.parameters import ABSENT
from tune_rescon.reporting.formatting import (
    MUTED,
    RANK_LOOKS,
    STATE_COLOUR,
    STATE_ORDER,
    device_hours_unit,
    format_number,
    setting_text,
)
from tune_rescon.reporting.page.chart import COLOURS, Chart, axis, dotted_line, jitter, rounded
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "costs",
    "group_curves",
    "importance_bars",
    "incumbent_curves",
    "learning_curves",
    "parallel_coordinates",
    "slices",
    "survival_bars",
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
            "shapes": [dotted_line(level) for level in result.levels[:-1]],
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


#: Pixels that an axis needs with its labels.
AXIS_WIDTH: Final = 105

#: Width of the band of the lines that pass through one choice.
LINE_SPREAD: Final = 0.05


def parallel_coordinates(result: StudyResult, values: Mapping[int, float], epoch: int) -> Chart:
    """Return the trials that have a value, in classes by it; a click on a class hides it.

    The plot uses ordinary lines instead of plotly's own type for parallel coordinates. That type needs WebGL,
    which not every browser on a remote machine can draw.

    Args:
        result: the search.
        values: the value of each trial by its number.
        epoch: the epoch of the values.
    """
    axes = [*parameter_axes(result), _value_axis(values, f"{result.metric} at epoch {epoch}")]
    classes = rank_classes(values, maximize=result.maximize)
    return Chart(
        key="coordinates",
        label=f"parameters of each trial and its {result.metric}",
        # The best class is drawn last, so that it is on top.
        data=[_rank_lines(axes, one) for one in reversed(classes)],
        layout={
            "xaxis": {
                "tickvals": list(range(len(axes))),
                "ticktext": [one.name.replace("_", " ") for one in axes],
                "side": "bottom",
                "showgrid": False,
                "zeroline": False,
                "range": [-0.25, len(axes) - 0.6],
                "fixedrange": True,
            },
            "yaxis": {"visible": False, "range": [ABSENT - 0.06, 1.06], "fixedrange": True},
            "shapes": [_rule(place) for place in range(len(axes))],
            "annotations": list(chain.from_iterable(_labels(p, one) for p, one in enumerate(axes))),
            "margin": {"l": 12, "r": 12, "t": 8, "b": 44},
            "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "traceorder": "reversed"},
        },
        height=420,
        min_width=AXIS_WIDTH * len(axes),
    )


def _value_axis(values: Mapping[int, float], name: str) -> Axis:
    low, high = min(values.values()), max(values.values())
    span = (high - low) or 1.0
    ticks = [(share, format_number(low + share * (high - low))) for share in (0.0, 0.5, 1.0)]
    positions = {number: (value - low) / span for number, value in values.items()}
    return Axis(name=name, positions=positions, ticks=tuple(ticks) if high > low else tuple(ticks[:1]))


def _rank_lines(axes: Sequence[Axis], one: RankClass) -> dict[str, Any]:
    colour, opacity, width = RANK_LOOKS[one.name]
    x = [*range(len(axes)), None] * len(one.numbers)
    y = chain.from_iterable([*(_place(each, n) for each in axes), None] for n in one.numbers)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{one.name} ({len(one.numbers)})",
        "x": x,
        "y": rounded(y),
        "customdata": list(chain.from_iterable([n] * len(axes) + [None] for n in one.numbers)),
        "hovertemplate": "trial %{customdata}<extra></extra>",
        "line": {"color": colour, "width": width},
        "opacity": opacity,
    }


def _place(one: Axis, number: int) -> float:
    place = one.positions[number]
    return place + jitter(number, LINE_SPREAD) if one.is_categorical or place == ABSENT else place


def _rule(place: int) -> dict[str, Any]:
    line = {"color": "#8888", "width": 1}
    return {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _labels(place: int, one: Axis) -> list[dict[str, Any]]:
    return [
        {
            "x": place,
            "y": at,
            "text": text,
            "showarrow": False,
            "xanchor": "left",
            "xshift": 3,
            "font": {"size": 11},
            "bgcolor": "page",
        }
        for at, text in one.ticks
    ]


#: Width of the band of the points of one choice.
POINT_SPREAD: Final = 0.12

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
        customdata=[[trial.number, format_number(trial.setting(one.name))] for trial in trials],
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
    spread = POINT_SPREAD if one.is_categorical else POINT_SPREAD / 2 if place == ABSENT else 0.0
    return place + jitter(number, spread)


def importance_bars(shares: Mapping[str, float]) -> Chart:
    """Return the importance of each parameter, the most important at the top."""
    names = list(shares)[::-1]
    return Chart(
        key="importance",
        label="importance of each parameter",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "x": rounded(shares[name] for name in names),
                "y": names,
                "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
                "marker": {"color": "#0072b2", "opacity": 0.85},
            }
        ],
        layout={
            "xaxis": axis("importance", tickformat=".0%", rangemode="tozero"),
            "yaxis": {"automargin": True},
            "bargap": 0.45,
        },
        height=max(240, 70 + 34 * len(names)),
    )


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
    points = _points(
        x=[cost for _, cost in front.points],
        y=[trial.value for trial, _ in front.points],
        colours=[STATE_COLOUR[trial.state] for trial, _ in front.points],
        customdata=[[trial.number, trial.epochs] for trial, _ in front.points],
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
        "line": {"color": MUTED, "dash": "dot", "shape": "hv", "width": 1.5},
        "marker": {"symbol": "circle-open", "size": 13, "color": MUTED, "line": {"width": 1.5}},
        "hoverinfo": "skip",
    }


def _points(
    x: list[float], y: list[float], colours: list[str], customdata: list[list[Any]]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(x),
        "y": rounded(y),
        "customdata": customdata,
        "marker": {"color": colours, "size": 5, "opacity": 0.75},
    }


def incumbent_curves(results: Sequence[StudyResult]) -> Chart:
    """Return the best value so far of each search, by device-hours."""
    hours = " or ".join(sorted({device_hours_unit(result.device) for result in results}))
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
    spent = device_hours_unit(result.device)
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
