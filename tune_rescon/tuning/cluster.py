"""Ray itself: started here, or joined, and asked what a trial can get."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tune_rescon.errors import ResourceError, explain

__all__ = ["fit_slots", "ray_session"]

#: Bytes of shared memory a local Ray sets aside; trials exchange nothing but a report an epoch.
LOCAL_OBJECT_STORE: Final = 128 * 1024**2

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


@contextmanager
def ray_session(address: str | None) -> Iterator[dict[str, float]]:
    """A Ray to run on: the cluster at ``address``, or one of this machine's own; yields its resources.

    A Ray that was started here is shut down again; one that was already there is left alone.
    """
    for name, value in _ENVIRONMENT.items():
        # Read when Ray is imported, hence the late import.
        os.environ.setdefault(name, value)
    import ray

    joined = ray.is_initialized()
    if not joined:
        own: dict[str, Any] = {}
        if address is None:
            _use_token()
            own = {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE}
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": _ENVIRONMENT},
            **own,
        )
    try:
        yield ray.cluster_resources()
    finally:
        if not joined:
            ray.shutdown()


def fit_slots(resources: dict[str, float], *, cpu: float, gpu: float, wanted: int | None) -> int:
    """Trials that can run at once, at most ``wanted``.

    Raises:
        ResourceError: not even one fits (Tune would wait for ever).
    """
    room = []
    for kind, need, unit in (("cpu", cpu, "CPU"), ("gpu", gpu, "GPU")):
        have = resources.get(unit, 0.0)
        if need > have:
            hint = f"Ask for less, for example --set resources_per_trial.{kind}={have:g}."
            rule = f"a trial asks for {need:g} {unit}, which must not be more than there is"
            got = f"{have:g} {unit}"
            raise ResourceError(explain(rule, got=got, where=f"resources_per_trial.{kind}", hint=hint))
        if need:
            room.append(int(have / need + 1e-9))
    fits = min(room, default=1)
    return min(fits, wanted) if wanted else fits


def _use_token() -> None:
    # A token of this search only: Ray's default writes one to the home directory, and without any a port
    # of this machine would run code for whoever reaches it.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
