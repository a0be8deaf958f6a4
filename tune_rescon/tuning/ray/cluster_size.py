"""Poll the size of the Ray cluster on a separate thread.

Ray's client can hang, and the search's display must not.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tune_rescon.tuning.callbacks import ClusterSize

__all__ = [
    "sampled_cluster",
]


#: Seconds between two polls. An autoscaled node takes minutes to start.
SAMPLE_EVERY: Final = 5.0

#: Seconds to wait for a running poll at the end, because Ray must not be shut down during a poll.
JOIN_SECONDS: Final = 2.0

_LOGGER = logging.getLogger(__name__)


@contextmanager
def sampled_cluster(
    gone: Callable[[], str], *, ask: Callable[[], ClusterSize] | None = None, every: float = SAMPLE_EVERY
) -> Iterator[Callable[[], ClusterSize | None]]:
    """Provide a function that returns the last known size of the cluster at once.

    The function returns None before the first result and after Ray has died. Polling starts with the
    function's first call, which may come from any thread, but all calls must come from the same one.

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
            self._thread.join(JOIN_SECONDS)

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
            _LOGGER.warning("Ray did not say how large it is: %s", error)
            return None


def _poll_ray() -> ClusterSize:
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        gpus=resources.get("GPU", 0.0),
        cpus=resources.get("CPU", 0.0),
    )
