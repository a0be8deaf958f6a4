"""What of the table has room in a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Layout", "fit"]

#: Running trials that are shown before any other line is.
FIRST_ROWS: Final = 3

#: Columns and their characters, those a narrow terminal keeps longest first; parameters take what is left.
PARAMETERS_FROM: Final = 16
CURVE: Final = 12
SPEED: Final = 8
GAP: Final = 2


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Characters and lines."""

    rows: int
    """Running trials shown."""
    facts: int
    """Lines below them."""
    curve: int
    """Characters of a curve; 0: no such column. So for the other two."""
    speed: int
    parameters: int


def fit(width: int, height: int, *, running: int, facts: int, always: int) -> Layout:
    """What ``width`` x ``height`` characters have room for.

    A line of title and one for the cursor are taken; so are one for the table's head and, where not all
    trials are shown, one that says so.

    Args:
        width: of the terminal.
        height: of the terminal.
        running: trials there are to show.
        facts: lines there are to show below, the most important first.
        always: characters of the columns that are never left out.

    >>> fit(80, 24, running=64, facts=5, always=30)
    Layout(rows=15, facts=5, curve=12, speed=8, parameters=24)
    >>> fit(40, 8, running=2, facts=5, always=30)
    Layout(rows=2, facts=3, curve=0, speed=8, parameters=0)
    """
    lines = max(height - 2, 0)
    if width < always:
        return Layout(rows=0, facts=min(facts, lines), curve=0, speed=0, parameters=0)
    first = min(running, FIRST_ROWS)
    table = 1 + first + (running > first) if running else 0
    shown = max(min(facts, lines - table), 0) if lines > table else min(facts, lines)
    rows = min(max(lines - shown - 1, 0), running)
    if rows < running:
        rows = max(rows - 1, 0)
    curve, speed, parameters = _columns(width - always)
    return Layout(rows=rows, facts=shown, curve=curve, speed=speed, parameters=parameters)


def _columns(left: int) -> tuple[int, int, int]:
    curve = CURVE if left >= CURVE + GAP else 0
    left -= curve + GAP if curve else 0
    speed = SPEED if left >= SPEED + GAP else 0
    left -= speed + GAP if speed else 0
    return curve, speed, left - GAP if left >= PARAMETERS_FROM + GAP else 0
