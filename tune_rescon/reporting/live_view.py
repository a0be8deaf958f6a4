"""The live table of a running search: a callback that redraws it, and the table itself."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
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
from tune_rescon.reporting.formatting import format_hours, format_number, pairs, roughly
from tune_rescon.reporting.live_state import LiveTotals, Reading, Snapshot
from tune_rescon.spaces import Space
from tune_rescon.tuning import ClusterSize, Gauges, SearchCallback, TrialRecord, Verdict

__all__ = ["ASCII", "BLOCKS", "LiveView", "SearchTable", "sparkline"]

#: Seconds between two redraws.
REDRAW_EVERY: Final = 0.25

#: Seconds an update must wait for MLflow before the table shows it; a healthy server needs some hundredths.
TIMEOUT: Final = 2.0

#: Final states that are printed as a line. The many trials that a rung stopped are counted in the table.
TOLD: Final = frozenset(
    {TrialState.FINISHED, TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED}
)

_LOGGER = logging.getLogger(__name__)


class LiveView(SearchCallback):
    """A callback that redraws a table in place and prints the most important events as lines above it.

    Only the view's own thread writes to the terminal. If the terminal accepts no output (Ctrl-S), or is gone,
    no other thread is blocked: events are stored and drawn at the next opportunity.

    Lines are printed for a trial that reached the last epoch, diverged, ran out of memory or failed, with its
    error; for a trial that starts again because its worker died; for notes; and for the text of :meth:`say`.
    """

    def __init__(self, console: Console, space: Space, *, name: str) -> None:
        """Prepare to draw the search ``name`` of ``space`` on ``console``, once the view is entered."""
        self._console, self._state = console, LiveTotals(space, name)
        # Held only while the state is changed or copied, never while it is drawn.
        self._lock = threading.Lock()
        self._lines: deque[Text] = deque()
        self._gauges: Gauges | None = None
        self._queue_empty_at = time.monotonic()
        self._begun = False
        self._closing = threading.Event()
        # transient, because the table of the result replaces it.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the table, print the remaining lines, and release the terminal."""
        self._closing.set()
        self._thread.join()
        self._print_lines()

    def say(self, text: str) -> None:
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
        self._begun = True

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        with self._lock:
            again = self._state.on_trial_start(trial, time.monotonic())
        if again:
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
        if trial.state in TOLD:
            self._add_line(end_line(trial))
        if trial.error:
            self._lines.append(Text(trial.error.strip(), style="red"))

    def _add_line(self, markup: str) -> None:
        self._lines.append(Text.from_markup(markup))

    def _run(self) -> None:
        try:
            try:
                while not self._closing.wait(REDRAW_EVERY):
                    self._draw()
            finally:
                self._live.stop()
        except OSError as error:
            _LOGGER.warning("the terminal takes nothing any more: %s", error)
        except Exception:
            # The search must continue even if the table cannot be drawn.
            _LOGGER.exception("the live table ends here")

    def _draw(self) -> None:
        """Print the new lines and draw the current table, in one write."""
        if self._begun:
            reading = self._read()
            with self._lock:
                seen = self._state.snapshot(reading)
            self._live.start()
            self._live.update(SearchTable(seen))
        if not self._print_lines():
            self._live.refresh()

    def _print_lines(self) -> bool:
        """Print the stored lines and return whether there were any.

        The lines are not wrapped, so that each can be copied as a whole.
        """
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            self._console.print(*lines, sep="\n", soft_wrap=True)
        return bool(lines)

    def _read(self) -> Reading:
        gauges, now = self._gauges, time.monotonic()
        if gauges is None:
            return Reading()
        pending = gauges.waiting()
        if not pending:
            self._queue_empty_at = now
        return Reading(
            slots=gauges.slots,
            seconds=math.inf if gauges.deadline is None else gauges.deadline - now,
            pending_updates=pending if now - self._queue_empty_at >= TIMEOUT else 0,
            cluster=gauges.cluster(),
        )


#: Running trials that take precedence over the lines below the table.
FIRST_ROWS: Final = 3

#: Columns and their widths in characters, in the order in which they get room; parameters use the rest.
PARAMETERS_FROM: Final = 16
CURVE: Final = 12
SPEED: Final = 8
GAP: Final = 2


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The number of lines and the widths of columns that fit the terminal."""

    rows: int
    """Number of running trials shown."""
    facts: int
    """Number of lines shown below the trials."""
    curve: int
    """Width of the curve's column in characters; 0: no such column. Likewise for the next two fields."""
    speed: int
    parameters: int


