"""Parallel coordinates: every trial a line through its parameters to its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

from tune_rescon.reporting.analysis import Axis, RankClass, parameter_axes, rank_classes
from tune_rescon.reporting.analysis.axes import ABSENT
from tune_rescon.reporting.page.charts.chart import ACCENT, MUTED, Chart, jitter, rounded
from tune_rescon.reporting.words import figure
from tune_rescon.tuning import StudyResult

__all__ = ["parallel_coordinates"]

#: Of each class, the best first: colour, opacity, width.
_LOOKS: Final = {
    "best tenth": (ACCENT, 0.95, 1.8),
    "best quarter": ("#009e73", 0.7, 1.3),
    "better half": ("#56b4e9", 0.45, 1.0),
    "the rest": (MUTED, 0.25, 0.8),
}

#: Pixels an axis needs with its labels.
AXIS_WIDTH: Final = 105

#: How far lines through one choice lie apart.
SPREAD: Final = 0.05


def parallel_coordinates(result: StudyResult, values: Mapping[int, float], epoch: int) -> Chart:
    """The trials that have a value, in classes by it; a click on a class hides it.

    Lines of an ordinary plot and not plotly's own type for it, which needs WebGL: not every browser that a
    person has on a remote machine draws that.
    """
    axes = [*parameter_axes(result), _value_axis(values, f"{result.metric} at epoch {epoch}")]
    classes = rank_classes(values, maximize=result.maximize)
    return Chart(
        key="coordinates",
        label=f"parameters of each trial and its {result.metric}",
        # The best last: on top.
        data=[_lines(axes, one) for one in reversed(classes)],
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
    ticks = [(share, figure(low + share * (high - low))) for share in (0.0, 0.5, 1.0)]
    positions = {number: (value - low) / span for number, value in values.items()}
    return Axis(name=name, positions=positions, ticks=tuple(ticks) if high > low else tuple(ticks[:1]))


def _lines(axes: Sequence[Axis], one: RankClass) -> dict[str, Any]:
    colour, opacity, width = _LOOKS[one.name]
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
    return place + jitter(number, SPREAD) if one.is_categorical or place == ABSENT else place


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
