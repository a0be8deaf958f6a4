"""The classes of a plot and of a panel of plots, and the parts that all plots share.

The dictionaries are built without plotly's Python classes, which check each of a hundred thousand numbers.
The dictionaries do not set the colours of text and grid: the page's script sets them for its light or dark
theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.reporting.analysis import (
    Axis,
    RankClass,
    Stretch,
    Timeline,
    parameter_axes,
    rank_classes,
    rung_survival,
)
from tune_rescon.reporting.analysis.parameters import ABSENT
from tune_rescon.reporting.formatting import STATE_COLOUR, STATE_ORDER, format_number
from tune_rescon.tuning import StudyResult

__all__ = [
    "ACCENT",
    "COLOURS",
    "MUTED",
    "Chart",
    "Panel",
    "axis",
    "clock",
    "dotted_line",
    "gantt",
    "importance_bars",
    "jitter",
    "parallel_coordinates",
    "rounded",
    "survival_bars",
]


#: Colours of the emphasised and the muted elements, readable on white and on black.
ACCENT: Final = "#e69f00"
MUTED: Final = "#8a94a0"

#: Colours of lines that are compared.
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a94a0")

#: Significant digits of the drawn numbers: a pixel is a thousandth of a plot.
DIGITS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot of the page."""

    key: str
    """Id of the plot's element."""
    label: str
    """Description for screen readers."""
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 380
    """Height in pixels."""
    min_width: int = 0
    """Minimum width in pixels; on a narrower screen the plot scrolls in its box."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plot in the form that plotly.js reads."""
        layout = {
            "height": self.height,
            "margin": {"l": 56, "r": 16, "t": 8, "b": 44},
            "hovermode": "closest",
            # Above the plot, because beside it the legend would use half of a phone's width.
            "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
            **self.layout,
        }
        return {"data": list(self.data), "layout": layout, "minWidth": self.min_width}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One or more plots under a heading."""

    heading: str
    note: str
    """Explanation of the plots, in a sentence or two."""
    charts: Sequence[Chart]
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """A table above the plots."""
    half: bool = False
    """True: two such panels share a row if there is room."""


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return a numeric axis; ``more`` are further keys of plotly's axis."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def dotted_line(x: float) -> dict[str, Any]:
    """Return a vertical line over the whole height, which marks a place of the x axis."""
    return {
        "type": "line",
        "layer": "below",
        "x0": x,
        "x1": x,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "#888a", "width": 1, "dash": "dot"},
    }


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Round numbers for the page, with None for a number that is not finite, because JSON has no such number.

    >>> rounded([0.1234567, float("nan"), 12.0, None])
    [0.12346, None, 12.0, None]
    """
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{DIGITS}g}") for v in values]


def jitter(number: int, width: float) -> float:
    """Return an offset that is always the same for a trial, so that points of one choice do not coincide.

    The offset is between ``-width / 2`` and ``width / 2``.

    >>> abs(jitter(7, 0.1)) <= 0.05, jitter(7, 0.1) == jitter(7, 0.1)
    (True, True)
    """
    golden = (number * 0.6180339887498949) % 1.0
    return (golden - 0.5) * width


#: Colour, opacity and line width of each class, the best first.
_LOOKS: Final = {
    "best tenth": (ACCENT, 0.95, 1.8),
    "best quarter": ("#009e73", 0.7, 1.3),
    "better half": ("#56b4e9", 0.45, 1.0),
    "the rest": (MUTED, 0.25, 0.8),
}

#: Pixels that an axis needs with its labels.
AXIS_WIDTH: Final = 105

#: Width of the band of the lines that pass through one choice.
SPREAD: Final = 0.05


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
    ticks = [(share, format_number(low + share * (high - low))) for share in (0.0, 0.5, 1.0)]
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


#: Heights in pixels: maximum and minimum of a slot's bar, the frame around the slots, and the maximum in all.
TALL: Final = 26
FLAT: Final = 7
FRAME: Final = 90
HIGHEST: Final = 900


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
    """Return, for each rung, the trials that reached it, by their state after it."""
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


def gantt(found: Timeline) -> Chart:
    """Return the slots, one above the other, with the trials that held them."""
    tall = min(TALL, max(FLAT, (HIGHEST - FRAME) // max(found.slots, 1)))
    begin, unit, seconds = clock(found)
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


def clock(found: Timeline) -> tuple[float, str, float]:
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
