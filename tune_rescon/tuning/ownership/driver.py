"""Which process drives a search, told so that another one can find out whether it still lives."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

__all__ = ["Driver", "ProcessTable", "process_start", "this_driver"]

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
