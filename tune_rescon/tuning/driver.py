"""The identity of the process that drives a search, and whether a driver on this machine is alive."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

__all__ = ["Driver", "ProcessTable", "process_start", "this_driver"]


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
