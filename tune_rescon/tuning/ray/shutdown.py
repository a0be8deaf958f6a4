"""Stop a search on signals, and run its trials on a thread that can be abandoned.

On a first Ctrl-C, the search finishes the running epochs and stops. On a second one, it stops at once.
SIGTERM (a spot notice, ``docker stop``, a scheduler) and SIGHUP (a closed terminal) act as a first Ctrl-C. If
the epochs take longer than the grace period, the search then stops at once. No reported epoch is lost in
either case, because every reported epoch is in the record.
"""

from __future__ import annotations

import enum
import logging
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
from tune_rescon.signal_handlers import handled_signals

__all__ = [
    "DriverLock",
    "SearchIsOver",
    "SignalState",
    "StopLevel",
    "Watch",
    "run_in_thread",
    "signal_handlers",
]


#: Seconds after the first signal before another one counts as a second Ctrl-C. ``timeout`` sends its signal
#: to its child and then to the child's process group, so the child receives the signal twice at once.
ECHO_SECONDS: Final = 0.25

_GRACE_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)

_PROGRESS = logging.getLogger("tune_rescon.progress")


class StopLevel(enum.IntEnum):
    """How soon the search must stop."""

    NONE = 0
    FINISH_EPOCHS = 1
    STOP = 2


class SignalState:
    """The signals received so far, and the stop level that follows from them."""

    def __init__(self, *, grace: float, clock: Callable[[], float]) -> None:
        """Start without signals.

        Args:
            grace: Seconds for which epochs may run after a SIGTERM or SIGHUP.
            clock: Returns the time in seconds.
        """
        self._grace = grace
        self._clock = clock
        self._received: list[tuple[int, float]] = []
        self.deferred = False
        """True if signals are only stored; otherwise the next signal raises KeyboardInterrupt."""

    def receive(self, number: int) -> None:
        """Store a signal.

        Raises:
            KeyboardInterrupt: If signals are not deferred: no work is running that could end in order.
        """
        self._received.append((number, self._clock()))
        if not self.deferred:
            raise KeyboardInterrupt

    @property
    def count(self) -> int:
        """The number of signals received so far."""
        return len(self._received)

    @property
    def stop_level(self) -> StopLevel:
        """The present stop level."""
        if not self._received:
            return StopLevel.NONE
        left = self.seconds_left
        if _has_second_ctrl_c(self._received) or (left is not None and left <= 0):
            return StopLevel.STOP
        return StopLevel.FINISH_EPOCHS

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, negative after it; None if no signal with a deadline was received."""
        ends = [when + self._grace for number, when in self._received if number in _GRACE_SIGNALS]
        return min(ends) - self._clock() if ends else None


def _has_second_ctrl_c(received: Sequence[tuple[int, float]]) -> bool:
    first = received[0][1]
    return any(number == signal.SIGINT and when - first >= ECHO_SECONDS for number, when in received)


@contextmanager
def signal_handlers(interruption: SignalState) -> Iterator[None]:
    """Pass SIGINT, SIGTERM and SIGHUP to ``interruption`` within the block.

    Outside the main thread, the handlers are left unchanged, because Python allows signal handlers in the
    main thread only. A SIGHUP that is ignored (``nohup``) stays ignored. After any other SIGHUP, output to
    the terminal is discarded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # Found now, because isatty() is False for a closed terminal although its device number is the same.
    terminals = {os.fstat(stream).st_rdev for stream in (1, 2) if os.isatty(stream)}

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            _discard_output(terminals)
        interruption.receive(number)

    wanted = [signal.SIGINT, *_GRACE_SIGNALS]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        wanted.remove(signal.SIGHUP)
    with handled_signals(handle, *wanted):
        yield


