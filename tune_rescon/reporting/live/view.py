"""Keeps the table of a running search on the terminal."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text
from typing_extensions import override

from tune_rescon.config import TrialState
from tune_rescon.reporting.events import end_line, note_line, start_line
from tune_rescon.reporting.live.rendering import SearchTable
from tune_rescon.reporting.live.state import Reading, SearchState
from tune_rescon.spaces import Space
from tune_rescon.tuning import Gauges, SearchListener, TrialRecord, Verdict

__all__ = ["LiveView"]

#: Seconds between two drawings.
REDRAW_EVERY: Final = 0.25

#: Seconds MLflow has to keep an update waiting before that is said: a healthy one takes some hundredths.
PATIENCE: Final = 2.0

#: Ends that deserve a line of their own. The many that a rung stopped are counted in the table.
TOLD: Final = frozenset(
    {TrialState.FINISHED, TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED}
)

_LOGGER = logging.getLogger(__name__)


class LiveView(SearchListener):
    """A listener that draws: a table in place, and above it a line for whatever must not scroll out of sight.

    Only its own thread touches the terminal. A terminal that takes nothing (Ctrl-S), or is gone, holds up
    nobody else: what happens is noted, and drawn at the next occasion.

    These get a line: a trial that reached the last epoch, diverged, ran out of memory or failed, with its
    error; one that begins again because its worker died; notes; and what :meth:`say` is given.
    """

    def __init__(
        self, console: Console, space: Space, *, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Draw the search ``name`` of ``space`` on ``console``, once entered; ``clock`` counts seconds."""
        self._console = console
        self._clock = clock
        self._state = SearchState(space, name)
        # Held for as long as it takes to change or copy the state, never while anything is drawn.
        self._lock = threading.Lock()
        self._lines: deque[Text] = deque()
        self._gauges: Gauges | None = None
        self._queue_empty_at = clock()
        self._begun = False
        self._closing = threading.Event()
        # transient: the result's table follows it.
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
        """Begin to draw."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the table away, print the lines that are left, and give the terminal back."""
        self._closing.set()
        self._thread.join()
        self._print_lines()

    def say(self, text: str) -> None:
        """Print ``text`` above the table; once that has been taken away, where it was."""
        self._lines.append(Text(text))
        if self._closing.is_set() and not self._thread.is_alive():
            self._print_lines()

    def attend(self, gauges: Gauges) -> None:
        """Show what ``gauges`` say from now on."""
        self._gauges = gauges

    @override
    def search_started(self, trials: Sequence[TrialRecord]) -> None:
        """The table appears."""
        with self._lock:
            self._state.search_started(trials)
        self._begun = True

    @override
    def trial_started(self, trial: TrialRecord) -> None:
        """Another row."""
        with self._lock:
            again = self._state.trial_started(trial, self._clock())
        if again:
            self._tell(start_line(trial, promoted=False))

    @override
    def trial_noted(self, trial: TrialRecord, text: str) -> None:
        """A line."""
        self._tell(note_line(trial, text))

    @override
    def epoch_done(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """A row changes."""
        del verdict
        with self._lock:
            self._state.epoch_done(trial, metrics, self._clock())

    @override
    def trial_ended(self, trial: TrialRecord) -> None:
        """A row less."""
        with self._lock:
            self._state.trial_ended(trial)
        if trial.state in TOLD:
            self._tell(end_line(trial))
        if trial.error:
            self._lines.append(Text(trial.error.strip(), style="red"))

    def _tell(self, markup: str) -> None:
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
            # The search is worth more than its picture.
            _LOGGER.exception("the live table ends here")

    def _draw(self) -> None:
        """The lines that came and the table as it is now, in one go."""
        if self._begun:
            reading = self._read()
            with self._lock:
                seen = self._state.snapshot(reading)
            self._live.start()
            self._live.update(SearchTable(seen))
        if not self._print_lines():
            self._live.refresh()

    def _print_lines(self) -> bool:
        """Whether there were any. Unwrapped: each can be copied as a whole."""
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            self._console.print(*lines, sep="\n", soft_wrap=True)
        return bool(lines)

    def _read(self) -> Reading:
        gauges, now = self._gauges, self._clock()
        if gauges is None:
            return Reading()
        waiting = gauges.waiting()
        if not waiting:
            self._queue_empty_at = now
        return Reading(
            slots=gauges.slots,
            seconds=math.inf if gauges.deadline is None else gauges.deadline - now,
            waiting=waiting if now - self._queue_empty_at >= PATIENCE else 0,
            cluster=gauges.cluster(),
        )
