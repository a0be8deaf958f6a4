"""Signals: what they ask of a search, and for how long it may still run.

Ctrl-C lets the running epochs end; a second one does not. SIGTERM (a spot notice, ``docker stop``, a
scheduler) and SIGHUP (the terminal was closed) are a first Ctrl-C with a deadline, after which the search
stops as at a second one. Nothing is lost either way: every epoch that was reported is in the record.
"""

from __future__ import annotations

import enum
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

__all__ = ["Interruption", "Urgency", "listening"]

#: A second Ctrl-C comes later than this (seconds) after the first. ``timeout`` sends its signal to its child
#: and then to the child's whole group, so that the child has it twice at once.
ECHO_SECONDS: Final = 0.25

_DEADLINED: Final = (signal.SIGTERM, signal.SIGHUP)


class Urgency(enum.IntEnum):
    """What is asked of the search."""

    NONE = 0
    FINISH_EPOCHS = 1
    STOP = 2


class Interruption:
    """The signals that came, and what they mean by now."""

    def __init__(self, *, grace: float, clock: Callable[[], float]) -> None:
        """None came yet; ``grace`` is what running epochs have after a SIGTERM. Both count seconds."""
        self._grace = grace
        self._clock = clock
        self._came: list[tuple[int, float]] = []
        self.deferred = False
        """Whether signals wait to be asked for; else the next one raises KeyboardInterrupt."""

    def receive(self, number: int) -> None:
        """Note a signal.

        Raises:
            KeyboardInterrupt: nothing is running that could end in order.
        """
        self._came.append((number, self._clock()))
        if not self.deferred:
            raise KeyboardInterrupt

    @property
    def count(self) -> int:
        """How many signals came so far."""
        return len(self._came)

    @property
    def urgency(self) -> Urgency:
        """What is asked of the search now."""
        if not self._came:
            return Urgency.NONE
        left = self.seconds_left
        if _has_second_ctrl_c(self._came) or (left is not None and left <= 0):
            return Urgency.STOP
        return Urgency.FINISH_EPOCHS

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline (negative once it has passed); None if there is none."""
        ends = [when + self._grace for number, when in self._came if number in _DEADLINED]
        return min(ends) - self._clock() if ends else None


def _has_second_ctrl_c(came: Sequence[tuple[int, float]]) -> bool:
    first = came[0][1]
    return any(number == signal.SIGINT and when - first >= ECHO_SECONDS for number, when in came)


@contextmanager
def listening(interruption: Interruption) -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP go to ``interruption``.

    Outside the main thread, where Python admits no handlers, nothing is changed. A SIGHUP that is ignored
    (``nohup``) stays ignored; after one that is not, what is printed to the terminal goes nowhere.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # Asked now: one that was closed is a terminal no longer, but the same device.
    terminals = {os.fstat(stream).st_rdev for stream in (1, 2) if os.isatty(stream)}

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            _silence(terminals)
        interruption.receive(number)

    wanted = [signal.SIGINT, *_DEADLINED]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        wanted.remove(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: somebody's handler that is not Python's, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _silence(terminals: Set[int]) -> None:
    """Let go of a terminal that was closed: a write to it is an error, and would end what still goes on.

    All descriptors of these devices: a console may print on a duplicate, with standard output diverted.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        # The one that listed them is closed by now.
        with suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev in terminals:
                os.dup2(nowhere, descriptor, inheritable=os.get_inheritable(descriptor))
    os.close(nowhere)
