"""The driver of a search: its process, its lease in the record, and whether it is alive."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

__all__ = [
    "Driver",
    "Lease",
    "LeaseDecision",
    "ProcessTable",
    "decide_lease",
    "driver_lives",
    "lease_lives",
    "process_start",
    "this_driver",
]


#: Maps a process number to the start of the live process with that number (:attr:`Driver.started`), to nan if
#: the start cannot be read, or to None if no live process has that number.
ProcessTable = Callable[[int], float | None]

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The identity of one process, unique across machines and time."""

    host: str
    """The host's name, which tells users where to find the process."""
    place: str
    """The scope within which process numbers are unique: one boot of a machine and one container in it."""
    pid: int
    started: float
    """Start of the process, in seconds since 1970 by its machine's clock.

    It distinguishes the process from a later one with the same number.
    """


def this_driver() -> Driver:
    """Return the identity of the calling process."""
    pid = os.getpid()
    started = process_start(pid)
    assert started is not None, "the calling process lives"
    return Driver(host=platform.node(), place=_place(), pid=pid, started=started)


def process_start(pid: int) -> float | None:
    """Return the start of a live process; this function is the :data:`ProcessTable` of this machine.

    A zombie counts as dead: it only waits for its parent. Where users do not see each other's processes
    (the mount option ``hidepid`` of /proc), the start of another user's live process is nan.
    """
    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return None if dead else process.create_time()
    except psutil.AccessDenied:
        return math.nan
    except psutil.NoSuchProcess:
        return math.nan if _is_hidden(pid) else None


def _is_hidden(pid: int) -> bool:
    """Return whether another user's process has a number that /proc does not show."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _place() -> str:
    # The host's name is included because machines copied from one running image share the boot id.
    parts = [platform.node()]
    if _BOOT_ID.exists():
        parts.append(_BOOT_ID.read_text().strip())
    if _PID_NAMESPACE.is_symlink():
        parts.append(str(_PID_NAMESPACE.readlink()))
    return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The lease of a search, held by a driver or given back."""

    driver: Driver | None
    """The holder; None if the lease was given back."""
    token: str
    """Identifies one holding of the lease, because a process may hold the lease twice in its life."""
    beat: int
    """A number that increases while the driver lives."""
    since: str
    """When the holding began, by the holder's clock; shown to users only."""
    seconds: float
    """Length of the lease: if the beat does not change for this many seconds, the driver is dead."""
    driven: float
    """Seconds for which all drivers together have run the search, up to this beat."""

    def to_dict(self) -> dict[str, Any]:
        """Return the lease as a JSON-serializable dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Lease:
        """Create a lease from the result of :meth:`to_dict`."""
        driver = None if values["driver"] is None else Driver(**values["driver"])
        return cls(**{**values, "driver": driver})


class LeaseDecision(enum.Enum):
    """The decision on a lease: take it, watch its beat first, or refuse."""

    TAKE = enum.auto()
    WATCH = enum.auto()
    """The lease may be taken if its beat does not change."""
    REFUSE = enum.auto()


#: Two readings of one process's start differ by less than this many seconds. They differ because the
#: machine's estimate of its boot time shifts.
START_TOLERANCE: Final = 2.0


def decide_lease(lease: Lease | None, me: Driver, processes: ProcessTable) -> LeaseDecision:
    """Decide whether the process ``me``, in the table ``processes``, may take the lease of the record."""
    if lease is None or lease.driver is None:
        return LeaseDecision.TAKE
    holder = lease.driver
    if holder.place != me.place or holder == me:
        # If the holder is this process, either a search on another thread holds the lease and beats, or an
        # earlier search could not give it back.
        return LeaseDecision.WATCH
    started = processes(holder.pid)
    if started is None:
        return LeaseDecision.TAKE
    if abs(started - holder.started) < START_TOLERANCE:
        return LeaseDecision.REFUSE
    # Another process has that number now, the clock was set, or the start cannot be read. The beat decides.
    return LeaseDecision.WATCH


#: A driver on another machine counts as dead if it wrote no beat for this many lengths of its lease, each of
#: which contains four beats. This is only for reports to users: a process that takes over a search watches
#: the beat itself and trusts no clock.
SILENT_LEASES: Final = 2.0


def driver_lives(lease: Lease | None, me: Driver, processes: ProcessTable, *, silent: float) -> bool:
    """Return whether a search has a live driver.

    Args:
        lease: The search's lease, or None.
        me: The calling process.
        processes: The process table in which ``me`` is.
        silent: Seconds since the last write of the lease, by clocks that may differ; 0 if it is not known.
    """
    decision = decide_lease(lease, me, processes)
    if decision is not LeaseDecision.WATCH:
        return decision is LeaseDecision.REFUSE
    assert lease is not None, "there is nothing to watch"
    return silent < SILENT_LEASES * lease.seconds


def lease_lives(value: Mapping[str, Any] | None, silent: float) -> bool:
    """Return whether the driver that holds the lease ``value`` is alive: see :func:`driver_lives`."""
    lease = None if value is None else Lease.from_dict(value)
    return driver_lives(lease, this_driver(), process_start, silent=silent)
