"""What can be read off a search while it runs, beside what its listeners are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["ClusterSize", "Gauges"]


@dataclass(frozen=True, kw_only=True)
class ClusterSize:
    """What Ray has to run trials on, all of it, in use or not."""

    nodes: int
    """Those that live."""
    gpus: float
    cpus: float


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """Each is read from any thread, at any time, and answers at once."""

    slots: int
    """Trials that run at once."""
    deadline: float | None
    """When trials are to end, seconds on ``time.monotonic``'s clock; None: when all are done."""
    waiting: Callable[[], int]
    """Updates that MLflow has not taken yet."""
    cluster: Callable[[], ClusterSize | None]
    """As it was seen last; None: not yet, or it cannot be asked any more."""
