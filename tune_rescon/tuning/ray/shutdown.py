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

from tune_rescon.errors import LeaseLostError, RecordBusyError, RecordError, format_error

__all__ = [
    "DriverLock",
    "SearchIsOver",
    "SignalState",
    "StopLevel",
    "Watch",
    "listening",
    "run_aside",
]


#: A second Ctrl-C comes later than this (seconds) after the first. ``timeout`` sends its signal to its child
#: and then to the child's whole group, so that the child has it twice at once.
ECHO_SECONDS: Final = 0.25

_DEADLINED: Final = (signal.SIGTERM, signal.SIGHUP)


class StopLevel(enum.IntEnum):
    """What is asked of the search."""

    NONE = 0
    FINISH_EPOCHS = 1
    STOP = 2


class SignalState:
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
    def urgency(self) -> StopLevel:
        """What is asked of the search now."""
        if not self._came:
            return StopLevel.NONE
        left = self.seconds_left
        if _has_second_ctrl_c(self._came) or (left is not None and left <= 0):
            return StopLevel.STOP
        return StopLevel.FINISH_EPOCHS

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline (negative once it has passed); None if there is none."""
        ends = [when + self._grace for number, when in self._came if number in _DEADLINED]
        return min(ends) - self._clock() if ends else None


def _has_second_ctrl_c(came: Sequence[tuple[int, float]]) -> bool:
    first = came[0][1]
    return any(number == signal.SIGINT and when - first >= ECHO_SECONDS for number, when in came)


@contextmanager
def listening(interruption: SignalState) -> Iterator[None]:
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


class Watch:
    """Says when the trials are not to be waited for any longer, and remembers why."""

    def __init__(
        self,
        interruption: SignalState,
        *,
        ray_gone: Callable[[], str],
        assure: Callable[[], None],
        interrupt: Callable[[], None],
        say: Callable[[str], object],
    ) -> None:
        """Look at everything on each call of :meth:`leave`.

        Args:
            interruption: the signals.
            ray_gone: what of Ray has died, "" for nothing.
            assure: raises when the search is another driver's.
            interrupt: has each running trial end after its present epoch.
            say: tells the user.
        """
        self._interruption = interruption
        self._ray_gone = ray_gone
        self._assure = assure
        self._interrupt = interrupt
        self._say = say
        self._heard = StopLevel.NONE
        self._gone = ""
        self._signals_before_end: int | None = None

    def leave(self) -> bool:
        """Whether to leave the trials now.

        Raises:
            LeaseLostError: the search is another driver's.
        """
        self._assure()
        self._hear()
        # A signal to everything at once reaches Ray before it is looked for here: it gets a second look.
        gone_before, self._gone = self._gone, self._ray_gone()
        return self._heard is StopLevel.STOP or bool(gone_before)

    def trials_ended(self) -> None:
        """From now on each signal cuts the remaining waits short: no epoch is left to be finished."""
        self._signals_before_end = self._interruption.count

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked for the end."""
        return self._interruption.urgency is not StopLevel.NONE

    def hurried(self, call: Callable[[float], int], patience: float, hurried: float) -> int:
        """Have ``call`` wait ``patience`` seconds; less before a deadline; ``hurried`` once that has come.

        A signal that comes meanwhile ends the wait: nobody waits twice for the same thing.
        """
        left = self._interruption.seconds_left
        if self._interruption.urgency is StopLevel.STOP or self._interrupted_at_the_end:
            patience = hurried
        elif left is not None:
            patience = min(patience, max(left, hurried))
        self._interruption.deferred = False
        try:
            return call(patience)
        except KeyboardInterrupt:
            self._interruption.deferred = True
            return call(hurried)
        finally:
            self._interruption.deferred = True

    @property
    def _interrupted_at_the_end(self) -> bool:
        before = self._signals_before_end
        return before is not None and self._interruption.count > before

    @property
    def ray_is_gone(self) -> bool:
        """Whether there is no Ray to run anything on."""
        self._gone = self._gone or self._ray_gone()
        return bool(self._gone)

    @property
    def failure(self) -> str | None:
        """Why the search could not go on, in a paragraph; None if that is not so."""
        if not self.ray_is_gone or self.interrupted:
            return None
        hint = (
            "Every epoch that was reported is recorded, and the trials go on from their checkpoints."
            " If it was killed for want of memory, run fewer trials at once (--concurrent)."
        )
        return format_error(f"Ray must live as long as the search, but {self._gone} has died", hint=hint)

    def _hear(self) -> None:
        urgency = self._interruption.urgency
        if urgency is self._heard:
            return
        self._heard = urgency
        self._interrupt()
        self._say(_answer(urgency, self._interruption.seconds_left))


def _answer(urgency: StopLevel, seconds_left: float | None) -> str:
    if urgency is StopLevel.STOP:
        return "Interrupted: stopping now; what is recorded stays"
    until = "" if seconds_left is None else f" for at most {max(seconds_left, 0):.0f} s"
    return f"Interrupted: finishing the running epochs{until}; Ctrl-C again to stop now"


#: Seconds between two looks at signals, at Ray and at the lease.
TICK: Final = 0.2

#: Seconds a thread that may not go on is waited for; one that hangs in Ray is left behind.
PARTING: Final = 3.0


class SearchIsOver(BaseException):
    """Raised in the working thread when its turns were taken away; Tune does not catch it."""


class DriverLock:
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


def run_aside(work: Callable[[], None], *, leave: Callable[[], bool], turns: DriverLock) -> None:
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
        raise RecordBusyError(format_error(rule, hint="What it took before is safe: go on with --resume."))
    if turns.failure is not None:
        raise turns.failure
    if failures and not left:
        raise failures[0]
