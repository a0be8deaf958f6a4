"""The tables of ``--list`` and ``--compare`` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_rescon.reporting.formatting import duration, format_number
from tune_rescon.reporting.rows import comparison_headings, comparison_row
from tune_rescon.tuning import SearchOverview, SearchState, StudyResult

__all__ = ["print_comparison", "print_overviews"]

_STYLE: Final = {
    SearchState.RUNNING: "cyan",
    SearchState.FINISHED: "green",
    SearchState.INTERRUPTED: "blue",
    SearchState.FAILED: "red",
}

#: Columns that are never shortened; in a narrow terminal all other columns may be.
_KEPT: Final = ("search", "state")


def print_overviews(found: Sequence[SearchOverview], console: Console, *, now: datetime) -> None:
    """Print a line for each search, the last changed first, and then the problems of the searches.

    Args:
        found: the searches, in the order of the lines.
        console: the console to print to.
        now: the time from which a change is counted back.
    """
    table = Table(title="Searches", title_justify="left")
    for name in ("search", "state", "trials", "metric", "best", "changed"):
        right = name in ("trials", "best", "changed")
        table.add_column(name, justify="right" if right else "left", no_wrap=name in _KEPT)
    for one in found:
        table.add_row(
            one.name,
            Text(one.state.value, style=_STYLE[one.state]) if one.state else Text("unreadable", style="red"),
            f"{one.ended}/{one.total}" if one.state else "-",
            one.metric,
            format_number(one.best),
            _ago(one.changed, now),
        )
    console.print(table)
    for one in found:
        if one.problem:
            console.print(f"{one.name}: {one.problem}", style="red", markup=False, soft_wrap=True)


def print_comparison(results: Sequence[StudyResult], console: Console) -> None:
    """Print the searches side by side."""
    table = Table(title="Compared", title_justify="left")
    for name in comparison_headings():
        table.add_column(name, justify="left" if name in _KEPT else "right", no_wrap=name in _KEPT)
    for result in results:
        table.add_row(*map(Text, comparison_row(result)))
    console.print(table)


def _ago(moment: datetime | None, now: datetime) -> str:
    """Return how long ago a moment was, or its date if it was more than a day ago.

    >>> _ago(datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2026, 1, 1, 12, 5, tzinfo=UTC))
    '5 min 0 s ago'
    """
    if moment is None:
        return "-"
    seconds = (now - moment).total_seconds()
    if seconds > 86_400:
        return f"{moment.astimezone(UTC):%Y-%m-%d}"
    return f"{duration(max(seconds, 0.0))} ago"