def _discard_output(terminals: Set[int]) -> None:
    """Redirect output to closed terminals to the null device, because a write to them would raise an error.

    Such an error would end the work that is still running. All descriptors of these devices are redirected,
    because a console may print on a duplicate while standard output is diverted.

    Args:
        terminals: The device numbers of the terminals.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        # The descriptor that listed the directory is closed by now.
        with suppress(OSError):
            status = os.fstat(descriptor)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev in terminals:
                os.dup2(nowhere, descriptor, inheritable=os.get_inheritable(descriptor))
    os.close(nowhere)


class Watch:
    """Decides when to stop waiting for the trials, and stores the reason."""

    def __init__(
        self,
        interruption: SignalState,
        *,
        ray_gone: Callable[[], str],
        ensure_held: Callable[[], None],
        interrupt: Callable[[], None],
    ) -> None:
        """Store the sources that each call of :meth:`should_abort` checks.

        Args:
            interruption: The signals.
            ray_gone: Returns a description of the part of Ray that has died, or "" while Ray is alive.
            ensure_held: Raises LeaseLostError if another driver has taken over the search.
            interrupt: Stops each running trial after its present epoch.
        """
        self._interruption = interruption
        self._ray_gone = ray_gone
        self._ensure_held = ensure_held
        self._interrupt = interrupt
        self._level = StopLevel.NONE
        self._gone = ""
        self._signals_before_end: int | None = None

    def should_abort(self) -> bool:
        """Return whether to stop waiting for the trials now.

        Raises:
            LeaseLostError: If another driver has taken over the search.
        """
        self._ensure_held()
        self._update_level()
        # A signal to all processes at once may end Ray before this process handles the signal. Therefore Ray
        # must be found dead in two consecutive calls.
        gone_before, self._gone = self._gone, self._ray_gone()
        return self._level is StopLevel.STOP or bool(gone_before)

    def trials_ended(self) -> None:
        """Each later signal shortens the remaining waits. Call this when no epoch is left to finish."""
        self._signals_before_end = self._interruption.count

    @property
    def interrupted(self) -> bool:
        """True if a signal has requested a stop."""
        return self._interruption.stop_level is not StopLevel.NONE

    def with_timeout(self, call: Callable[[float], int], timeout: float, shortest: float) -> int:
        """Run ``call`` with a time limit that depends on the signals received.

        The limit is ``timeout`` without signals. Before a deadline, it is at most the time left, but not
        less than ``shortest``. After the deadline, after a second Ctrl-C, and after a signal that follows
        :meth:`trials_ended`, it is ``shortest``. If a signal arrives during the call, ``call`` is called
        again with the limit ``shortest``, so that the user does not wait twice.

        Args:
            call: Waits for at most the given number of seconds, and returns a count.
            timeout: The usual limit, in seconds.
            shortest: The shortest limit, in seconds.

        Returns:
            The value that ``call`` returns.
        """
        left = self._interruption.seconds_left
        if self._interruption.stop_level is StopLevel.STOP or self._interrupted_at_the_end:
            timeout = shortest
        elif left is not None:
            timeout = min(timeout, max(left, shortest))
        self._interruption.deferred = False
        try:
            return call(timeout)
        except KeyboardInterrupt:
            self._interruption.deferred = True
            return call(shortest)
        finally:
            self._interruption.deferred = True

    @property
    def _interrupted_at_the_end(self) -> bool:
        before = self._signals_before_end
        return before is not None and self._interruption.count > before

    @property
    def ray_is_gone(self) -> bool:
        """True if Ray has died."""
        self._gone = self._gone or self._ray_gone()
        return bool(self._gone)

    @property
    def failure(self) -> str | None:
        """Why the search had to stop, as one paragraph; None if Ray is alive or a signal was received."""
        if not self.ray_is_gone or self.interrupted:
            return None
        hint = (
            "Every epoch that was reported is recorded, and the trials resume from their checkpoints."
            " If it ran out of memory, run fewer trials at once (--concurrent)."
        )
        return format_error(f"Ray must live as long as the search, but {self._gone} has died", hint=hint)

    def _update_level(self) -> None:
        level = self._interruption.stop_level
        if level is self._level:
            return
        self._level = level
        self._interrupt()
        _PROGRESS.info(_stop_message(level, self._interruption.seconds_left))


def _stop_message(level: StopLevel, seconds_left: float | None) -> str:
    if level is StopLevel.STOP:
        return "Interrupted: stopping now; all recorded epochs are kept"
    until = "" if seconds_left is None else f" for at most {max(seconds_left, 0):.0f} s"
    return f"Interrupted: finishing the running epochs{until}; Ctrl-C again to stop now"


#: Seconds between two checks of the signals, of Ray and of the lease.
TICK: Final = 0.2

#: Seconds to wait for a thread that must stop. A thread that hangs in Ray is abandoned.
JOIN_SECONDS: Final = 3.0


class SearchIsOver(BaseException):
    """Raised in the thread of Tune when the lock is closed. Tune does not catch it."""


class DriverLock:
    """A lock on the coordinator, the record and their callbacks, which the main thread can close.

    Tune runs on a thread, which may hang in Ray. It holds the lock during each call of the coordinator. After
    the main thread has closed the lock, that thread can no longer hold it.
    """

    def __init__(self, ensure_held: Callable[[], None]) -> None:
        """Create an open lock.

        Args:
            ensure_held: Called whenever the lock is held. It raises LeaseLostError if another driver has the
                search.
        """
        self._ensure_held = ensure_held
        self._lock = threading.Lock()
        self._is_closed = False
        self.failure: RecordError | None = None
        """The error of a failed write to the record, or None. Such an error closes the lock."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock for one call.

        Raises:
            SearchIsOver: If the lock is closed, this process has lost the lease, or a write to the record
                fails in the block.
        """
        with self._lock:
            self.check()
            try:
                self._ensure_held()
            except LeaseLostError as error:
                # The main thread detects the lost lease itself, and can report it.
                raise SearchIsOver from error
            try:
                yield
            except RecordError as error:
                # The main thread raises this error. Tune would log it, call again, and log it again.
                self.failure, self._is_closed = error, True
                raise SearchIsOver from error

    def check(self) -> None:
        """Check that the lock is open.

        Raises:
            SearchIsOver: If the lock is closed.
        """
        if self._is_closed:
            raise SearchIsOver

    def close(self, timeout: float) -> bool:
        """Close the lock; return False if it is still held after ``timeout`` seconds."""
        self._is_closed = True
        is_free = self._lock.acquire(timeout=timeout)
        if is_free:
            self._lock.release()
        return is_free


def run_in_thread(work: Callable[[], None], *, should_abort: Callable[[], bool], lock: DriverLock) -> None:
    """Run ``work`` on a thread until it ends or ``should_abort`` returns True.

    Afterwards ``work`` cannot hold the lock any more. An exception of ``work`` or ``should_abort`` is raised
    here. After ``should_abort`` has returned True, an exception of ``work`` is dropped.

    Args:
        work: Runs the trials. It uses the record only while it holds ``lock``.
        should_abort: Polled every :data:`TICK` seconds; returns True to stop waiting for ``work``.
        lock: The lock that ``work`` uses.

    Raises:
        RecordError: If a write to the record fails.
        RecordBusyError: If ``work`` does not give the lock back, so that no other thread may use the record.
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
    aborted = False
    try:
        while thread.is_alive() and not aborted:
            thread.join(TICK)
            aborted = should_abort()
    finally:
        ended = lock.close(JOIN_SECONDS)
        thread.join(JOIN_SECONDS)
    if not ended:
        rule = f"the record must accept a write, but has not for {JOIN_SECONDS:g} s"
        raise RecordBusyError(
            format_error(rule, hint="What was recorded before is safe: resume with --resume.")
        )
    if lock.failure is not None:
        raise lock.failure
    if failures and not aborted:
        raise failures[0]
