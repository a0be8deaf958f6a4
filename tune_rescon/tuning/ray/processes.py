"""The processes of one Ray: started in their own sessions, watched, and killed when Ray has ended."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

__all__ = ["ControlStoreProbe", "RayProcesses", "in_own_sessions"]


#: The processes that Ray cannot run without: process name to description.
_VITAL: Final = {"gcs_server": "its control store (gcs_server)", "raylet": "its node manager (raylet)"}

#: Seconds between two checks of a remote control store, and the time limit of one check in seconds.
PROBE_EVERY: Final = 5.0
PROBE_TIMEOUT: Final = 2.0

#: Seconds for which a remote control store may be unreachable. Ray's own client ends this process after 60 s.
MAX_UNREACHABLE: Final = 40.0

#: Seconds to wait for killed processes to end.
KILL_TIMEOUT: Final = 5.0

_in_new_session = False


@contextmanager
def in_own_sessions() -> Iterator[None]:
    """Run each process that Ray starts within the block in its own session.

    ``timeout``, a shell's Ctrl-C and a closed terminal send their signal to the driver's whole process group.
    Ray's raylet and control store end at once on such a signal, and the running epochs are lost with them.

    Ray has no setting for this. However, Ray runs Python in its child processes before they execute their
    program (``preexec_fn``), so a fork hook can move them to another session. They still end with the driver,
    because the kernel ends them; Ray requests that on Linux only, so on other systems they stay in the
    driver's session.
    """
    global _in_new_session
    _in_new_session = sys.platform == "linux"
    try:
        yield
    finally:
        _in_new_session = False


def _start_session() -> None:
    if _in_new_session:
        os.setsid()


os.register_at_fork(after_in_child=_start_session)


class RayProcesses:
    """The processes started for one Ray: this process's children, and the workers in their sessions."""

    def __init__(self, others: frozenset[int]) -> None:
        """Exclude the sessions ``others``, which do not belong to this Ray; see :meth:`before_start`."""
        self._others = others
        self._sessions: frozenset[int] = frozenset()
        self._vital: dict[str, psutil.Process] = {}

    @classmethod
    def before_start(cls) -> RayProcesses:
        """Create an instance for a Ray that is not started yet."""
        return cls(_child_sessions())

    def find(self) -> None:
        """Find the processes after Ray has started. Those found by earlier calls are kept."""
        self._sessions |= _child_sessions() - self._others
        for process in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if (name := process.name()) in _VITAL:
                    self._vital.setdefault(name, process)

    def gone(self) -> str:
        """Return a description of the vital process that has died, or "" while all are alive."""
        return next((_VITAL[name] for name, process in self._vital.items() if not _lives(process)), "")

    def end(self) -> None:
        """Kill all processes that are still alive, because a worker may outlive its raylet."""
        left = [process for process in psutil.process_iter() if _session_id(process.pid) in self._sessions]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, KILL_TIMEOUT)
        # Another Ray may be started after this one; gone() must not report the processes killed here.
        self._vital.clear()


class ControlStoreProbe:
    """Checks whether the control store of a Ray that this process did not start can be reached."""

    def __init__(
        self,
        address: str,
        *,
        reach: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the address; nothing is checked yet.

        Args:
            address: HOST:PORT of the control store.
            reach: Returns True if the address can be reached; by default, connects to it.
            clock: Returns the time in seconds.
        """
        self._address = address
        self._reach = reach or _can_connect
        self._clock = clock
        self._next_probe = clock()
        self._seen: float | None = None

    def gone(self) -> str:
        """Return a description of the control store if it has been unreachable for too long, else "".

        A control store that was never reached is not reported: with a proxy (``ray://``), the address is not
        valid on this machine.
        """
        now = self._clock()
        if now >= self._next_probe:
            self._next_probe = now + PROBE_EVERY
            if self._reach(self._address):
                self._seen = now
        if self._seen is None or now - self._seen <= MAX_UNREACHABLE:
            return ""
        return f"the control store (GCS) at {self._address}"


def _child_sessions() -> frozenset[int]:
    pids = (process.pid for process in psutil.Process().children())
    return frozenset(pid for pid in pids if _session_id(pid) == pid)


def _session_id(pid: int) -> int | None:
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
