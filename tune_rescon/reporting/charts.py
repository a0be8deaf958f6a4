"""Charts of the report page: the type of all charts, and the charts of trials and their parameters.

:mod:`.search_charts` has the charts of a whole search. A chart consists of plain dictionaries. plotly's
Python classes are not used, because they check each of a hundred thousand numbers. A chart does not set the
colours of text and grid: the page's script sets them for the light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.metric_names import watched_metric
from tune_rescon.reporting.formatting import (
    RANK_STYLE,
    STATE_COLOUR,
    STATE_ORDER,
    format_number,
    setting_text,
)
from tune_rescon.reporting.summary import ABSENT, Axis, RankClass, parameter_axes, rank_classes
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "HEIGHT",
    "Chart",
    "dotted_line",
    "importance_bars",
    "learning_curves",
    "markers",
    "numeric_axis",
    "parallel_coordinates",
    "plain",
    "rounded",
    "slices",
]

#: Significant digits of the drawn numbers: a pixel is a thousandth of a plot.
DIGITS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot of the report page."""

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


def plain(text: str) -> str:
    """Return a user's text, such as the name of a class, without tags and entities for plotly to replace.

    >>> plain("val_f1/<b>cat</b> & dog")
    'val_f1/&lt;b>cat&lt;/b> &amp; dog'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;")


def numeric_axis(title: str, **more: Any) -> dict[str, Any]:
    """Return a numeric axis; ``more`` are further keys of plotly's axis."""
    return {"title": {"text": plain(title)}, "automargin": True, "zeroline": False, **more}


def dotted_line(x: float) -> dict[str, Any]:
    """Return a dotted vertical line at ``x``, over the whole height of the plot."""
    return {
        "type": "line",
        "layer": "below",
        "x0": x,
        "x1": x,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "#8886", "width": 1, "dash": "dot"},
    }


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Round numbers for the page, with None for a number that is not finite, because JSON has no such number.

    >>> rounded([0.1234567, float("nan"), 12.0, None])
    [0.12346, None, 12.0, None]
    """
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{DIGITS}g}") for v in values]


def jitter(number: int, width: float) -> float:
    """Return an offset for a trial's point, so that the points of a choice do not coincide.

    It is between ``-width / 2`` and ``width / 2``, and always the same for a trial.

    >>> abs(jitter(7, 0.1)) <= 0.05, jitter(7, 0.1) == jitter(7, 0.1)
    (True, True)
    """
    golden = (number * 0.6180339887498949) % 1.0
    return (golden - 0.5) * width


#: Height of a small plot, in pixels.
HEIGHT: Final = 260


def markers(
    x: Iterable[float], y: Iterable[float], *, colours: list[str], customdata: list[list[Any]], hover: str
) -> dict[str, Any]:
    """Return a point for each trial; ``hover`` is the template of the points' tooltips."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(x),
        "y": rounded(y),
        "customdata": customdata,
        "marker": {"color": colours, "size": 5, "opacity": 0.75},
        "hovertemplate": f"{hover}<extra></extra>",
    }


#: Opacity of the stopped and paused trials: these are many, and their lines stay in the background.
_FAINT: Final = {TrialState.STOPPED: 0.45, TrialState.PAUSED: 0.45}

#: A state with at least this number of trials is drawn with thin lines, so that they do not hide each other.
MANY: Final = 150


def learning_curves(result: StudyResult) -> Chart:
    """Return a line for each trial, with a marker at its end, and a dotted line for each rung.

    All lines of a state are one trace with gaps between them. Drawing a thousand traces would take seconds.
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
            "xaxis": numeric_axis("epoch", rangemode="tozero"),
            "yaxis": numeric_axis(watched_metric(result.metric)),
            "shapes": [dotted_line(rung) for rung in result.rungs[:-1]],
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
    """Return the markers at the ends of the lines. A trial of one epoch has only its marker."""
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
    """Return the line of the best trial, drawn once more above all others."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"best: trial {trial.number}",
        "x": list(range(1, trial.epochs + 1)),
        "y": rounded(trial.curve),
        "hoverinfo": "skip",
        "line": {"color": "ink", "width": 2.2},
    }


#: Width of an axis with its labels, in pixels.
AXIS_WIDTH: Final = 105

#: Width of the band of the lines that pass through one choice.
LINE_SPREAD: Final = 0.05


