"""The tables on a terminal: the trials of a search, several searches side by side, and a list of all."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from tune_rescon.config import trial_name
from tune_rescon.errors import counted
from tune_rescon.reporting.events import STATE_STYLE
from tune_rescon.reporting.formatting import (
    duration,
    foreign_message,
    format_device_hours,
    format_number,
    in_hand_message,
    value_text,
)
from tune_rescon.reporting.rows import comparison_headings, comparison_row, differences, headings, ranked, row
from tune_rescon.tuning import SearchState, StudyResult

if TYPE_CHECKING:
    # Its module imports SQLAlchemy, which only `report --list` needs.
    from tune_rescon.tuning import SearchOverview

__all__ = ["print_comparison", "print_left_over", "print_overviews", "print_result", "result_table"]

#: Maximum number of rows; trials.csv has every trial.
ROWS: Final = 20


#: Columns that a narrow terminal leaves out, in this order. Parameters follow, from the right.
SPARE: Final = ("hours", "params M", "best", "GMACs")

#: Characters of a column's frame: a line and two spaces.
FRAME: Final = 3


def result_table(result: StudyResult, *, width: int) -> Table:
    """Return a table of at most :data:`ROWS` best trials, with the columns that fit ``width`` characters."""
    names = [heading.replace("_", " ") for heading in headings(result)]
    best = ranked(result)[:ROWS]
    rows = [row(result, trial) for trial in best]
    widths = [_width(name, (cells[i] for cells in rows)) for i, name in enumerate(names)]
    shown = _fitting(dict(zip(names, widths, strict=True)), width)
    table = Table(title=f"{result.name}: {counted(len(result.trials), 'trial')}", title_justify="left")
    columns = [i for i, name in enumerate(names) if name in shown]
    for i in columns:
        justify: JustifyMethod = "left" if names[i] == "state" else "right"
        table.add_column(Text(names[i]), justify=justify, width=widths[i])
    for trial, cells in zip(best, rows, strict=True):
        styles = {1: STATE_STYLE[trial.state]}
        table.add_row(*(Text(cells[i], style=styles.get(i, "")) for i in columns))
    return table


def _width(name: str, cells: Iterable[str]) -> int:
    """Return a column's width in characters. A heading is broken between words; a cell is never broken."""
    return max(*map(len, name.split()), *map(len, cells), 0)


def _fitting(widths: Mapping[str, int], available: int) -> set[str]:
    """Return the names of the columns that fit, and always those of a trial's state and value."""
    always = list(widths)[:4]
    rest = [name for name in widths if name not in always and name not in SPARE]
    shown = dict(widths)
    for name in (*SPARE, *reversed(rest)):
        if sum(shown.values()) + FRAME * len(shown) < available:
            break
        shown.pop(name, None)
    return set(shown)


def print_result(result: StudyResult, console: Console) -> None:
    """Print the table, the trial states, the best trial, and where the report, files and MLflow are."""
    table = result_table(result, width=console.width)
    console.print(table)
    if table.row_count < len(result.trials) or len(table.columns) < len(headings(result)):
        _print_line(console, f"All of it: {result.folder / 'trials.csv'}")
    counts = Counter(trial.state.value for trial in result.trials)
    spent = sum(result.compute_hours(trial) for trial in result.trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    _print_line(console, f"{states}; {format_device_hours(spent, result.device)} reserved")
    if result.failure is not None:
        _print_line(console, result.failure, style="red")
    if result.best is not None:
        _print_line(console, f"Best: {trial_name(result.best.number)}, {value_text(result.best)}")
    if (in_hand := in_hand_message(result)) is not None:
        _print_line(console, in_hand)
    if result.front:
        _print_line(console, _front(result))
    if result.foreign:
        _print_line(console, foreign_message(result.foreign))
    _print_line(
        console, f"Files:  {f'{result.url} (here: {result.folder})' if result.url else result.folder}"
    )
    _print_line(console, f"Report: {result.folder / 'report.html'}")
    _print_line(console, f"MLflow: {_view(result.tracking_uri)}")
    events = result.folder / "tensorboard"
    if events.is_dir():
        _print_line(console, f"TensorBoard: tensorboard --logdir {events}")


def _print_line(console: Console, text: str, *, style: str | None = None) -> None:
    """Print one line, however long. The names of classes and paths in it are no markup."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def print_left_over(result: StudyResult, console: Console, *, sync: str) -> None:
    """Print the updates that MLflow, or a storage at a URL, did not accept in time, if there are any.

    Args:
        result: the result of a search that has ended.
        console: the console to print to.
        sync: the command that sends the remaining updates to MLflow.
    """
    if result.pending_updates:
        why = f": {result.pending_reason.rstrip('.')}" if result.pending_reason else " in time"
        _print_line(
            console,
            f"MLflow did not take {counted(result.pending_updates, 'update')}{why}; the study has them all."
            f" Send them by: {sync}",
        )
    if result.pending_uploads:
        _print_line(
            console,
            f"{result.url} lacks {counted(result.pending_uploads, 'change')}:"
            " --resume on this machine sends them.",
        )


def _front(result: StudyResult) -> str:
    """Return the Pareto front in words, the cheapest trial first."""
    points = (
        f"{trial_name(trial.number)} {format_number(trial.value)} at {format_number(result.cost(trial))}"
        for trial in result.front
    )
    return f"Front of {result.metric} against {result.against}: {', '.join(points)}"


def _view(uri: str) -> str:
    """Return how to view the runs: a server's URL can be opened, while a database needs a command."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


_STATE_STYLE: Final = {
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
            Text(one.state.value, style=_STATE_STYLE[one.state])
            if one.state
            else Text("unreadable", style="red"),
            f"{one.ended}/{one.total}" if one.state else "-",
            Text(one.metric),
            format_number(one.best),
            _ago(one.changed, now),
        )
    console.print(table)
    for one in found:
        if one.problem:
            _print_line(console, f"{one.name}: {one.problem}", style="red")


def print_comparison(results: Sequence[StudyResult], console: Console) -> None:
    """Print the searches side by side."""
    table = Table(title="Compared", title_justify="left")
    for name in comparison_headings():
        table.add_column(name, justify="left" if name in _KEPT else "right", no_wrap=name in _KEPT)
    for result in results:
        table.add_row(*map(Text, comparison_row(result)))
    console.print(table)
    for line in differences(results):
        console.print(line, style="yellow", markup=False, soft_wrap=True)


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
