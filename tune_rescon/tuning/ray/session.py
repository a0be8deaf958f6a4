"""Ray itself: started here, or joined, watched, and asked what a trial can get."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psutil

from tune_rescon.errors import ClusterError, ConfigError, format_error
from tune_rescon.tuning.resources import Nodes, growth, nodes_of

__all__ = [
    "LONGER_START",
    "ControlStoreProbe",
    "RayProcesses",
    "RaySession",
    "check_temp_dir",
    "first_line",
    "prepare_environment",
    "ray_session",
    "start_or_retry",
    "started_apart",
]


_LOGGER: Final = logging.getLogger(__name__)

#: Bytes of a Unix socket's path: 108 in C, with the 0 at its end.
SOCKET_PATH: Final = 107

#: The longest path that Ray makes in its temporary directory, of a process number of so many digits.
_SOCKET: Final = "/ray/session_2026-01-01_00-00-00_000000_{}/sockets/plasma_store"

#: Ray's setting for how long its control store may take to start, seconds, where it took too long at first.
#: Its node manager has 30 s in any case (ray 2.60): at the second try its files are in memory.
LONGER_START: Final = {"RAY_gcs_server_port_wait_time_s": "120"}

_Started = TypeVar("_Started")


def check_temp_dir(environment: Mapping[str, str], *, pid: int) -> None:
    """Check that Ray's sockets fit into its temporary directory; batch systems give long ones.

    Args:
        environment: ``RAY_TMPDIR`` or ``TMPDIR`` name the directory; else it is ``/tmp``.
        pid: the process that starts Ray.

    Raises:
        ConfigError: the directory's path is too long.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), "")
    room = SOCKET_PATH - len(_SOCKET.format(pid).encode())
    got = len(os.fsencode(environment.get(name, "/tmp")))
    if got > room:
        rule = f"must be a path of at most {room} bytes: Ray puts its sockets there"
        hint = "Give Ray a short one: RAY_TMPDIR=/tmp."
        raise ConfigError(format_error(rule, got=f"{got}: {environment[name]}", where=name, hint=hint))


