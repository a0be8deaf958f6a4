"""report.html while the search runs: a browser that watches it sees a new one every minute.

What is drawn is taken on the search's thread, where the record may be read; drawing and writing happen on a
thread of their own, one page at a time, so that neither a slow disk nor an error is the search's trouble.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from typing_extensions import override

from tune_rescon.tuning import SearchListener, StudyResult, TrialSummary, Verdict

__all__ = ["LiveReport"]

#: Seconds from one page to the next.
INTERVAL: Final = 60.0

_LOGGER = logging.getLogger(__name__)


class LiveReport(SearchListener):
    """Asks for the search as it stands, and writes its page aside, at most every ``interval`` seconds.

    An event that comes too soon, or while a page is being written, writes none: there will be another, and
    the search's end has a page of its own. :meth:`close` before that.
    """

    def __init__(
        self,
        snapshot: Callable[[], StudyResult],
        write: Callable[[StudyResult, Path], None],
        path: Path,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; the first event writes the first page.

        Args:
            snapshot: the search as it stands, running; called on the thread that brings the events.
            write: writes a page, on the thread aside.
            path: where.
            interval: seconds from one page's begin to the next.
            clock: monotonic seconds.
        """
        self._snapshot = snapshot
        self._write = write
        self._path = path
        self._interval = interval
        self._clock = clock
        self._due = clock()
        self._thread: threading.Thread | None = None

    @override
    def search_started(self, trials: Sequence[TrialSummary]) -> None:
        """Nothing: what there is to see is in the page of an earlier run."""

    @override
    def trial_started(self, trial: TrialSummary) -> None:
        """A page, if it is time."""
        self._tick()

    @override
    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """A page, if it is time."""
        self._tick()

    @override
    def trial_noted(self, trial: TrialSummary, text: str) -> None:
        """It can wait for the next page."""

    @override
    def trial_ended(self, trial: TrialSummary) -> None:
        """A page, if it is time."""
        self._tick()

    def close(self, patience: float = INTERVAL) -> bool:
        """Write no more; whether the page under way was done within ``patience`` seconds.

        One that was not may yet replace the last page: its writer then writes that again, or leaves it.
        """
        self._due = float("inf")
        if self._thread is not None:
            self._thread.join(patience)
        return not self._is_writing

    @property
    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _tick(self) -> None:
        now = self._clock()
        if now < self._due or self._is_writing:
            return
        self._due = now + self._interval
        try:
            result = self._snapshot()
        except Exception:
            _LOGGER.exception("the search could not be looked at for %s", self._path)
            return
        self._thread = threading.Thread(target=self._draw, args=(result,), name="report", daemon=True)
        self._thread.start()

    def _draw(self, result: StudyResult) -> None:
        try:
            self._write(result, self._path)
        except Exception:
            # The search goes on, and the next minute has another page.
            _LOGGER.exception("%s could not be written", self._path)