def _fit(width: int, height: int, *, running: int, facts: int, always: int) -> _Layout:
    """Return the layout for a terminal of ``width`` x ``height`` characters.

    Two lines are reserved for the title and the cursor. The table needs one for its head and, if not all
    trials are shown, one that counts the others.

    Args:
        width: width of the terminal in characters.
        height: height of the terminal in lines.
        running: number of running trials.
        facts: number of lines to show below the trials, the most important first.
        always: total width of the columns that are never left out, in characters.

    >>> _fit(80, 24, running=64, facts=5, always=30)
    _Layout(rows=15, facts=5, curve=12, speed=8, parameters=24)
    >>> _fit(40, 8, running=2, facts=5, always=30)
    _Layout(rows=2, facts=3, curve=0, speed=8, parameters=0)
    """
    lines = max(height - 2, 0)
    if width < always:
        return _Layout(rows=0, facts=min(facts, lines), curve=0, speed=0, parameters=0)
    first = min(running, FIRST_ROWS)
    table = 1 + first + (running > first) if running else 0
    shown = max(min(facts, lines - table), 0) if lines > table else min(facts, lines)
    rows = min(max(lines - shown - 1, 0), running)
    if rows < running:
        rows = max(rows - 1, 0)
    curve, speed, parameters = _columns(width - always)
    return _Layout(rows=rows, facts=shown, curve=curve, speed=speed, parameters=parameters)


def _columns(left: int) -> tuple[int, int, int]:
    curve = CURVE if left >= CURVE + GAP else 0
    left -= curve + GAP if curve else 0
    speed = SPEED if left >= SPEED + GAP else 0
    left -= speed + GAP if speed else 0
    return curve, speed, left - GAP if left >= PARAMETERS_FROM + GAP else 0


#: Characters that draw a value, the lowest first: eighths of a line, or characters that every terminal has.
BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.-~=+*#"


def sparkline(values: Sequence[float], width: int, *, ramp: str = BLOCKS) -> str:
    """Return a curve of at most ``width`` characters, scaled from the lowest to the highest value.

    A value that is not finite is drawn as a gap. If there are more values than characters, each character
    shows the last of its group of values, so that the last value is always shown. ``ramp`` has the characters
    that draw a value, the lowest first.

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
    # Halve the values, because the span of the largest and the smallest float would overflow.
    low = min(finite) / 2
    span = max(finite) / 2 - low

    def character(value: float) -> str:
        if not math.isfinite(value):
            return " "
        height = (value / 2 - low) / span if span else 0.5
        return ramp[round(height * (len(ramp) - 1))]

    return "".join(map(character, chosen))


#: Minimum width of the title, in characters, with a progress bar; a bar in a narrower title is too short.
BAR_FROM: Final = 60

#: Widths of a trial's number and of a value, in characters; a longer metric name widens the value's column.
NUMBER: Final = 5
VALUE: Final = 9


class SearchTable:
    """A rich renderable as large as the terminal has room for."""

    def __init__(self, seen: Snapshot) -> None:
        """Render ``seen``."""
        self._seen = seen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the running trials, and below them the totals of the search."""
        seen = self._seen
        # Some terminals wrap a line that fills their width.
        width = options.max_width - 1
        facts = list(_facts(seen))
        always = NUMBER + _epoch_wide(seen) + _value_wide(seen) + 2 * GAP
        layout = _fit(width, console.height, running=len(seen.running), facts=len(facts), always=always)
        table = (
            list(_trials(seen, layout, ramp=ASCII if options.ascii_only else BLOCKS)) if layout.rows else []
        )
        # Four lines: the title, the cursor, and two blank lines around the table.
        space = [Text()] if len(table) + layout.facts + 4 <= console.height else []
        yield from space
        yield _title(seen, width)
        yield from table
        yield from space
        label = max(len(name) for name, _ in facts)
        for name, text in facts[: layout.facts]:
            yield _line([(Text(name, style="dim"), label, False), (text, width - label - GAP, False)])


def _epoch_wide(seen: Snapshot) -> int:
    # An unfinished epoch counts by its tenths.
    tenths = len(".0") if seen.shares else 0
    return max(len("epoch"), len(f"{seen.last_epoch}/{seen.last_epoch}") + tenths)


def _value_wide(seen: Snapshot) -> int:
    return max(VALUE, len(seen.metric))