def start_or_retry(
    start: Callable[[], _Started], clean_up: Callable[[], object], say: Callable[[str], object]
) -> _Started:
    """Start Ray; if that fails, once more with a longer limit (:data:`LONGER_START`).

    Args:
        start: starts it.
        clean_up: ends what a start that failed has left.
        say: tells the user that it takes longer.

    Raises:
        ClusterError: both failed.
    """
    try:
        return start()
    # Ray raises a bare Exception where its node manager is not there in time.
    except Exception as error:
        _LOGGER.exception("Ray did not start")
        clean_up()
        say(f"Ray did not start ({first_line(error)}); trying once more")
    try:
        with _set_in_environment(LONGER_START):
            return start()
    except Exception as error:
        _LOGGER.exception("Ray did not start, also at the second try")
        clean_up()
        hint = (
            "The machine may be overloaded, or short of memory or room in /tmp: try again when it is not, or"
            " run fewer searches at once."
        )
        rule = "Ray must start on this machine"
        raise ClusterError(
            format_error(rule, got=f"two failures ({first_line(error)})", hint=hint)
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, without the rest; its type if it says nothing."""
    return str(error).strip().partition("\n")[0].strip(" .") or type(error).__name__


@contextmanager
def _set_in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have ``values`` in the environment, unless the user has others there."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


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
        left = [process for process in psutil.process_iter() if _session_id(process.pid) in self._sessions]
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


#: Bytes of shared memory a local Ray sets aside; trials exchange nothing but a report an epoch.
LOCAL_OBJECT_STORE: Final = 128 * 1024**2

#: Seconds Ray has to shut down in order; it takes one to six, also when half of it is dead.
SHUTDOWN_PATIENCE: Final = 15.0

#: Ray and Tune as this package needs them, for the driver and its workers.
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The command has its own handler, which ends a search in a way that can be resumed.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The record is what a search resumes from; Tune's own snapshots would only cost time.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # A stopped trial's thread may be amid freeing its memory when its process is reused.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
}

#: For a Ray of this machine's own.
_OWN_RAY_ENVIRONMENT: Final = {
    # It would start a worker for each core. Trials need other ones, for Tune gives them an environment.
    "RAY_prestart_worker_first_driver": "0",
}

#: For the workers alone.
_WORKERS_ENVIRONMENT: Final = {
    # One heap for all threads. By default glibc has up to eight a core, and Ray trains each trial on a new
    # thread: its turn would be that of the next heap, which keeps its ragged rests (10 MiB a trial measured).
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True, kw_only=True)
class RaySession:
    """A Ray that runs."""

    resources: dict[str, float]
    """What it has in all, by Ray's names (CPU, GPU)."""
    now: tuple[Nodes, ...]
    """Its machines."""
    later: tuple[Nodes, ...] | None
    """Those it may come to have; None: it grows, as far as is asked."""
    gone: Callable[[], str]
    """What of it has died ("" while it lives): nothing more can come from it then. Never waits long."""


@contextmanager
def ray_session(address: str | None, say: Callable[[str], object] = _LOGGER.info) -> Iterator[RaySession]:
    """A Ray to run on: the cluster at ``address``, or one of this machine's own.

    A Ray that was started here is shut down again, to the last process; one that was already there is left
    alone. The caller's signal handlers are as they were, also while it runs. ``say`` tells the user that a
    start takes longer.

    Raises:
        ConfigError: the directory for Ray's sockets has too long a path.
        ClusterError: Ray does not start here, or cannot be reached.
    """
    prepare_environment(own_ray=address is None)
    import ray

    if ray.is_initialized():
        yield _session(ControlStoreProbe(ray.get_runtime_context().gcs_address).gone, grows=True)
        return
    own = RayProcesses.ahead()
    try:
        with _own_signal_handlers():
            if address:
                _join(address)
            else:
                check_temp_dir(os.environ, pid=os.getpid())
                start_or_retry(_start, lambda: _shut_down(own), say)
        own.find()
        probe = ControlStoreProbe(ray.get_runtime_context().gcs_address)
        yield _session(probe.gone if address else own.gone, grows=address is not None)
    finally:
        _shut_down(own)


def _session(gone: Callable[[], str], *, grows: bool) -> RaySession:
    import ray

    return RaySession(
        resources=ray.cluster_resources(),
        now=nodes_of(ray.nodes()),
        later=growth() if grows else (),
        gone=gone,
    )


def _settings() -> dict[str, Any]:
    """What a Ray of this machine's own and a cluster's are told."""
    return {
        "log_to_driver": False,
        # Its log records go where everybody's go, not to the terminal.
        "configure_logging": False,
        "runtime_env": {"env_vars": _ENVIRONMENT | _WORKERS_ENVIRONMENT},
    }


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, **_settings())
    # Ray raises many types: for a malformed address, a cluster that is gone, or another Ray version.
    except Exception as error:
        _LOGGER.exception("Ray cannot be reached")
        rule = "must be the address of a Ray cluster that can be reached"
        hint = "See whether it runs (`ray status` there), and whether its Ray has this one's version."
        got = f"{address} ({first_line(error)})"
        raise ClusterError(format_error(rule, got=got, where="--address", hint=hint)) from error


def _start() -> None:
    import ray

    with started_apart():
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=LOCAL_OBJECT_STORE,
            **_settings(),
        )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Take back what Ray does to SIGTERM (``ray.init`` has it call ``sys.exit``)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _shut_down(own: RayProcesses) -> None:
    """End the connection and whatever was started for it, in bounded time."""
    import ray

    own.find()
    if own.gone():
        # What is left of it would only be waited for.
        own.end()
    # On a thread: a call to a control store that is gone can hang.
    thread = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    thread.start()
    thread.join(SHUTDOWN_PATIENCE)
    own.end()


def prepare_environment(*, own_ray: bool) -> None:
    """Put the settings where Ray reads them when it is imported.

    A Ray of this machine's own gets a token of its own: Ray's default writes one to the home directory, and
    without any, whoever reaches its port can have it run code. Too late once Ray is imported: it keeps the
    mode it found then.
    """
    for name, value in (_ENVIRONMENT | (_OWN_RAY_ENVIRONMENT if own_ray else {})).items():
        os.environ.setdefault(name, value)
    if own_ray and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
