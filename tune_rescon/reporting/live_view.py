"""The live table of a running search: a callback that redraws it, and the table itself."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from tune_rescon.config import TrialState, trial_name
from tune_rescon.errors import counted
from tune_rescon.reporting.events import STATE_STYLE, end_line, note_line, start_line
from tune_rescon.reporting.formatting import format_device_hours, format_number, format_speed, pairs, roughly
from tune_rescon.reporting.live_state import GaugeValues, LiveTotals, Snapshot
from tune_rescon.spaces import Space
from tune_rescon.tuning import ClusterSize, Gauges, SearchCallback, TrialRecord, Verdict

__all__ = ["ASCII", "BLOCKS", "LiveView", "SearchTable", "sparkline"]

#: Seconds between two redraws.
REDRAW_EVERY: Final = 0.25

#: Seconds after which the table shows that updates wait for MLflow. A healthy server needs some hundredths.
PENDING_TIMEOUT: Final = 2.0

#: Final states for which a line is printed. The many stopped trials are only counted in the table.
PRINTED_STATES: Final = frozenset(
    {TrialState.FINISHED, TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED}
)

_LOGGER = logging.getLogger(__name__)


class LiveView(SearchCallback):
    """A callback that redraws a table in place and prints the most important events as lines above it.

    Only the view's own thread writes to the terminal. A terminal that is gone, or that accepts no output
    (Ctrl-S), blocks no other thread: events are stored and drawn as soon as possible.

    A line is printed for a trial that reached the last epoch, diverged, ran out of memory or failed, with its
    error; for a trial that starts again because its worker died; for each note and each message.
    """

    def __init__(self, console: Console, space: Space, *, name: str) -> None:
        """Prepare to draw the search ``name`` of ``space`` on ``console``, once the view is entered."""
        self._console, self._state = console, LiveTotals(space, name)
        # Held only while the state is changed or copied, never while it is drawn.
        self._lock = threading.Lock()
        self._lines: deque[Text] = deque()
        self._gauges: Gauges | None = None
        self._queue_empty_at = time.monotonic()
        self._is_started = False
        self._closing = threading.Event()
        # Transient, because the table of the result replaces it.
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._thread = threading.Thread(target=self._run, name="live-view")

    def __enter__(self) -> Self:
        """Start drawing."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the table, print the remaining lines, and release the terminal."""
        self._closing.set()
        self._thread.join()
        self._print_lines()

    def show_message(self, text: str) -> None:
        """Print ``text`` above the table or, after the table was removed, in its place."""
        self._lines.append(Text(text))
        if self._closing.is_set() and not self._thread.is_alive():
            self._print_lines()

    def on_start(self, gauges: Gauges) -> None:
        """Show the values of ``gauges`` from now on."""
        self._gauges = gauges

    @override
    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        with self._lock:
            self._state.on_search_start(trials)
        self._is_started = True

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        with self._lock:
            is_restart = self._state.on_trial_start(trial, time.monotonic())
        if is_restart:
            self._add_line(start_line(trial, promoted=False))

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        self._add_line(note_line(trial, text))

    @override
    def on_progress(self, trial: TrialRecord, share: float) -> None:
        with self._lock:
            self._state.on_progress(trial, share)

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        del verdict
        with self._lock:
            self._state.on_epoch(trial, metrics, time.monotonic())

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        with self._lock:
            self._state.on_trial_end(trial)
        if trial.state in PRINTED_STATES:
            self._add_line(end_line(trial))
        if trial.error:
            self._lines.append(Text(trial.error.strip(), style="red"))

    def _add_line(self, markup: str) -> None:
        self._lines.append(Text.from_markup(markup, emoji=False))

    def _run(self) -> None:
        try:
            try:
                while not self._closing.wait(REDRAW_EVERY):
                    self._draw()
            finally:
                self._live.stop()
        except OSError as error:
            _LOGGER.warning("the terminal accepts no more output: %s", error)
        except Exception:
            # The search must continue even if the table cannot be drawn.
            _LOGGER.exception("the live table cannot be drawn any more")

    def _draw(self) -> None:
        """Print the new lines and draw the current table, in one write."""
        if self._is_started:
            gauge_values = self._gauge_values()
            with self._lock:
                snapshot = self._state.snapshot(gauge_values)
            self._live.start()
            self._live.update(SearchTable(snapshot))
        if not self._print_lines():
            self._live.refresh()

    def _print_lines(self) -> bool:
        """Print the stored lines, and return whether there were any.

        A line is not wrapped, so that it can be copied in one piece.
        """
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            self._console.print(*lines, sep="\n", soft_wrap=True)
        return bool(lines)

    def _gauge_values(self) -> GaugeValues:
        gauges, now = self._gauges, time.monotonic()
        if gauges is None:
            return GaugeValues()
        pending = gauges.waiting()
        if not pending:
            self._queue_empty_at = now
        return GaugeValues(
            slots=gauges.slots,
            seconds=math.inf if gauges.deadline is None else gauges.deadline - now,
            pending_updates=pending if now - self._queue_empty_at >= PENDING_TIMEOUT else 0,
            cluster=gauges.cluster(),
        )


