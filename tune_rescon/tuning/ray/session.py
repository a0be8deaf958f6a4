"""Start Ray on this machine or connect to a cluster, monitor it, and report its resources."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.errors import ClusterError, ConfigError, first_line, format_error
from tune_rescon.signal_handlers import restore_handler
from tune_rescon.tuning.callbacks import ClusterSize
from tune_rescon.tuning.ray.processes import ControlStoreProbe, RayProcesses, in_own_sessions
from tune_rescon.tuning.resources import Nodes, autoscaler_limits, nodes_of

__all__ = [
    "LONGER_START",
    "RaySession",
    "check_temp_dir",
    "is_running",
    "prepare_environment",
    "ray_session",
    "sampled_cluster",
    "start_or_retry",
]


_LOGGER: Final = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")

#: Maximum length of a Unix socket's path in bytes. C allows 108, including the terminating 0.
SOCKET_PATH: Final = 107

#: The longest path that Ray creates in its temporary directory. ``{}`` is the process ID, whose digits count.
_SOCKET: Final = "/ray/session_2026-01-01_00-00-00_000000_{}/sockets/plasma_store"

#: Ray's time limit for the start of its control store, in seconds, at the second attempt. Its node manager
#: has a limit of 30 s at both attempts (ray 2.60); at the second one, Ray's files are already in memory.
LONGER_START: Final = {"RAY_gcs_server_port_wait_time_s": "120"}


def check_temp_dir(environment: Mapping[str, str], *, pid: int) -> None:
    """Check that the paths of Ray's sockets in its temporary directory are short enough.

    Batch systems set temporary directories with long paths.

    Args:
        environment: The environment variables. ``RAY_TMPDIR`` or ``TMPDIR`` names the directory; without
            them it is ``/tmp``.
        pid: The ID of the process that starts Ray.

    Raises:
        ConfigError: If the directory's path is too long.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), "")
    room = SOCKET_PATH - len(_SOCKET.format(pid).encode())
    got = len(os.fsencode(environment.get(name, "/tmp")))
    if got > room:
        rule = f"must be a path of at most {room} bytes: Ray puts its sockets there"
        hint = "Give Ray a short one: RAY_TMPDIR=/tmp."
        raise ConfigError(format_error(rule, got=f"{got}: {environment[name]}", where=name, hint=hint))


def start_or_retry(start: Callable[[], object], clean_up: Callable[[], object]) -> None:
    """Start Ray, and retry once with a longer time limit (:data:`LONGER_START`) if the start fails.

    ``clean_up`` ends the processes that a failed start has left.

    Raises:
        ClusterError: If both attempts fail.
    """
    try:
        start()
        return
    # Ray raises a bare Exception if its node manager does not start in time.
    except Exception as error:
        _LOGGER.exception("Ray did not start")
        clean_up()
        _PROGRESS.info(f"Ray did not start ({first_line(error)}); trying once more")
    try:
        with _set_in_environment(LONGER_START):
            start()
    except Exception as error:
        _LOGGER.exception("Ray did not start, also at the second try")
        clean_up()
        hint = (
            "The machine may be overloaded, or short of memory or of space in /tmp: try again later, or run"
            " fewer searches at once."
        )
        rule = "Ray must start on this machine"
        raise ClusterError(
            format_error(rule, got=f"two failures ({first_line(error)})", hint=hint)
        ) from error


@contextmanager
def _set_in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set ``values`` in the environment for the block, except variables that the user has already set."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


#: Bytes of shared memory that a local Ray reserves. Trials exchange only one report per epoch.
LOCAL_OBJECT_STORE: Final = 128 * 1024**2

#: Seconds to wait for Ray's orderly shutdown. It takes one to six seconds, even if half of Ray is dead.
SHUTDOWN_TIMEOUT: Final = 15.0

#: Settings of Ray and Tune for the driver and its workers.
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The command has its own handler, which stops a search so that it can be resumed.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A search resumes from its record; Tune's own snapshots would only cost time.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # The thread of a stopped trial may still be freeing its memory when its process is reused.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
}

#: Settings of a Ray that is started on this machine.
_OWN_RAY_ENVIRONMENT: Final = {
    # By default Ray starts a worker for each core. Trials cannot use those workers because Tune gives trials
    # their own environment.
    "RAY_prestart_worker_first_driver": "0",
}

#: Settings of the workers only.
_WORKERS_ENVIRONMENT: Final = {
    # One heap for all threads. By default, glibc has up to eight heaps per core. Ray runs each trial on a new
    # thread, which would use the next heap, and each heap keeps its fragmented memory (10 MiB per trial
    # measured).
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True, kw_only=True)
class RaySession:
    """A running Ray."""

    resources: dict[str, float]
    """The total resources, by Ray's names (CPU, GPU)."""
    now: tuple[Nodes, ...]
    """The present machines."""
    later: tuple[Nodes, ...] | None
    """The machines that may be added; None if the cluster can grow without a known limit."""
    gone: Callable[[], str]
    """Returns a description of the part of Ray that has died, or "" while Ray is alive.

    After such a death, Ray returns no more results. The call never blocks for long.
    """