def _title(seen: Snapshot, width: int) -> RenderableType:
    progress_text = f"{seen.done} of {counted(seen.total, 'trial')} ended"
    if seen.seconds_left is not None and seen.done < seen.total:
        progress_text += f", {roughly(seen.seconds_left)} left"
    name = min(cell_len(seen.name), width // 3)
    bar = width // 4 if width >= BAR_FROM else 0
    if not bar:
        return _line(
            [(Text(seen.name, style="bold"), name, False), (Text(progress_text), width - name - GAP, False)]
        )
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for characters in (name, bar, width - name - bar - 2 * GAP):
        grid.add_column(width=characters, no_wrap=True, overflow="ellipsis")
    progress = ProgressBar(
        total=seen.total, completed=seen.done, complete_style="cyan", finished_style="green"
    )
    grid.add_row(Text(seen.name, style="bold"), progress, Text(progress_text))
    return grid


def _trials(seen: Snapshot, layout: _Layout, *, ramp: str) -> Iterator[Text]:
    # Built as plain lines, because a rich table of 40 rows took four times as long to draw.
    columns = [
        ("trial", NUMBER, True),
        ("epoch", _epoch_wide(seen), True),
        (seen.metric, _value_wide(seen), True),
        ("curve", layout.curve, False),
        ("images/s", layout.speed, True),
        ("parameters", layout.parameters, False),
    ]
    shown = [column for column in columns if column[1]]
    yield _line([(Text(name, style="dim"), width, right) for name, width, right in shown])
    for trial in seen.running[: layout.rows]:
        cells = _cells(seen, trial, layout, ramp)
        yield _line([(cell, width, right) for cell, (_, width, right) in zip(cells, shown, strict=True)])
    hidden = len(seen.running) - layout.rows
    if hidden:
        yield Text(f"{'':{NUMBER}}  and {hidden} more running", style="dim")


def _line(cells: Sequence[tuple[Text, int, bool]]) -> Text:
    """Join cells with gaps. Each cell is truncated or padded to its width, and aligned left or right."""
    for text, width, right in cells:
        text.truncate(max(width, 1), overflow="ellipsis")
        missing = max(width - text.cell_len, 0)
        if right:
            text.pad_left(missing)
        elif text is not cells[-1][0]:
            text.pad_right(missing)
    line = Text(" " * GAP, no_wrap=True).join(text for text, _, _ in cells)
    line.no_wrap = True
    return line


def _cells(seen: Snapshot, trial: TrialRecord, layout: _Layout, ramp: str) -> Iterator[Text]:
    yield Text(f"{trial.number:04d}", style=STATE_STYLE[TrialState.RUNNING])
    share = seen.shares.get(trial.number)
    epochs = str(trial.epochs) if share is None else f"{trial.epochs + min(share, 0.9):.1f}"
    yield Text(f"{epochs}/{seen.last_epoch}")
    yield Text(format_number(trial.last_value))
    if layout.curve:
        yield Text(sparkline(trial.curve, layout.curve, ramp=ramp), style="green")
    if layout.speed:
        speed = seen.speeds.get(trial.number, math.nan)
        yield Text(f"{speed:,.0f}" if math.isfinite(speed) else "-")
    if layout.parameters:
        yield Text(pairs(trial.parameters), style="dim")


def _facts(seen: Snapshot) -> Iterator[tuple[str, Text]]:
    """Yield the lines below the table, the most important first."""
    if seen.best is not None:
        yield "Best", _best(seen.best)
    if seen.pending_updates:
        yield "MLflow", Text(f"{seen.pending_updates} waiting", style="yellow")
    if seen.rungs:
        counts = ", ".join(f"{rung.continued} of {rung.reached} after {rung.epoch}" for rung in seen.rungs)
        yield "Promoted", Text(f"{counts} epochs" if seen.rungs[-1].epoch > 1 else f"{counts} epoch")
    yield "Used", Text(f"{format_hours(seen.hours)} reserved{_pace(seen)}")
    if seen.ended:
        yield "Completed", _ended_states(seen)


def _best(best: TrialRecord) -> Text:
    return Text.assemble(
        (trial_name(best.number), "bold"),
        f": {best.metric} ",
        (format_number(best.value), "bold"),
        f" after epoch {best.value_epoch}, ",
        (best.state.value, STATE_STYLE[best.state]),
    )


def _pace(seen: Snapshot) -> str:
    speeds = [value for value in seen.speeds.values() if math.isfinite(value)]
    text = f"; now {math.fsum(speeds):,.0f} images/s" if speeds else ""
    return f"{text} on {_cluster(seen.cluster)}" if seen.cluster else text


def _cluster(size: ClusterSize) -> str:
    devices = f"{size.gpus:g} GPU" if size.gpus else f"{size.cpus:g} CPU"
    count = size.gpus or size.cpus
    return f"{size.nodes} node{'s' * (size.nodes != 1)}, {devices}{'s' * (count != 1)}"


def _ended_states(seen: Snapshot) -> Text:
    counts = sorted(seen.ended.items(), key=lambda item: -item[1])
    return Text(", ").join(
        Text.assemble(f"{count} ", (state.value.replace("_", " "), STATE_STYLE[state]))
        for state, count in counts
    )