#: Number of running trials that take precedence over the lines below the table.
FIRST_ROWS: Final = 3

#: Widths in characters of the optional columns: the curve and the speed, which get room in this order, and
#: the minimum for the parameters, which get the rest. Then the gap between two columns.
CURVE: Final = 12
SPEED: Final = 8
MIN_PARAMETERS: Final = 16
GAP: Final = 2


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Numbers of lines and widths of columns that fit the terminal."""

    rows: int
    """Number of running trials that are shown."""
    summary: int
    """Number of lines below the trials."""
    curve: int
    """Width of the column of curves in characters; 0: no such column. Likewise the next two fields."""
    speed: int
    parameters: int


def _fit(width: int, height: int, *, running: int, summary: int, fixed_width: int) -> _Layout:
    """Return the layout for a terminal of ``width`` x ``height`` characters.

    The title and the cursor need a line each. The table needs a line for its head and, if some trials are not
    shown, a line with their number.

    Args:
        width: width of the terminal in characters.
        height: height of the terminal in lines.
        running: number of running trials.
        summary: number of lines to show below the trials, the most important first.
        fixed_width: total width of the columns that are always shown, in characters.

    >>> _fit(80, 24, running=64, summary=5, fixed_width=30)
    _Layout(rows=15, summary=5, curve=12, speed=8, parameters=24)
    >>> _fit(40, 8, running=2, summary=5, fixed_width=30)
    _Layout(rows=2, summary=3, curve=0, speed=8, parameters=0)
    """
    lines = max(height - 2, 0)
    if width < fixed_width:
        return _Layout(rows=0, summary=min(summary, lines), curve=0, speed=0, parameters=0)
    first = min(running, FIRST_ROWS)
    table = 1 + first + (running > first) if running else 0
    shown = max(min(summary, lines - table), 0) if lines > table else min(summary, lines)
    rows = min(max(lines - shown - 1, 0), running)
    if rows < running:
        rows = max(rows - 1, 0)
    curve, speed, parameters = _columns(width - fixed_width)
    return _Layout(rows=rows, summary=shown, curve=curve, speed=speed, parameters=parameters)


def _columns(left: int) -> tuple[int, int, int]:
    curve = CURVE if left >= CURVE + GAP else 0
    left -= curve + GAP if curve else 0
    speed = SPEED if left >= SPEED + GAP else 0
    left -= speed + GAP if speed else 0
    return curve, speed, left - GAP if left >= MIN_PARAMETERS + GAP else 0


#: Characters that draw a value, the lowest first: block characters, or ASCII for a terminal without these.
BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.-~=+*#"


def sparkline(values: Sequence[float], width: int, *, ramp: str = BLOCKS) -> str:
    """Return a curve that is scaled from the lowest to the highest value.

    A value that is not finite is a gap. If there are more values than characters, each character shows the
    last value of a group, so that the last of all is always shown.

    Args:
        values: the values to draw.
        width: maximum number of characters.
        ramp: the characters that draw a value, the lowest first.

    >>> sparkline([0.1, 0.5, 0.3, 0.9], 8), sparkline([1, 2, 3, 4, 5, 6, 7, 8], 4)
    ('▁▅▃█', '▁▃▆█')
    >>> sparkline([0.5, float("nan"), 0.5], 8), sparkline([], 8)
    ('▅ ▅', '')
    """
    count = len(values)
    chosen = values if count <= width else [values[(i + 1) * count // width - 1] for i in range(width)]
    finite = [value for value in chosen if math.isfinite(value)]
    if not finite:
        return " " * len(chosen)
    # The values are halved, because the difference of the largest and the smallest float would overflow.
    low = min(finite) / 2
    span = max(finite) / 2 - low

    def character(value: float) -> str:
        if not math.isfinite(value):
            return " "
        height = (value / 2 - low) / span if span else 0.5
        return ramp[round(height * (len(ramp) - 1))]

    return "".join(map(character, chosen))


#: Minimum width of a title with a progress bar, in characters.
MIN_WITH_BAR: Final = 60

#: Widths of the columns of numbers and of values, in characters. A longer metric name widens the second up to
#: the maximum, because the name of a class may be longer than the terminal is wide.
NUMBER: Final = 5
VALUE: Final = 9
MAX_VALUE: Final = 24


class SearchTable:
    """A rich renderable that fits the terminal."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Render ``snapshot``."""
        self._snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the running trials, and below them the totals of the search."""
        snapshot = self._snapshot
        # A line of the full width would wrap on some terminals.
        width = options.max_width - 1
        summary = list(_summary_lines(snapshot))
        fixed_width = NUMBER + _epoch_width(snapshot) + _value_width(snapshot) + 2 * GAP
        running = len(snapshot.running)
        layout = _fit(width, console.height, running=running, summary=len(summary), fixed_width=fixed_width)
        ramp = ASCII if options.ascii_only else BLOCKS
        table = list(_trials(snapshot, layout, ramp=ramp)) if layout.rows else []
        # Four lines: the title, the cursor, and two blank lines around the table.
        space = [Text()] if len(table) + layout.summary + 4 <= console.height else []
        yield from space
        yield _title(snapshot, width)
        yield from table
        yield from space
        label = max(len(name) for name, _ in summary)
        for name, text in summary[: layout.summary]:
            yield _line([(Text(name, style="dim"), label, False), (text, width - label - GAP, False)])


def _epoch_width(snapshot: Snapshot) -> int:
    # The progress of a long epoch is shown in tenths.
    tenths = len(".0") if snapshot.shares else 0
    return max(len("epoch"), len(f"{snapshot.last_epoch}/{snapshot.last_epoch}") + tenths)


def _value_width(snapshot: Snapshot) -> int:
    return min(max(VALUE, len(snapshot.metric)), MAX_VALUE)


def _title(snapshot: Snapshot, width: int) -> RenderableType:
    progress_text = f"{snapshot.done} of {counted(snapshot.total, 'trial')} ended"
    if snapshot.seconds_left is not None and snapshot.done < snapshot.total:
        progress_text += f", {roughly(snapshot.seconds_left)} left"
    name = min(cell_len(snapshot.name), width // 3)
    title, progress = Text(snapshot.name, style="bold"), Text(progress_text)
    if width < MIN_WITH_BAR:
        return _line([(title, name, False), (progress, width - name - GAP, False)])
    bar = width // 4
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for characters in (name, bar, width - name - bar - 2 * GAP):
        grid.add_column(width=characters, no_wrap=True, overflow="ellipsis")
    ended = ProgressBar(
        total=snapshot.total, completed=snapshot.done, complete_style="cyan", finished_style="green"
    )
    grid.add_row(title, ended, progress)
    return grid


def _trials(snapshot: Snapshot, layout: _Layout, *, ramp: str) -> Iterator[Text]:
    # Plain lines, because a rich table of 40 rows took four times as long to draw.
    columns = [
        ("trial", NUMBER, True),
        ("epoch", _epoch_width(snapshot), True),
        (snapshot.metric, _value_width(snapshot), True),
        ("curve", layout.curve, False),
        ("images/s", layout.speed, True),
        ("parameters", layout.parameters, False),
    ]
    shown = [column for column in columns if column[1]]
    yield _line([(Text(name, style="dim"), width, right) for name, width, right in shown])
    for trial in snapshot.running[: layout.rows]:
        cells = _cells(snapshot, trial, layout, ramp)
        yield _line([(cell, width, right) for cell, (_, width, right) in zip(cells, shown, strict=True)])
    hidden = len(snapshot.running) - layout.rows
    if hidden:
        yield Text(f"{'':{NUMBER}}  and {hidden} more running", style="dim")


def _line(cells: Sequence[tuple[Text, int, bool]]) -> Text:
    """Join cells, each a text, its width and whether it is aligned right. A longer text is truncated."""
    for text, width, is_right in cells:
        text.truncate(max(width, 1), overflow="ellipsis")
        missing = max(width - text.cell_len, 0)
        if is_right:
            text.pad_left(missing)
        elif text is not cells[-1][0]:
            text.pad_right(missing)
    line = Text(" " * GAP, no_wrap=True).join(text for text, _, _ in cells)
    line.no_wrap = True
    return line


def _cells(snapshot: Snapshot, trial: TrialRecord, layout: _Layout, ramp: str) -> Iterator[Text]:
    yield Text(f"{trial.number:04d}", style=STATE_STYLE[TrialState.RUNNING])
    share = snapshot.shares.get(trial.number)
    epochs = str(trial.epochs) if share is None else f"{trial.epochs + min(share, 0.9):.1f}"
    yield Text(f"{epochs}/{snapshot.last_epoch}")
    yield Text(format_number(trial.last_value))
    if layout.curve:
        yield Text(sparkline(trial.curve, layout.curve, ramp=ramp), style="green")
    if layout.speed:
        speed = snapshot.speeds.get(trial.number, math.nan)
        yield Text(format_speed(speed) if math.isfinite(speed) else "-")
    if layout.parameters:
        yield Text(pairs(trial.parameters), style="dim")


def _summary_lines(snapshot: Snapshot) -> Iterator[tuple[str, Text]]:
    """Yield the lines below the table, the most important first."""
    if snapshot.best is not None:
        yield "Best", _best(snapshot.best)
    if snapshot.pending_updates:
        yield "MLflow", Text(f"{snapshot.pending_updates} waiting", style="yellow")
    if snapshot.rungs:
        rungs = (f"{rung.continued} of {rung.reached} after {rung.epoch}" for rung in snapshot.rungs)
        unit = "epochs" if snapshot.rungs[-1].epoch > 1 else "epoch"
        yield "Promoted", Text(f"{', '.join(rungs)} {unit}")
    yield "Used", Text(f"{format_device_hours(snapshot.hours)} reserved{_pace(snapshot)}")
    if snapshot.ended:
        yield "Completed", _ended_states(snapshot)


def _best(best: TrialRecord) -> Text:
    return Text.assemble(
        (trial_name(best.number), "bold"),
        f": {best.metric} ",
        (format_number(best.value), "bold"),
        f" after epoch {best.value_epoch}, ",
        (best.state.value, STATE_STYLE[best.state]),
    )


def _pace(snapshot: Snapshot) -> str:
    speeds = [value for value in snapshot.speeds.values() if math.isfinite(value)]
    text = f"; now {format_speed(math.fsum(speeds))} images/s" if speeds else ""
    return f"{text} on {_cluster(snapshot.cluster)}" if snapshot.cluster else text


def _cluster(size: ClusterSize) -> str:
    devices = counted(size.gpus, "GPU") if size.gpus else counted(size.cpus, "CPU")
    return f"{counted(size.nodes, 'node')}, {devices}"


def _ended_states(snapshot: Snapshot) -> Text:
    counts = sorted(snapshot.ended.items(), key=lambda item: -item[1])
    return Text(", ").join(
        Text.assemble(f"{count} ", (state.value.replace("_", " "), STATE_STYLE[state]))
        for state, count in counts
    )
