"""Ray itself: started here, or joined, watched, and asked what a trial can get."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.errors import ClusterError, explain
from tune_rescon.tuning.execution.processes import ControlStoreProbe, RayProcesses, started_apart
from tune_rescon.tuning.execution.room import Nodes, growth, nodes_of
from tune_rescon.tuning.execution.starting import check_temp_dir, first_line, start_or_retry

__all__ = ["RaySession", "prepare_environment", "ray_session"]

_LOGGER: Final = logging.getLogger(__name__)

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
        raise ClusterError(explain(rule, got=got, where="--address", hint=hint)) from error


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
