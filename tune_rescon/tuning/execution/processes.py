"""The processes of a Ray: out of reach of the terminal's signals, watched, and all ended."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

__all__ = ["ControlStoreProbe", "RayProcesses", "started_apart"]

#: The processes without which nothing runs, by name.
_VITAL: Final = {"gcs_server": "its control store (gcs_server)", "raylet": "its node manager (raylet)"}

#: Seconds between two looks at a control store elsewhere, and how long one look may take.
PROBE_EVERY: Final = 5.0
PROBE_TIMEOUT: Final = 2.0

#: Seconds a control store elsewhere may be away; after 60 Ray's client ends the whole process.
AWAY_TOO_LONG: Final = 40.0

#: Seconds killed processes have to be gone.
KILL_PATIENCE: Final = 5.0

_apart = False


@contextmanager
def started_apart() -> Iterator[None]:
    """Give each process that Ray starts here a session of its own.

    ``timeout``, a shell's Ctrl-C, a closed terminal: such a signal goes to the driver's whole process group,
    and Ray's raylet and control store end at once on it, and with them the epochs that are running. Ray has
    no setting for this, but runs Python in its children before they become what they are (``preexec_fn``),
    where a fork hook can move them. Their end does not depend on the group: the kernel ends them with the
    driver (Ray asks for that on Linux only, so elsewhere they stay together).
    """
    global _apart
    _apart = sys.platform == "linux"
    try:
        yield
    finally:
        _apart = False


def _move_apart() -> None:
    if _apart:
        os.setsid()


os.register_at_fork(after_in_child=_move_apart)


class RayProcesses:
    """What was started here for one Ray: this process's children, and in their sessions the workers."""

    def __init__(self, others: frozenset[int]) -> None:
        """The sessions ``others`` are somebody else's; see :meth:`ahead`."""
        self._others = others
        self._sessions: frozenset[int] = frozenset()
        self._vital: dict[str, psutil.Process] = {}

    @classmethod
    def ahead(cls) -> RayProcesses:
        """For the Ray that is about to be started."""
        return cls(_child_sessions())

    def find(self) -> None:
        """Look which processes there are, once they were started; those found earlier stay known."""
        self._sessions |= _child_sessions() - self._others
        for process in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if (name := process.name()) in _VITAL:
                    self._vital.setdefault(name, process)

    def gone(self) -> str:
        """The vital process that has died, in words; "" while all live."""
        return next((_VITAL[name] for name, process in self._vital.items() if not _lives(process)), "")

    def end(self) -> None:
        """Kill whatever still lives: a worker may have outlived its raylet."""
        left = [process for process in psutil.process_iter() if _session(process.pid) in self._sessions]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, KILL_PATIENCE)
        # Another Ray may be started here after this one: it is not this one's processes that it misses.
        self._vital.clear()


class ControlStoreProbe:
    """Whether the control store of a Ray that was not started here can be reached."""

    def __init__(
        self,
        address: str,
        *,
        reach: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch ``address`` (HOST:PORT) by ``reach``, on a clock of seconds."""
        self._address = address
        self._reach = reach or _can_connect
        self._clock = clock
        self._next_look = clock()
        self._seen: float | None = None

    def gone(self) -> str:
        """In words, that it has been away for too long; "" while it may come back.

        One that was never reached is not missed: through a proxy (``ray://``) its address means nothing here.
        """
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + PROBE_EVERY
            if self._reach(self._address):
                self._seen = now
        if self._seen is None or now - self._seen <= AWAY_TOO_LONG:
            return ""
        return f"the control store (GCS) at {self._address}"


def _child_sessions() -> frozenset[int]:
    pids = (process.pid for process in psutil.Process().children())
    return frozenset(pid for pid in pids if _session(pid) == pid)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _can_connect(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT).close()
    except OSError:
        return False
    return True
