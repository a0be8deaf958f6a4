"""One driver at a time: a lease in the search's record.

Whoever drives a search has its name in the record, and a beat that goes on as long as it drives. The rules:

* A driver of the same place (one boot of one machine, one container) is asked for in the process table: if
  it is dead its lease is taken at once, if it lives the lease is its own.
* The beat of a driver elsewhere is watched for the lease's length; only one that stands still is taken over.
  No clock of another machine is believed: what is compared is whether the number changed.
* The record has no compare-and-set. Who takes a lease writes its token, lets the write settle and reads it
  back: of several that do so at once the last to write stays.
* A holder that was stopped (SIGSTOP, a suspended machine) renews before it writes anything else, and ends if
  the lease is another's by then: :meth:`LeaseKeeper.assure` stands before every write of the search. What no
  check outside the database can exclude is a stop of more than the lease's length right between that check
  and its write.

The decision is :func:`may_take`; :class:`LeaseKeeper` does as it says, and beats.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import psutil

from tune_rescon.errors import LeaseError, LeaseLostError, format_error

__all__ = [
    "LEASE_SECONDS",
    "Claim",
    "Driver",
    "Lease",
    "LeaseKeeper",
    "LeaseStore",
    "ProcessTable",
    "hold_lease",
    "may_take",
    "process_start",
    "this_driver",
]


#: When the live process of a number was started (:attr:`Driver.started`); None if there is none.
ProcessTable = Callable[[int], float | None]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")


@dataclass(frozen=True, kw_only=True)
class Driver:
    """One process, among all that ever ran anywhere."""

    host: str
    """For people: where to look for it."""
    place: str
    """Where process numbers mean the same: this boot of a machine, and within it this container."""
    pid: int
    started: float
    """Seconds since the epoch by its machine's clock: tells it from a later process of the same number."""


def this_driver() -> Driver:
    """The calling process."""
    pid = os.getpid()
    started = process_start(pid)
    assert started is not None, "the calling process lives"
    return Driver(host=platform.node(), place=_place(), pid=pid, started=started)


def process_start(pid: int) -> float | None:
    """The :data:`ProcessTable` of this machine; a zombie is dead, it only waits for its parent."""
    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return None if dead else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _place() -> str:
    # The host's name too: machines copied from one running image share the boot's identity.
    parts = [platform.node()]
    if _BOOT_ID.exists():
        parts.append(_BOOT_ID.read_text().strip())
    if _PID_NAMESPACE.is_symlink():
        parts.append(str(_PID_NAMESPACE.readlink()))
    return " ".join(parts)


#: A lease's length: what a beat elsewhere is watched for. Four beats fit into it.
LEASE_SECONDS: Final = 20.0

#: Seconds between writing a lease and reading it back: more than two drivers that start at the same moment
#: need from their look at the record to their write.
SETTLE_SECONDS: Final = 0.5

#: Two readings of one process's start (seconds) differ by less; the machine's idea of its boot time shifts.
START_TOLERANCE: Final = 2.0

_LOGGER = logging.getLogger(__name__)


class LeaseStore(Protocol):
    """Where a search's lease is kept. Both calls may raise whatever the store raises when it is away."""

    def read(self) -> dict[str, Any] | None:
        """What was written last, by whomever; None if nothing ever was."""

    def write(self, value: dict[str, Any]) -> None:
        """Replace it. Once this returns, every reader sees it."""


class Claim(enum.Enum):
    """Whether a lease may be taken."""

    TAKE = enum.auto()
    WATCH = enum.auto()
    """If its beat stands still."""
    REFUSE = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who drives a search, or that nobody does."""

    driver: Driver | None
    """None: it was given back."""
    token: str
    """Of one holding of the lease; a process may hold it twice in its life."""
    beat: int
    """Grows while the driver lives."""
    since: str
    """By the holder's own clock; for people only."""
    seconds: float
    """Its length: a beat that stands still for so long is a dead driver's."""
    driven: float
    """Seconds the search was driven up to this beat, by all drivers of its life."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lease:
        """Back from JSON."""
        driver = None if values["driver"] is None else Driver(**values["driver"])
        return cls(**{**values, "driver": driver})


def may_take(lease: Lease | None, me: Driver, processes: ProcessTable) -> Claim:
    """Whether ``me`` may take ``lease``; ``processes`` knows the processes of ``me``'s place."""
    if lease is None or lease.driver is None:
        return Claim.TAKE
    holder = lease.driver
    if holder.place != me.place or holder == me:
        # This process's own: a search on another thread, which beats, or one that could not give it back.
        return Claim.WATCH
    started = processes(holder.pid)
    if started is None:
        return Claim.TAKE
    if abs(started - holder.started) < START_TOLERANCE:
        return Claim.REFUSE
    # Another process of that number, or the same one and a clock that was set: its beat will tell.
    return Claim.WATCH


