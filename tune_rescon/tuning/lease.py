"""A lease in the search's record, which ensures that a search has one driver at a time.

The driver of a search writes its identity into the record, together with a beat: a number that it increases
as long as it runs. The rules:

* If the holder is in the same place (one boot of one machine, one container), the process table shows whether
  it is alive. The lease of a dead holder is taken at once. A live holder keeps its lease.
* If the holder is elsewhere, its beat is watched for the length of the lease. The lease is taken only if the
  beat does not change. The clocks of other machines are not trusted: only a change of the number counts.
* Each change is a compare-and-set: it replaces the lease that the process has read, and no other. If several
  processes take a lease at once, exactly one succeeds.
* A holder that was stopped (SIGSTOP, a suspended machine) renews the lease before any other write. It ends if
  another process has taken the lease by then. The search calls :meth:`LeaseKeeper.ensure_held` before every
  write. A stop of more than the lease's length between that call and the write cannot be excluded.

:func:`.decide_lease` decides; :class:`LeaseKeeper` carries out the decision and writes the beat.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Protocol

from tune_rescon.errors import LeaseError, LeaseLostError, format_error
from tune_rescon.tuning.driver import (
    Driver,
    Lease,
    LeaseDecision,
    ProcessTable,
    decide_lease,
    process_start,
    this_driver,
)

__all__ = ["LEASE_SECONDS", "LeaseKeeper", "LeaseStore", "hold_lease"]

#: Length of a lease in seconds, for which the beat of a driver elsewhere is watched. It contains four beats.
LEASE_SECONDS: Final = 20.0

_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")


class LeaseStore(Protocol):
    """The store of a search's lease. Both methods may raise any error of the store if it is unreachable."""

    read_back_seconds: float
    """Seconds to wait before the value is read again, if :meth:`replace` may succeed for several processes at
    once; 0 if it succeeds for only one of them."""

    def read(self) -> dict[str, Any] | None:
        """Return the last value that any process has written; None if no process has written one."""

    def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
        """Replace the value if it still is ``expected``, the value that :meth:`read` returned, in one step.

        Return whether it was replaced; every reader sees the new value then. If the method raises, the value
        may have been replaced.
        """


