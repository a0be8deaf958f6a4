"""Ray itself: started here, or joined, and asked what a trial can get."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tune_rescon.errors import ResourceError, explain

__all__ = ["fit_slots", "prepare_environment", "ray_session"]

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
    prepare_environment(own_ray=address is None)
    import ray

    joined = ray.is_initialized()
    if not joined:
        local = {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE}
        ray.init(
            address=address or "local",
            log_to_driver=False,
            # Its log records go where everybody's go, not to the terminal.
            configure_logging=False,
            runtime_env={"env_vars": _ENVIRONMENT},
            **({} if address else local),
        )
    try:
        yield ray.cluster_resources()
    finally:
        if not joined:
            ray.shutdown()


def prepare_environment(*, own_ray: bool) -> None:
    """Put the settings where Ray reads them when it is imported.

    A Ray of this machine's own gets a token of its own: Ray's default writes one to the home directory, and
    without any, whoever reaches its port can have it run code. Too late once Ray is imported: it keeps the
    mode it found then.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if own_ray and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


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
