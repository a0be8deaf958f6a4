"""One plot, and the few things all plots share.

The dictionaries are built without plotly's Python classes, which check each of a hundred thousand numbers.
Colours of text and grid are not theirs: the page's script sets them by the reader's light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ACCENT", "MUTED", "Chart", "axis", "jitter", "rounded"]

#: What stands out and what stays back, readable on white and on black.
ACCENT: Final = "#e69f00"
MUTED: Final = "#8a94a0"

#: Significant digits of what is drawn: a pixel is a thousandth of a plot.
DIGITS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot of the page."""

    key: str
    """Its element's id."""
    label: str
    """What a screen reader says."""
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 380
    """Pixels."""
    min_width: int = 0
    """Pixels; on a narrower screen it scrolls in its box."""

    def to_dict(self) -> dict[str, Any]:
        """As plotly.js takes it."""
        layout = {
            "height": self.height,
            "margin": {"l": 56, "r": 16, "t": 8, "b": 44},
            "hovermode": "closest",
            # Above the plot: beside it, it would take half of a phone's width.
            "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
            **self.layout,
        }
        return {"data": list(self.data), "layout": layout, "minWidth": self.min_width}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis of numbers."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Numbers as the page has them; None, which JSON has, for what is not finite.

    >>> rounded([0.1234567, float("nan"), 12.0, None])
    [0.12346, None, 12.0, None]
    """
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{DIGITS}g}") for v in values]


def jitter(number: int, width: float) -> float:
    """A small step aside that is always the same for a trial: points of one choice lie beside each other.

    >>> abs(jitter(7, 0.1)) <= 0.05, jitter(7, 0.1) == jitter(7, 0.1)
    (True, True)
    """
    golden = (number * 0.6180339887498949) % 1.0
    return (golden - 0.5) * width
