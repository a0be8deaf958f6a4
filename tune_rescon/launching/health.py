"""Whether an HTTP server answers, and what to do with one that is to run always: decided without a clock."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from enum import Enum

__all__ = ["Care", "CarePace", "Do", "Seen", "answers"]


def answers(url: str, *, timeout: float) -> bool:
    """Whether a server answers in time; one that fails (5xx) does not, one that refuses does."""
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False
    return True


class Seen(Enum):
    """How a server was found."""

    ENDED = "ended"
    """It has no process; at first, too."""
    SILENT = "silent"
    ANSWERS = "answers"


class Do(Enum):
    """What to do now."""

    WAIT = "wait"
    START = "start"
    KILL = "kill"


@dataclass(frozen=True, kw_only=True)
class CarePace:
    """Seconds, and one number."""

    interval: float = 5.0
    """Between two looks."""
    timeout: float = 5.0
    """For an answer."""
    failures: int = 4
    """In a row, after which it is killed. A machine that is busy for a moment must not come to that."""
    patience: float = 180.0
    """From its start to its first answer: migrations of a large database take long."""
    first_pause: float = 1.0
    longest_pause: float = 60.0
    """Before it is started again, doubling from the first to the longest."""
    calm: float = 300.0
    """Of answers, after which its next end is a first one again."""


class Care:
    """Decides; told how the server is found, and when: in seconds of one clock that never goes back."""

    def __init__(self, pace: CarePace) -> None:
        """Of a server that has not been started."""
        self._pace = pace
        self._started: float | None = None
        self._first_answer: float | None = None
        self._last_answer: float | None = None
        self._misses = 0
        self._pause = 0.0
        self._due = float("-inf")

    def decide(self, seen: Seen, now: float) -> Do:
        """What to do; what is answered is taken as done."""
        if seen is Seen.ENDED:
            return self._start_again(now)
        if seen is Seen.ANSWERS:
            self._misses = 0
            self._last_answer = now
            if self._first_answer is None:
                self._first_answer = now
            return Do.WAIT
        assert self._started is not None, "it was never started"
        if self._first_answer is None:
            return Do.KILL if now - self._started >= self._pace.patience else Do.WAIT
        self._misses += 1
        return Do.KILL if self._misses >= self._pace.failures else Do.WAIT

    def rest(self, now: float) -> float:
        """Seconds until the next look."""
        if self._started is None:
            return max(0.0, min(self._pace.interval, self._due - now))
        return self._pace.interval

    def _start_again(self, now: float) -> Do:
        if self._started is not None:
            calm = 0.0
            if self._first_answer is not None and self._last_answer is not None:
                calm = self._last_answer - self._first_answer
            doubled = min(2 * self._pause, self._pace.longest_pause)
            self._pause = self._pace.first_pause if calm >= self._pace.calm or not self._pause else doubled
            self._started = self._first_answer = self._last_answer = None
            self._due = now + self._pause
        if now < self._due:
            return Do.WAIT
        self._started = now
        self._misses = 0
        return Do.START