class LeaseKeeper:
    """Takes the lease, beats on a thread of its own, and gives it back."""

    def __init__(
        self,
        store: LeaseStore,
        *,
        name: str,
        me: Driver,
        seconds: float = LEASE_SECONDS,
        processes: ProcessTable = process_start,
        clock: Callable[[], float],
        sleep: Callable[[float], object] = time.sleep,
        say: Callable[[str], object] = _LOGGER.info,
    ) -> None:
        """Prepare to hold the lease of the search ``name``; :meth:`take` takes it.

        Args:
            store: where it is kept. Two threads use it, one at a time.
            name: for messages.
            me: the process that will drive.
            seconds: the lease's length.
            processes: the process table of ``me``'s place.
            clock: seconds that also pass while the process or the machine is stopped.
            sleep: waits so many seconds.
            say: tells the user why it takes a while.
        """
        self._store = store
        self._name = name
        self._me = me
        self._seconds = seconds
        self._processes = processes
        self._clock = clock
        self._sleep = sleep
        self._say = say
        self._token = secrets.token_hex(8)
        self._since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        self._lock = threading.Lock()
        self._beat = 0
        self._taken = self._renewed = 0.0
        self._driven_before = 0.0
        self._lost = ""

    @property
    def driven(self) -> float:
        """Seconds the search has been driven, by all drivers of its life, until now."""
        return self._driven_before + self._clock() - self._taken

    def take(self) -> None:
        """Become the search's driver.

        Raises:
            LeaseError: another one lives.
        """
        found = self._takeable()
        self._driven_before = found.driven if found else 0.0
        self._taken = self._renewed = self._clock()
        self._write()
        self._sleep(SETTLE_SECONDS)
        if (winner := self._read()) is None or winner.token != self._token:
            raise LeaseError(self._taken_by(winner))

    def assure(self) -> None:
        """Be sure to hold the lease still; to be called before each write. Costs one look at the clock.

        Raises:
            LeaseLostError: it is another driver's, or could not be renewed for its whole length.
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
        """One beat.

        Raises:
            LeaseLostError: the lease is another driver's.
        """
        with self._lock:
            begun = self._clock()
            overdue = begun - self._renewed > self._seconds
            self._check_token()
            self._write()
            if overdue:
                # Somebody who saw the beat stand still may be taking it at this moment.
                self._sleep(SETTLE_SECONDS)
                self._check_token()
            elif self._clock() - self._renewed > self._seconds:
                # Stopped between reading and writing: the write may have undone another driver's. It will
                # find this token and end, so this one must end too.
                self._lose("this process was stopped while it renewed it")
                raise LeaseLostError(self._lost)
            self._renewed = begun

    def release(self) -> None:
        """Give the lease back, if it is still held. Whatever the store says, this does not raise."""
        with self._lock:
            try:
                found = self._read()
                if not self._lost and found is not None and found.token == self._token:
                    self._store.write(dataclasses.replace(self._lease(), driver=None).to_dict())
            except Exception as error:
                # The next driver will find this process dead, or its beat standing still.
                _LOGGER.warning("the lease could not be given back: %s", error)

    def beat(self, stop: threading.Event) -> None:
        """Renew four times in a lease's length until ``stop``, or until the lease is lost."""
        while not stop.wait(self._seconds / 4):
            try:
                self.renew()
            except LeaseLostError:
                return
            except Exception as error:
                _LOGGER.warning("the lease could not be renewed; next try soon: %s", error)

    def _takeable(self) -> Lease | None:
        """The lease that may be replaced, as it was a moment ago."""
        watched: Lease | None = None
        while True:
            looked, found = self._clock(), self._read()
            claim = may_take(found, self._me, self._processes)
            if claim is Claim.TAKE or (claim is Claim.WATCH and found == watched):
                # A process that was held up between its look and its write would overwrite what came since.
                if self._clock() - looked < SETTLE_SECONDS / 2:
                    return found
            elif claim is Claim.WATCH and found is not None and self._stands_still(found):
                watched = found
            else:
                raise LeaseError(self._taken_by(found))

    def _stands_still(self, found: Lease) -> bool:
        assert found.driver is not None, "only a held lease is watched"
        self._say(
            f"{self._name} was last driven by process {found.driver.pid} on {found.driver.host};"
            f" seeing for {found.seconds:g} s whether it still is"
        )
        end = self._clock() + found.seconds
        while self._clock() < end:
            self._sleep(min(1.0, found.seconds / 10))
            now = self._read()
            if now != found:
                return now is None or now.driver is None
        return True

    def _check_token(self) -> None:
        found = self._read()
        if found is None or found.token != self._token:
            who = _words(found.driver) if found and found.driver else "another driver, which has ended since"
            self._lose(f"it was taken over by {who}")
            raise LeaseLostError(self._lost)

    def _lose(self, why: str, hint: str = "") -> None:
        rule = f"this driver has lost the search {self._name}: {why}"
        hint = hint or (
            "It has written nothing since. Let the other one go on, or go on with --resume once it has ended."
        )
        self._lost = format_error(rule, hint=hint)

    def _lease(self) -> Lease:
        return Lease(
            driver=self._me,
            token=self._token,
            beat=self._beat,
            since=self._since,
            seconds=self._seconds,
            driven=self.driven,
        )

    def _read(self) -> Lease | None:
        value = self._store.read()
        return None if value is None else Lease.from_dict(value)

    def _write(self) -> None:
        self._beat += 1
        self._store.write(self._lease().to_dict())

    def _taken_by(self, lease: Lease | None) -> str:
        holder = lease.driver if lease else None
        who = f"{_words(holder)} drives it since {lease.since}" if lease and holder else "another one took it"
        kill = f" (`kill {holder.pid}` there: it finishes the running epochs)" if holder else ""
        hint = f"Wait until it ends or end it{kill}, then --resume {self._name}; or give another --name."
        rule = f"a search must have one driver at a time, and {self._name} has one: {who}"
        return format_error(rule, hint=hint)


def _words(driver: Driver) -> str:
    return f"process {driver.pid} on {driver.host}"


@contextmanager
def hold_lease(
    store: LeaseStore,
    *,
    name: str,
    seconds: float = LEASE_SECONDS,
    say: Callable[[str], object] = _LOGGER.info,
) -> Iterator[LeaseKeeper]:
    """Be the driver of the search ``name`` for the time being.

    Raises:
        LeaseError: another driver lives.
    """
    keeper = LeaseKeeper(store, name=name, me=this_driver(), seconds=seconds, clock=_seconds, say=say)
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
    # Linux's monotonic clock stands still while the machine is suspended; its boot clock does not.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
