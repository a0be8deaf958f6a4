"""The table at a search's end, and where everything is."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune_rescon.reporting.events import STATE_STYLE
from tune_rescon.reporting.formatting import duration, foreign_words, format_number, value_words
from tune_rescon.reporting.rows import headings, ranked, row
from tune_rescon.tuning import StudyResult

__all__ = ["print_left_over", "print_result", "result_table"]

#: Rows of the table at most; trials.csv has them all.
ROWS: Final = 20


#: Columns a narrow terminal goes without, the first of them first; after them, parameters from the right.
SPARE: Final = ("hours", "params M", "best", "GMACs")

#: Characters of a column's frame: a line and two spaces.
FRAME: Final = 3


def result_table(result: StudyResult, *, width: int) -> Table:
    """The best trials, :data:`ROWS` at most, with the columns that ``width`` characters have room for."""
    names = [heading.replace("_", " ") for heading in headings(result)]
    best = ranked(result)[:ROWS]
    rows = [row(result, trial) for trial in best]
    widths = [_width(name, (cells[i] for cells in rows)) for i, name in enumerate(names)]
    shown = _fitting(dict(zip(names, widths, strict=True)), width)
    table = Table(title=f"{result.name}: {len(result.trials)} trials", title_justify="left")
    columns = [i for i, name in enumerate(names) if name in shown]
    for i in columns:
        table.add_column(names[i], justify="left" if names[i] == "state" else "right", width=widths[i])
    for trial, cells in zip(best, rows, strict=True):
        styles = {1: STATE_STYLE[trial.state]}
        table.add_row(*(Text(cells[i], style=styles.get(i, "")) for i in columns))
    return table


def _width(name: str, cells: Iterable[str]) -> int:
    """A column's characters: its cells are never broken, its heading is between words."""
    return max(*map(len, name.split()), *map(len, cells), 0)


def _fitting(widths: Mapping[str, int], available: int) -> set[str]:
    """Names of the columns to show: all that have room, but at least a trial's fate and value."""
    always = list(widths)[:4]
    rest = [name for name in widths if name not in always and name not in SPARE]
    shown = dict(widths)
    for name in (*SPARE, *reversed(rest)):
        if sum(shown.values()) + FRAME * len(shown) < available:
            break
        shown.pop(name, None)
    return set(shown)


def print_result(result: StudyResult, console: Console) -> None:
    """The table, what became of the trials, the winner, and where the report, the files and MLflow are."""
    table = result_table(result, width=console.width)
    console.print(table)
    if table.row_count < len(result.trials) or len(table.columns) < len(headings(result)):
        console.print(f"All of it: {result.folder / 'trials.csv'}", markup=False, soft_wrap=True)
    fates = Counter(trial.state.value for trial in result.trials)
    spent = sum(result.compute_hours(trial) for trial in result.trials)
    console.print(", ".join(f"{count} {state}" for state, count in fates.most_common()), end="; ")
    console.print(f"{duration(spent * 3600)} of {result.device} time")
    if result.failure is not None:
        console.print(result.failure, style="red", markup=False, soft_wrap=True)
    if result.best is not None:
        best = result.best
        console.print(
            f"Best: trial_{best.number:04d}, {value_words(best)}",
            soft_wrap=True,
        )
    if result.front:
        console.print(_front(result), soft_wrap=True)
    if result.foreign:
        console.print(foreign_words(result.foreign), soft_wrap=True)
    files = f"{result.url} (here: {result.folder})" if result.url else result.folder
    console.print(f"Files:  {files}", markup=False, soft_wrap=True)
    console.print(f"Report: {result.folder / 'report.html'}", markup=False, soft_wrap=True)
    console.print(f"MLflow: {_view(result.tracking_uri)}", markup=False, soft_wrap=True)
    events = result.folder / "tensorboard"
    if events.is_dir():
        console.print(f"TensorBoard: tensorboard --logdir {events}", markup=False, soft_wrap=True)


def print_left_over(result: StudyResult, console: Console, *, sync: str) -> None:
    """What MLflow, and a storage at a URL, did not take in time; nothing if they took all.

    Args:
        result: of a search that has ended.
        console: what to print to.
        sync: the command that sends MLflow the rest.
    """
    if result.unsent:
        why = f": {result.unsent_reason.rstrip('.')}" if result.unsent_reason else " in time"
        console.print(
            f"MLflow did not take {result.unsent} updates{why}; the study has them all. Send them by: {sync}",
            markup=False,
            soft_wrap=True,
        )
    if result.unkept:
        console.print(
            f"{result.url} lacks the last {result.unkept} changes: --resume on this machine sends them."
        )


def _front(result: StudyResult) -> str:
    """The Pareto front, the cheapest first."""
    points = (
        f"trial_{trial.number:04d} {format_number(trial.value)} at {format_number(result.cost(trial))}"
        for trial in result.front
    )
    return f"Front of {result.metric} against {result.against}: {', '.join(points)}"


def _view(uri: str) -> str:
    """How to look at the runs: a server is there already, a database needs one."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
