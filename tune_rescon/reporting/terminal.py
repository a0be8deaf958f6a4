"""The terminal: a console that prints while standard output is redirected, and the tables of searches."""

from __future__ import annotations

import io
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleDimensions, JustifyMethod
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from tune_rescon.config import trial_name
from tune_rescon.errors import counted, hide_passwords
from tune_rescon.reporting.events import STATE_STYLE
from tune_rescon.reporting.formats import (
    COMPARISON_HEADINGS,
    comparison_row,
    differences,
    headings,
    ranked,
    row,
)
from tune_rescon.reporting.formatting import (
    command_for,
    duration,
    foreign_message,
    format_device_hours,
    format_number,
    value_text,
)
from tune_rescon.reporting.hours import reserved_hours
from tune_rescon.reporting.summary import winner_messages
from tune_rescon.spaces import Space
from tune_rescon.storage import StorageUrl
from tune_rescon.tuning import SearchState, StudyResult
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.options import RunOptions

if TYPE_CHECKING:
    # Its module imports SQLAlchemy, which only `report --list` needs.
    from tune_rescon.tuning import SearchOverview

__all__ = [
    "PIPE_WIDTH",
    "ROWS",
    "open_console",
    "opening_line",
    "print_comparison",
    "print_opening",
    "print_overviews",
    "print_pending",
    "print_result",
    "result_table",
]

#: Width of a line, in characters, where the output is not a terminal.
PIPE_WIDTH: Final = 250

#: The assumed size of a terminal that does not report its size, or has been closed.
DEFAULT_SIZE: Final = ConsoleDimensions(80, 25)

STDOUT: Final = 1

_LOGGER: Final = logging.getLogger(__name__)


@contextmanager
def open_console(*, plain: bool) -> Iterator[Console]:
    """Yield a console that writes to its own file descriptor.

    While trials run, standard output is redirected to the search's log
    (:mod:`tune_rescon.tuning.ray.log_redirect`), so that the output of Ray's C++ code does not appear among
    the user's lines.

    Args:
        plain: True to print without colours, to wrap no line, and to redraw nothing in place. Output that
            does not go to a terminal is always printed this way.
    """
    no_color = True if plain else None
    if not _is_real(STDOUT):
        # A test or a notebook in this process captures standard output.
        yield Console(
            no_color=no_color, force_interactive=False, highlight=False, emoji=False, width=PIPE_WIDTH
        )
        return
    raw = os.fdopen(os.dup(STDOUT), "wb")
    with _LossyFile(raw, encoding=sys.stdout.encoding, errors="replace") as file:
        if file.isatty() and not plain:
            yield _TerminalConsole(file=file, highlight=False, emoji=False)
        else:
            # Not interactive, even if FORCE_COLOR or TTY_INTERACTIVE is set.
            yield Console(
                file=file,
                no_color=no_color,
                force_interactive=False,
                highlight=False,
                emoji=False,
                width=PIPE_WIDTH,
            )


def _is_real(descriptor: int) -> bool:
    try:
        return sys.stdout.fileno() == descriptor
    except (AttributeError, OSError):  # io.UnsupportedOperation is one of these
        return False


