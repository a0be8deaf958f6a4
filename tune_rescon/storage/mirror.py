"""The thread that keeps a URL up to date while a search runs.

The search only says that something has changed. It waits for the URL where a trial begins or ends, and only
for a moment; it never sees an error. What fails is done again with growing pauses; what is still
missing at the end is counted, so that it can be said.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import Final

from tune_rescon.storage.sending import Discard, Sender, SupersededError

__all__ = ["Mirror", "Pace"]

_log: Final = logging.getLogger(__name__)


#: Seconds :meth:`Mirror.close` gives a call that is in flight when its time is up.
LAST_CALL: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds, and one factor."""

    interval: float = 5.0
    """Between two copies nobody waits for: epochs come more often than copies need to."""
    rest: float = 9.0
    """After a copy, times what it took: one of 10,000 trials takes seconds, and must not be made always."""
    patience: float = 0.4
    """A search waits for a copy at most; Ray Tune warns of callbacks that take half a second."""
    first_pause: float = 0.5
    longest_pause: float = 15.0
    """After a failure, doubling from the first to the longest."""


class Mirror:
    """Counts changes and has a :class:`.Sender` bring them to the URL. For the search's thread."""

    def __init__(self, sender: Sender, pace: Pace | None = None) -> None:
        """Nothing is sent before :meth:`start`."""
        self._sender = sender
        self._pace = pace or Pace()
        self._closing = threading.Event()
        self._deadline = 0.0
        # The condition guards all that follows.
        self._condition = threading.Condition()
        self._changes = self._urgent = self._sent = 0
        self._trouble = False
        self._rests_until = 0.0
        self._forgotten: list[Discard] = []
        self._discards: list[Discard] = []
        self._thread = threading.Thread(target=self._run, name="storage-mirror", daemon=True)

    def start(self) -> None:
        """Begin to send what changes from now on."""
        self._thread.start()

    def changed(self) -> None:
        """Have a change sent within the interval. Returns at once."""
        with self._condition:
            self._changes += 1
            self._condition.notify_all()

    def forget(self, discard: Discard) -> None:
        """Have files deleted once a copy is there that no longer needs them: the next :meth:`flush`'s."""
        self._forgotten.append(discard)

    def flush(self) -> bool:
        """Have a change sent now, and wait for it a little; whether it is there.

        Nobody waits for a URL that is in trouble already, nor for the end of a rest.
        """
        with self._condition:
            goal = self._urge()
            rests = time.monotonic() < self._rests_until
            patience = 0.0 if self._trouble or rests else self._pace.patience
            self._condition.wait_for(lambda: self._sent >= goal or self._trouble, patience)
            return self._sent >= goal

    def close(self, patience: float) -> int:
        """Send what is left, for ``patience`` seconds; the number of changes that are not at the URL.

        May be called again, with less patience, where a signal came meanwhile.
        """
        with self._condition:
            self._deadline = time.monotonic() + patience
            if not self._closing.is_set():
                self._closing.set()
                self._urge()
        # A call that hangs for longer is left to the daemon thread, and what it brings counts as missing.
        self._thread.join(patience + LAST_CALL)
        with self._condition:
            return self._changes - self._sent

    def abandon(self) -> None:
        """Begin nothing any more: the URL is another run's."""
        with self._condition:
            self._changes = self._sent
            self._discards.clear()
            self._closing.set()
            self._condition.notify_all()

    def _urge(self) -> int:
        self._changes += 1
        self._urgent = self._changes
        self._discards += self._forgotten
        self._forgotten.clear()
        self._condition.notify_all()
        return self._changes

    def _run(self) -> None:
        pause, last = self._pace.first_pause, 0.0
        while (goal := self._next_goal(last)) is not None:
            try:
                self._bring(goal)
            except SupersededError as error:
                _log.error("nothing more is sent to the storage: %s", error)
                self._set_trouble()
                return
            except (OSError, sqlite3.Error) as error:
                _log.warning("the storage is behind; next try in %.1f s: %s", pause, error)
                self._set_trouble()
                if not self._rest(pause):
                    return
                pause = min(2 * pause, self._pace.longest_pause)
            else:
                pause, last = self._pace.first_pause, time.monotonic()

    def _next_goal(self, last: float) -> int | None:
        """Wait until something is due; how many changes there are then, None when all is done."""
        with self._condition:
            while True:
                waiting = self._changes > self._sent or bool(self._discards)
                if self._closing.is_set() and not waiting:
                    return None
                urgent = self._urgent > self._sent
                due = self._rests_until if urgent else max(last + self._pace.interval, self._rests_until)
                due_in = due - time.monotonic()
                if waiting and (self._closing.is_set() or due_in <= 0):
                    return self._changes
                self._condition.wait(due_in if waiting else None)

    def _bring(self, goal: int) -> None:
        with self._condition:
            discards = tuple(self._discards)
        began = time.monotonic()
        self._sender.send()
        with self._condition:
            now = time.monotonic()
            self._rests_until = now + self._pace.rest * (now - began)
            self._sent = goal
            self._trouble = False
            self._condition.notify_all()
        self._sender.discard(discards)
        with self._condition:
            del self._discards[: len(discards)]

    def _set_trouble(self) -> None:
        with self._condition:
            self._trouble = True
            self._condition.notify_all()

    def _rest(self, pause: float) -> bool:
        """Wait before the next try; False if there is none."""
        if self._closing.wait(pause):
            left = self._deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
        return True