def parallel_coordinates(result: StudyResult, values: Mapping[int, float], epoch: int) -> Chart:
    """Return parallel coordinates of the trials that have a value, coloured by the rank of the value.

    The plot consists of ordinary lines. plotly's own type of parallel coordinates needs WebGL, which not
    every browser on a remote machine can draw.

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
        data=[_rank_lines(axes, rank_class) for rank_class in reversed(classes)],
        layout={
            "xaxis": {
                "tickvals": list(range(len(axes))),
                "ticktext": [plain(axis.name.replace("_", " ")) for axis in axes],
                "side": "bottom",
                "showgrid": False,
                "zeroline": False,
                "range": [-0.25, len(axes) - 0.6],
                "fixedrange": True,
            },
            "yaxis": {"visible": False, "range": [ABSENT - 0.06, 1.06], "fixedrange": True},
            "shapes": [_axis_line(x) for x in range(len(axes))],
            "annotations": list(chain.from_iterable(_labels(x, axis) for x, axis in enumerate(axes))),
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


def _rank_lines(axes: Sequence[Axis], rank_class: RankClass) -> dict[str, Any]:
    colour, opacity, width = RANK_STYLE[rank_class.name]
    x = [*range(len(axes)), None] * len(rank_class.numbers)
    y = chain.from_iterable([*(_line_position(axis, n) for axis in axes), None] for n in rank_class.numbers)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{rank_class.name} ({len(rank_class.numbers)})",
        "x": x,
        "y": rounded(y),
        "customdata": list(chain.from_iterable([n] * len(axes) + [None] for n in rank_class.numbers)),
        "hovertemplate": "trial %{customdata}<extra></extra>",
        "line": {"color": colour, "width": width},
        "opacity": opacity,
    }


def _line_position(axis: Axis, number: int) -> float:
    position = axis.positions[number]
    return position + jitter(number, LINE_SPREAD) if axis.is_categorical or position == ABSENT else position


def _axis_line(x: int) -> dict[str, Any]:
    line = {"color": "#8888", "width": 1}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _labels(x: int, axis: Axis) -> list[dict[str, Any]]:
    return [
        {
            "x": x,
            "y": y,
            "text": plain(text),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 3,
            "font": {"size": 11},
            "bgcolor": "page",
        }
        for y, text in axis.ticks
    ]


#: Width of the band of the points of one choice.
POINT_SPREAD: Final = 0.12

#: Number of characters up to which the labels of the choices fit side by side below a small plot.
LABEL_ROOM: Final = 32


def slices(result: StudyResult, values: Mapping[int, float]) -> list[Chart]:
    """Return a plot of the values against each parameter."""
    return [_slice(result, values, axis) for axis in parameter_axes(result)]


def _slice(result: StudyResult, values: Mapping[int, float], axis: Axis) -> Chart:
    trials = [trial for trial in result.trials if trial.number in values]
    points = markers(
        (_point_position(axis, trial.number) for trial in trials),
        (values[trial.number] for trial in trials),
        colours=[STATE_COLOUR[trial.state] for trial in trials],
        customdata=[
            [trial.number, plain(setting_text(axis.name, trial.setting(axis.name)))] for trial in trials
        ],
        hover=f"trial %{{customdata[0]}}: {axis.name} %{{customdata[1]}}, %{{y}}",
    )
    labels = [text for _, text in axis.ticks]
    # The whole axis, because plotly leaves out the labels beyond the first and the last point.
    ends = [axis.ticks[0][0] - POINT_SPREAD, 1 + POINT_SPREAD]
    scale: dict[str, Any] = {
        "tickvals": [at for at, _ in axis.ticks],
        "ticktext": [*map(plain, labels)],
        "range": ends,
    }
    if sum(map(len, labels)) > LABEL_ROOM:
        # To the left of its tick, because plotly leaves out a label that ends beyond the plot's right edge.
        scale["tickangle"] = -30
    return Chart(
        key=f"slice-{axis.name}",
        label=f"{result.metric} against {axis.name}",
        data=[points],
        layout={
            "xaxis": numeric_axis(f"{axis.name}{' (log)' if axis.log else ''}", **scale),
            "yaxis": numeric_axis(result.metric),
            "showlegend": False,
        },
        height=HEIGHT,
    )


def _point_position(axis: Axis, number: int) -> float:
    position = axis.positions[number]
    spread = POINT_SPREAD if axis.is_categorical else POINT_SPREAD / 2 if position == ABSENT else 0.0
    return position + jitter(number, spread)


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
            "xaxis": numeric_axis("importance", tickformat=".0%", rangemode="tozero"),
            "yaxis": {"automargin": True},
            "bargap": 0.45,
        },
        height=max(240, 70 + 34 * len(names)),
    )