class _LossyFile(io.TextIOWrapper):
    """Drops output that cannot be written, so that a closed pipe or a full disk does not end the search."""

    _has_failed = False

    @override
    def write(self, text: str) -> int:
        """Write ``text``, unless an earlier write has failed."""
        self._unless_failed(lambda: super(_LossyFile, self).write(text))
        return len(text)

    @override
    def flush(self) -> None:
        """Flush, unless an earlier write has failed."""
        self._unless_failed(super().flush)

    @override
    def close(self) -> None:
        """Close the file; unwritten output may be lost."""
        with suppress(OSError):
            super().close()

    def _unless_failed(self, call: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            call()
        except OSError as error:
            self._has_failed = True
            _LOGGER.info("standard output accepts no more output: %s", error)


class _TerminalConsole(Console):
    """Gets the terminal's size from its own file. rich would use standard input, output and error."""

    @property
    @override
    def size(self) -> ConsoleDimensions:
        """The current size in characters. A closed terminal has the default size."""
        try:
            size = os.get_terminal_size(self.file.fileno())
        except OSError:
            return DEFAULT_SIZE
        return ConsoleDimensions(size.columns or DEFAULT_SIZE.width, size.lines or DEFAULT_SIZE.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError(f"a terminal's size is its own, not {new_size}")


def opening_line(space: Space, options: RunOptions) -> str:
    """Return a line that tells what is about to start, and where MLflow records it."""
    limit = space.budget.concurrent
    workers = "as many workers as fit" if limit is None else counted(limit, "worker")
    where = "Ray on this machine" if options.address is None else f"work on the Ray at {options.address}"
    return (
        f"{options.name}: preparing the data, then starting {where}, {workers}; MLflow at {_mlflow(options)}"
    )


def print_opening(space: Space, options: RunOptions, console: Console) -> None:
    """Print :func:`opening_line`, as one line on any terminal.

    Args:
        space: the space of the search.
        options: where the search runs and is stored.
        console: the console to print to.
    """
    console.print(hide_passwords(opening_line(space, options)), markup=False, soft_wrap=True)


def _mlflow(options: RunOptions) -> str:
    if options.tracking_uri is not None:
        return options.tracking_uri
    if isinstance(options.storage, StorageUrl):
        return f"{options.storage}/{options.name}"
    # The path of the file, not its URL: SQLAlchemy, which quotes URLs, takes long to import.
    return str(SearchFolder(storage=options.storage.resolve(), name=options.name).mlflow_db)


#: Maximum number of rows; trials.csv has every trial.
ROWS: Final = 20

#: Columns that a narrow terminal leaves out, in this order. Then it leaves out parameters, from the right.
OPTIONAL_COLUMNS: Final = ("hours", "params M", "best", "GMACs")

#: Characters of a column's frame: a line and two spaces.
FRAME: Final = 3


def result_table(result: StudyResult, *, width: int) -> Table:
    """Return a table of at most :data:`ROWS` best trials, with the columns that fit ``width`` characters."""
    names = [heading.replace("_", " ") for heading in headings(result)]
    best = ranked(result)[:ROWS]
    rows = [row(result, trial) for trial in best]
    widths = [_width(name, (cells[i] for cells in rows)) for i, name in enumerate(names)]
    fitting = _fitting_columns(dict(zip(names, widths, strict=True)), width)
    table = Table(title=f"{result.name}: {counted(len(result.trials), 'trial')}", title_justify="left")
    columns = [i for i, name in enumerate(names) if name in fitting]
    for i in columns:
        justify: JustifyMethod = "left" if names[i] == "state" else "right"
        table.add_column(Text(names[i]), justify=justify, width=widths[i])
    for trial, cells in zip(best, rows, strict=True):
        styles = {1: STATE_STYLE[trial.state]}
        table.add_row(*(Text(cells[i], style=styles.get(i, "")) for i in columns))
    return table


def _width(name: str, cells: Iterable[str]) -> int:
    """Return a column's width in characters, in which a heading may be wrapped, but no cell is."""
    return max(*map(len, name.split()), *map(len, cells), 0)


def _fitting_columns(widths: Mapping[str, int], available: int) -> set[str]:
    """Return the names of the columns that fit. The first four, up to the value, are always among them."""
    parameters = [name for name in list(widths)[4:] if name not in OPTIONAL_COLUMNS]
    fitting = dict(widths)
    for name in (*OPTIONAL_COLUMNS, *reversed(parameters)):
        if sum(fitting.values()) + FRAME * len(fitting) < available:
            break
        fitting.pop(name, None)
    return set(fitting)


def print_result(result: StudyResult, console: Console, *, from_record: bool = False) -> None:
    """Print the table, the trial states, the best trial, and where the report, files and MLflow are.

    Args:
        result: the result of the search.
        console: the console to print to.
        from_record: whether the result was read from the record. The files that a driver writes at the end of
            a search may then be missing or old. In their place, the command is printed that writes them.
    """
    table = result_table(result, width=console.width)
    console.print(table)
    if table.row_count < len(result.trials) or len(table.columns) < len(headings(result)):
        table_file = result.folder / "trials.csv"
        _print_line(console, f"All of it: {_output_file(result, '--csv') if from_record else table_file}")
    counts = Counter(trial.state.value for trial in result.trials)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    _print_line(console, f"{states}; {format_device_hours(reserved_hours(result))} reserved")
    if result.failure is not None:
        _print_line(console, result.failure, style="red")
    if result.best is not None:
        _print_line(console, f"Best: {trial_name(result.best.number)}, {value_text(result.best)}")
    for line in winner_messages(result):
        _print_line(console, line)
    if result.front:
        _print_line(console, _front_line(result))
    if result.foreign:
        _print_line(console, foreign_message(result.foreign))
    _print_line(
        console, f"Files:  {f'{result.url} (here: {result.folder})' if result.url else result.folder}"
    )
    page = _output_file(result, "--html") if from_record else result.folder / "report.html"
    _print_line(console, f"Report: {page}")
    _print_line(console, f"MLflow: {_mlflow_hint(result.tracking_uri)}")
    events = result.folder / "tensorboard"
    if events.is_dir():
        _print_line(console, f"TensorBoard: tensorboard --logdir {events}")


#: The files that a driver writes, by the flag with which `report` writes the same.
_OUTPUT_FILES: Final = {"--csv": "trials.csv", "--html": "report.html"}


def _output_file(result: StudyResult, flag: str) -> str:
    """Return where a file of the search is, or the command that writes it if the last run did not.

    A driver writes the table when the search ends, and the page every minute.
    """
    file = result.folder / _OUTPUT_FILES[flag]
    if result.url and result.has_outcome:
        # The folder has this machine's copies of the record only.
        return f"{result.url}/{file.name}"
    if not result.url and file.is_file() and (result.has_outcome or flag == "--html"):
        return str(file)
    command = command_for(result, "report", result.name)
    return f"{command} {flag}{' report.html' if flag == '--html' else ''}"


def _print_line(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line without wrapping it. Brackets in names of classes and paths are not markup."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def print_pending(result: StudyResult, console: Console, *, sync: str) -> None:
    """Print how many updates MLflow, or a storage at a URL, has not accepted; nothing if it has them all.

    Args:
        result: the result of a search that has ended.
        console: the console to print to.
        sync: the command that sends the pending updates to MLflow.
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


def _front_line(result: StudyResult) -> str:
    """Return a line with the Pareto front, the cheapest trial first."""
    points = (
        f"{trial_name(trial.number)} {format_number(trial.value)} at {format_number(result.cost(trial))}"
        for trial in result.front
    )
    return f"Front of {result.metric} against {result.against}: {', '.join(points)}"


def _mlflow_hint(uri: str) -> str:
    """Return how to view the runs: the URL of a server, or the command that shows a database."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


_STATE_STYLE: Final = {
    SearchState.RUNNING: "cyan",
    SearchState.FINISHED: "green",
    SearchState.INTERRUPTED: "blue",
    SearchState.FAILED: "red",
}


def print_overviews(overviews: Sequence[SearchOverview], console: Console, *, now: datetime) -> None:
    """Print a line for each search, then the problems of the searches.

    Args:
        overviews: the searches, in the order of the lines.
        console: the console to print to.
        now: the present time; a change is shown as the time since then.
    """
    table = Table(title="Searches", title_justify="left")
    for name in ("search", "state", "trials", "metric", "best", "changed"):
        right = name in ("trials", "best", "changed")
        # In a narrow terminal, only the names of metrics are cut off.
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "metric")
    for overview in overviews:
        state = overview.state
        table.add_row(
            # As Text, because a user may have renamed the folder to `a [old]`, which looks like markup.
            Text(overview.name),
            Text(state.value, style=_STATE_STYLE[state]) if state else Text("unreadable", style="red"),
            f"{overview.ended}/{overview.total}" if state else "-",
            Text(overview.metric),
            format_number(overview.best),
            _ago(overview.changed, now),
        )
    console.print(table)
    for overview in overviews:
        if overview.problem:
            _print_line(console, f"{overview.name}: {overview.problem}", style="red")


def print_comparison(results: Sequence[StudyResult], console: Console) -> None:
    """Print the searches side by side: a row for each, or a column if the terminal is too narrow for rows."""
    rows = [COMPARISON_HEADINGS, *map(comparison_row, results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sum(width + len(" | ") for width in widths) >= console.width:
        rows = list(zip(*rows, strict=True))
    table = Table(title="Compared", title_justify="left")
    for number, heading in enumerate(rows[0]):
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(Text(heading), justify=justify, overflow="fold")
    for cells in rows[1:]:
        table.add_row(*map(Text, cells))
    console.print(table)
    for line in differences(results):
        _print_line(console, line, style="yellow")


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
