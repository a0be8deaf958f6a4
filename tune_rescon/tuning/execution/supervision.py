"""The work on one thread, the answers to people and signals on another.

Ray's client can hang in C++, deaf to signals: a call to a control store that is gone waits for 60 s and then
ends the whole process. So Tune runs on a thread of its own, and the driver's main thread, which never calls
Ray while trials run, can leave it behind and close the search in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tune_rescon.errors import LeaseLostError, RecordBusyError, RecordError, explain

__all__ = ["SearchIsOver", "Turns", "run_aside"]

#: Seconds between two looks at signals, at Ray and at the lease.
TICK: Final = 0.2

#: Seconds a thread that may not go on is waited for; one that hangs in Ray is left behind.
PARTING: Final = 3.0


class SearchIsOver(BaseException):
    """Raised in the working thread when its turns were taken away; Tune does not catch it."""


class Turns:
    """Whose turn it is to touch the coordinator, the record and their listeners.

    The working thread takes a turn for each call; the main thread takes all that are left.
    """

    def __init__(self, assure: Callable[[], None]) -> None:
        """Begin each turn by ``assure``, which raises LeaseLostError when the search is another driver's."""
        self._assure = assure
        self._lock = threading.Lock()
        self._over = False
        self.failure: RecordError | None = None
        """Why the record takes no more, if that is so: no turn comes after it."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One call of the working thread.

        Raises:
            SearchIsOver: there are no turns left, for this thread or for this process.
        """
        with self._lock:
            self.check()
            try:
                self._assure()
            except LeaseLostError as error:
                # The main thread finds out by itself, and can say it.
                raise SearchIsOver from error
            try:
                yield
            except RecordError as error:
                # Tune would log it, ask again and log again: the main thread raises it instead.
                self.failure, self._over = error, True
                raise SearchIsOver from error

    def check(self) -> None:
        """Go no further than this when there are no turns left.

        Raises:
            SearchIsOver: that is so.
        """
        if self._over:
            raise SearchIsOver

    def end(self, patience: float) -> bool:
        """Take all turns that are left; False if the present one did not end in ``patience`` seconds."""
        self._over = True
        ended = self._lock.acquire(timeout=patience)
        if ended:
            self._lock.release()
        return ended


def run_aside(work: Callable[[], None], *, leave: Callable[[], bool], turns: Turns) -> None:
    """Run ``work`` on a thread until it ends or ``leave``, asked every tick, says not to wait for it.

    Afterwards ``work`` has no turns left. What it raised is raised here; so is what ``leave`` raises.

    Raises:
        RecordError: a write in one of its turns failed.
        RecordBusyError: ``work`` is amid a turn that does not end: nobody may touch the record.
    """
    failures: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except SearchIsOver:
            return
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=caught, name="trials", daemon=True)
    thread.start()
    left = False
    try:
        while thread.is_alive() and not left:
            thread.join(TICK)
            left = leave()
    finally:
        ended = turns.end(PARTING)
        thread.join(PARTING)
    if not ended:
        rule = f"the record must take a write, but has not for {PARTING:g} s"
        raise RecordBusyError(explain(rule, hint="What it took before is safe: go on with --resume."))
    if turns.failure is not None:
        raise turns.failure
    if failures and not left:
        raise failures[0]
