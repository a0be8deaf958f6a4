"""A curve in a line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = ["ASCII", "BLOCKS", "sparkline"]

#: What draws a value, the lowest first: eighths of a line, or what every terminal has.
BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.-~=+*#"


def sparkline(values: Sequence[float], width: int, *, ramp: str = BLOCKS) -> str:
    """At most ``width`` characters, from the lowest value's to the highest's; a gap where one is not finite.

    More values than characters: each character is the last of its share, so the end is always there.

    >>> sparkline([0.1, 0.5, 0.3, 0.9], 8), sparkline([1, 2, 3, 4, 5, 6, 7, 8], 4)
    ('▁▅▃█', '▁▃▆█')
    >>> sparkline([0.5, float("nan"), 0.5], 8), sparkline([], 8)
    ('▅ ▅', '')
    """
    chosen = values if len(values) <= width else [values[_share(i, len(values), width)] for i in range(width)]
    finite = [value for value in chosen if math.isfinite(value)]
    if not finite:
        return " " * len(chosen)
    # Halves: the span of any two values is a number then, also that of the largest and the smallest.
    low = min(finite) / 2
    span = max(finite) / 2 - low

    def character(value: float) -> str:
        if not math.isfinite(value):
            return " "
        height = (value / 2 - low) / span if span else 0.5
        return ramp[round(height * (len(ramp) - 1))]

    return "".join(map(character, chosen))


def _share(character: int, values: int, width: int) -> int:
    return (character + 1) * values // width - 1
