"""A chart and a panel of charts, and what all charts share.

The dictionaries are built without plotly's Python classes, which check each of a hundred thousand numbers.
The dictionaries do not set the colours of text and grid: the page's script sets them for its light or dark
theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["COLOURS", "Chart", "Panel", "axis", "dotted_line", "jitter", "rounded"]

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
        "line": {"color": "#8886", "width": 1, "dash": "dot"},
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