@contextmanager
def ray_session(address: str | None) -> Iterator[RaySession]:
    """Connect to the Ray cluster at ``address``, or start Ray on this machine, for the block.

    A Ray that was started here is shut down afterwards, including all of its processes. A Ray that was
    already running is left running. The caller's signal handlers stay in place, also while Ray runs.

    Args:
        address: The address of a cluster; None starts Ray on this machine.

    Raises:
        ConfigError: If the path of the directory for Ray's sockets is too long.
        ClusterError: If Ray does not start, or the cluster cannot be reached.
    """
    prepare_environment(own_ray=address is None)
    import ray

    if ray.is_initialized():
        yield _session(ControlStoreProbe(ray.get_runtime_context().gcs_address).gone, grows=True)
        return
    own = RayProcesses.before_start()
    try:
        with _restored_sigterm_handler():
            if address:
                _connect(address)
            else:
                check_temp_dir(os.environ, pid=os.getpid())
                start_or_retry(lambda: _start(own), lambda: _shut_down(own))
        probe = ControlStoreProbe(ray.get_runtime_context().gcs_address)
        yield _session(probe.gone if address else own.gone, grows=address is not None)
    finally:
        _shut_down(own)


def is_running() -> bool:
    """Return whether this process is connected to a Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _session(gone: Callable[[], str], *, grows: bool) -> RaySession:
    import ray

    return RaySession(
        resources=ray.cluster_resources(),
        now=nodes_of(ray.nodes()),
        later=autoscaler_limits() if grows else (),
        gone=gone,
    )


def _init_arguments() -> dict[str, Any]:
    """Return the arguments of ``ray.init`` that a local Ray and a cluster share."""
    return {
        "log_to_driver": False,
        # Ray's log records go to the same place as all others, not to the terminal.
        "configure_logging": False,
        "runtime_env": {"env_vars": _ENVIRONMENT | _WORKERS_ENVIRONMENT},
    }


def _connect(address: str) -> None:
    import ray

    try:
        ray.init(address=address, **_init_arguments())
    # Ray raises many types: for a malformed address, for a cluster that has ended, for another Ray version.
    except Exception as error:
        _LOGGER.exception("Ray cannot be reached")
        rule = "must be the address of a Ray cluster that can be reached"
        hint = "Check that it runs (`ray status` there), and that both have the same version of Ray."
        got = f"{address} ({first_line(error)})"
        raise ClusterError(format_error(rule, got=got, where="--address", hint=hint)) from error


def _start(own: RayProcesses) -> None:
    import ray

    try:
        with in_own_sessions():
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=LOCAL_OBJECT_STORE,
                **_init_arguments(),
            )
    finally:
        # At once, because a program that runs a search may start other processes later.
        own.find()


@contextmanager
def _restored_sigterm_handler() -> Iterator[None]:
    """Restore the SIGTERM handler after the block; ``ray.init`` installs one that calls ``sys.exit``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        restore_handler(signal.SIGTERM, before)


def _shut_down(own: RayProcesses) -> None:
    """Disconnect from Ray and end the processes that were started for it, in bounded time."""
    import ray

    if own.gone():
        # Otherwise ray.shutdown waits for the processes that are left.
        own.end()
    # On a thread, because a call to a control store that has died can hang.
    thread = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    thread.start()
    thread.join(SHUTDOWN_TIMEOUT)
    own.end()


def prepare_environment(*, own_ray: bool) -> None:
    """Set the environment variables that Ray reads when it is imported.

    A Ray that is started on this machine gets its own authentication token. Ray's default writes a token to
    the home directory. Without a token, any process that reaches Ray's port can run code in Ray. The token is
    not set if Ray is already imported, because Ray keeps the mode that it read at its import.

    Args:
        own_ray: True if Ray is to be started on this machine.
    """
    for name, value in (_ENVIRONMENT | (_OWN_RAY_ENVIRONMENT if own_ray else {})).items():
        os.environ.setdefault(name, value)
    if own_ray and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


#: Seconds between two polls of a cluster's size. An autoscaled node takes minutes to start.
SAMPLE_EVERY: Final = 5.0

#: Seconds to wait for a running poll at the end, because Ray must not be shut down during a poll.
POLL_TIMEOUT: Final = 2.0


@contextmanager
def sampled_cluster(
    gone: Callable[[], str], *, ask: Callable[[], ClusterSize] | None = None, every: float = SAMPLE_EVERY
) -> Iterator[Callable[[], ClusterSize | None]]:
    """Provide a function that returns the last known size of the cluster at once.

    A separate thread polls it, because Ray's client can hang, and the search's display must not. The function
    returns None before the first result and after Ray has died. Polling starts with the function's first
    call, which may come from any thread, but all calls must come from the same one.

    Args:
        gone: Returns a description of the part of Ray that has died, or "" while Ray is alive. A dead Ray is
            not polled.
        ask: Returns the size of the cluster; by default, from Ray.
        every: Seconds between two polls.
    """
    sampler = _Sampler(gone, ask or _poll_ray, every)
    try:
        yield sampler.latest
    finally:
        sampler.stop()


class _Sampler:
    def __init__(self, gone: Callable[[], str], ask: Callable[[], ClusterSize], every: float) -> None:
        self._gone, self._ask, self._every = gone, ask, every
        self._size: ClusterSize | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster-size", daemon=True)

    def latest(self) -> ClusterSize | None:
        if self._thread.ident is None and not self._done.is_set():
            self._thread.start()
        return self._size

    def stop(self) -> None:
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join(POLL_TIMEOUT)

    def _run(self) -> None:
        while not self._done.is_set():
            self._size = self._sample()
            self._done.wait(self._every)

    def _sample(self) -> ClusterSize | None:
        if self._gone():
            return None
        try:
            return self._ask()
        except Exception as error:
            # Ray may raise any exception while it shuts down. The search's Watch decides what follows.
            _LOGGER.warning("the size of the cluster could not be read: %s", error)
            return None


def _poll_ray() -> ClusterSize:
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        gpus=resources.get("GPU", 0.0),
        cpus=resources.get("CPU", 0.0),
    )