class LeaseKeeper:
    """Takes the lease of a search, renews it on a separate thread, and gives it back."""

    def __init__(
        self,
        store: LeaseStore,
        *,
        name: str,
        me: Driver,
        seconds: float = LEASE_SECONDS,
        processes: ProcessTable = process_start,
        clock: Callable[[], float],
        search_clock: Callable[[], float] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare to hold the lease of the search ``name``; :meth:`take` takes it.

        Args:
            store: The store of the lease. Two threads use it, one at a time.
            name: The search's name, used in messages.
            me: The process that will drive the search.
            seconds: Length of the lease in seconds.
            processes: The process table in which ``me`` is.
            clock: Returns seconds that also pass while the process or the machine is stopped.
            search_clock: Returns the seconds that count as time of the search, as its deadline does: they do
                not pass while the machine is suspended. None if ``me`` does not run the search.
            sleep: Waits for the given number of seconds.
        """
        self._store = store
        self._name = name
        self._me = me
        self._seconds = seconds
        self._processes = processes
        self._clock = clock
        self._search_clock = search_clock or (lambda: 0.0)
        self._sleep = sleep
        self._token = secrets.token_hex(8)
        self._since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        self._lock = threading.Lock()
        self._stored: dict[str, Any] | None = None
        self._beat = 0
        self._taken = self._renewed = self._elapsed_before = 0.0
        self._lost = ""

    @property
    def elapsed_seconds(self) -> float:
        """Seconds for which all drivers together have run the search until now."""
        return self._elapsed_before + self._search_clock() - self._taken

    def take(self) -> None:
        """Become the search's driver.

        Raises:
            LeaseError: If another driver is alive.
        """
        self._stored = self._find_free()
        before = _parsed(self._stored)
        self._elapsed_before = before.driven if before else 0.0
        self._taken, self._renewed = self._search_clock(), self._clock()
        if not self._replace() or not self._won_the_race():
            raise LeaseError(self._taken_by(_parsed(self._store.read())))

    def ensure_held(self) -> None:
        """Verify that this process still holds the lease; call it before each write.

        The call reads the clock. It renews the lease only if the last renewal is more than half of the
        lease's length ago.

        Raises:
            LeaseLostError: If another driver has the lease, or it could not be renewed for its whole length.
        """
        while not self._lost and self._clock() - self._renewed > self._seconds / 2:
            try:
                self.renew()
            except LeaseLostError:
                break
            except Exception as error:
                if self._clock() - self._renewed > self._seconds:
                    hint = (
                        "Every epoch that was reported before is recorded. Free space on the disk of its"
                        " record, or bring its database back; then resume."
                    )
                    self._lose(f"it could not be renewed for {self._seconds:g} s ({error})", hint)
                self._sleep(self._seconds / 20)
        if self._lost:
            raise LeaseLostError(self._lost)

    def renew(self) -> None:
        """Write one beat.

        Raises:
            LeaseLostError: If another driver has the lease.
        """
        with self._lock:
            begun = self._clock()
            overdue = begun - self._renewed > self._seconds
            if not self._replace():
                # The lease is another driver's, that of a renewal without an answer, or a restored one.
                known, found = self._stored, self._store.read()
                if known and found and self._is_mine(found) and found["beat"] < known["beat"]:
                    self._lose("its record was replaced by an older copy", "Resume what that copy holds.")
                self._stored = found
                if not self._is_mine(self._stored) or not self._replace():
                    self._lose_to_another()
            if overdue and not self._won_the_race():
                self._lose_to_another()
            self._renewed = begun

    def release(self) -> None:
        """Give the lease back if this process still holds it. An error of the store is logged, not raised."""
        with self._lock:
            try:
                found = self._store.read()
                if not self._lost and self._is_mine(found):
                    self._store.replace(found, dataclasses.replace(self._lease(), driver=None).to_dict())
            except Exception as error:
                # The next driver will find that this process is dead, or that its beat does not change.
                _LOGGER.warning("the lease could not be given back: %s", error)

    def beat(self, stop: threading.Event) -> None:
        """Renew the lease four times in its length until ``stop`` is set or the lease is lost."""
        while not stop.wait(self._seconds / 4):
            try:
                self.renew()
            except LeaseLostError:
                return
            except Exception as error:
                _LOGGER.warning("the lease could not be renewed; next try soon: %s", error)

    def _find_free(self) -> dict[str, Any] | None:
        """Return the stored lease once this process may replace it."""
        watched: dict[str, Any] | None = None
        while True:
            stored = self._store.read()
            lease = _parsed(stored)
            decision = decide_lease(lease, self._me, self._processes)
            if decision is LeaseDecision.TAKE or (decision is LeaseDecision.WATCH and stored == watched):
                return stored
            if decision is LeaseDecision.WATCH and lease is not None and self._beat_stopped(lease):
                watched = stored
            else:
                raise LeaseError(self._taken_by(lease))

    def _beat_stopped(self, lease: Lease) -> bool:
        """Watch the beat of a lease; return whether it did not change or the lease was given back."""
        assert lease.driver is not None, "only a held lease is watched"
        _PROGRESS.info(
            f"{self._name} was last driven by process {lease.driver.pid} on {lease.driver.host};"
            f" waiting {lease.seconds:g} s to see whether it still runs"
        )
        end = self._clock() + lease.seconds
        while self._clock() < end:
            self._sleep(min(1.0, lease.seconds / 10))
            now = _parsed(self._store.read())
            if now != lease:
                return now is None or now.driver is None
        return True

    def _is_mine(self, stored: dict[str, Any] | None) -> bool:
        return stored is not None and stored["token"] == self._token

    def _won_the_race(self) -> bool:
        """Return whether this process has the lease that it wrote, also if several wrote at once."""
        if not self._store.read_back_seconds:
            return True
        self._sleep(self._store.read_back_seconds)
        return self._is_mine(self._store.read())

    def _lose_to_another(self) -> NoReturn:
        other = _parsed(self._store.read())
        who = _label(other.driver) if other and other.driver else "another driver, which has ended by now"
        self._lose(f"it was taken over by {who}")

    def _lose(self, why: str, hint: str = "") -> NoReturn:
        rule = f"this driver has lost the search {self._name}: {why}"
        hint = hint or (
            "It has written nothing since. Let the other process continue, or use --resume once it has ended."
        )
        self._lost = format_error(rule, hint=hint)
        raise LeaseLostError(self._lost)

    def _lease(self) -> Lease:
        return Lease(
            driver=self._me,
            token=self._token,
            beat=self._beat,
            since=self._since,
            seconds=self._seconds,
            driven=self.elapsed_seconds,
        )

    def _replace(self) -> bool:
        """Replace the lease that was read or written last by the next beat of this process."""
        self._beat += 1
        value = self._lease().to_dict()
        if not self._store.replace(self._stored, value):
            return False
        self._stored = value
        return True

    def _taken_by(self, lease: Lease | None) -> str:
        holder = lease.driver if lease else None
        who = "another process took it"
        if lease and holder:
            who = f"{_label(holder)} has driven it since {lease.since}"
        kill = f" (`kill {holder.pid}` there: it finishes the running epochs)" if holder else ""
        hint = f"Wait until it ends or end it{kill}, then --resume {self._name}; or give another --name."
        rule = f"a search must have one driver at a time, and {self._name} has one: {who}"
        return format_error(rule, hint=hint)


def _parsed(stored: dict[str, Any] | None) -> Lease | None:
    return None if stored is None else Lease.from_dict(stored)


def _label(driver: Driver) -> str:
    return f"process {driver.pid} on {driver.host}"


@contextmanager
def hold_lease(
    store: LeaseStore, *, name: str, seconds: float = LEASE_SECONDS, drives: bool = True
) -> Iterator[LeaseKeeper]:
    """Hold the lease of a search for the duration of the block.

    Args:
        store: The store of the lease.
        name: The search's name.
        seconds: Length of the lease in seconds.
        drives: Whether this process runs the search, so that the time counts as that of the search.

    Raises:
        LeaseError: If another driver is alive.
    """
    keeper = LeaseKeeper(
        store,
        name=name,
        me=this_driver(),
        seconds=seconds,
        clock=_seconds,
        search_clock=time.monotonic if drives else None,
    )
    keeper.take()
    stop = threading.Event()
    thread = threading.Thread(target=keeper.beat, args=(stop,), name="lease", daemon=True)
    thread.start()
    try:
        yield keeper
    finally:
        stop.set()
        thread.join(seconds)
        keeper.release()


def _seconds() -> float:
    # Linux's monotonic clock stops while the machine is suspended; its boot clock does not.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
