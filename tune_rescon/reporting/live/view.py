"""Draw the table of a running search on the terminal."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text
from typing_extensions import override

from tune_rescon.config import TrialState
from tune_rescon.reporting.events import end_line, note_line, start_line
from tune_rescon.reporting.live.rendering import SearchTable
from tune_rescon.reporting.live.state import LiveTotals, Reading
from tune_rescon.spaces import Space
from tune_rescon.tuning import Gauges, SearchCallback, TrialRecord, Verdict

__all__ = ["LiveView"]

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
        """Prepare to draw the search ``name`` of ``space`` on ``console``.

        Drawing begins when the view is entered.

        Args:
            console: the console of the terminal.
            space: the space of the search.
            name: the name of the search.
        """
        self._console = console
        self._state = LiveTotals(space, name)
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
        """Show the table."""
        with self._lock:
            self._state.on_search_start(trials)
        self._begun = True

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        """Add the trial's row."""
        with self._lock:
            again = self._state.on_trial_start(trial, time.monotonic())
        if again:
            self._add_line(start_line(trial, promoted=False))

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        """Print the note as a line."""
        self._add_line(note_line(trial, text))

    @override
    def on_progress(self, trial: TrialRecord, share: float) -> None:
        """Update the trial's epoch."""
        with self._lock:
            self._state.on_progress(trial, share)

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Update the trial's row."""
        del verdict
        with self._lock:
            self._state.on_epoch(trial, metrics, time.monotonic())

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        """Remove the trial's row."""
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
