"""How large Ray is, asked now and then on a thread of its own: Ray's client can hang, a drawing may not."""

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


#: Seconds between two questions: an autoscaled node takes minutes.
SAMPLE_EVERY: Final = 5.0

#: Seconds an answer is waited for at the end; Ray must not be shut down under a question.
PARTING: Final = 2.0

_LOGGER = logging.getLogger(__name__)


@contextmanager
def sampled_cluster(
    gone: Callable[[], str], *, ask: Callable[[], ClusterSize] | None = None, every: float = SAMPLE_EVERY
) -> Iterator[Callable[[], ClusterSize | None]]:
    """Give a function that says, at once, what was answered last; None before that, and when Ray is gone.

    Nothing is asked before its first call, which may come from any one thread.

    Args:
        gone: what of Ray has died, "" for nothing. A Ray that is gone is not asked.
        ask: asks Ray.
        every: seconds between two questions.
    """
    sampler = _Sampler(gone, ask or _ask_ray, every)
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
            self._thread.join(PARTING)

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
            # Ray raises what it likes while it goes down; the search's watch is who judges that.
            _LOGGER.warning("Ray did not say how large it is: %s", error)
            return None


def _ask_ray() -> ClusterSize:
    import ray

    resources = ray.cluster_resources()
    return ClusterSize(
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        gpus=resources.get("GPU", 0.0),
        cpus=resources.get("CPU", 0.0),
    )
