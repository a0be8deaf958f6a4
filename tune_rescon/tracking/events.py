"""What there is to tell MLflow, as values that can wait in a queue.

Times are milliseconds since the epoch, MLflow's own unit. A trial is named by its number; which run shows it
is the writer's business.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = [
    "Event",
    "RunEnded",
    "RunMetrics",
    "RunRecalled",
    "RunStarted",
    "SearchEnded",
    "SearchStarted",
    "now_ms",
]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class SearchStarted:
    """Open (or re-open) the parent run."""

    tags: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    time_ms: int = field(default_factory=now_ms)


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """Open (or re-open) a trial's child run. ``run_id`` is known where an earlier run made it."""

    number: int
    params: Mapping[str, str]
    run_id: str | None = None
    time_ms: int = field(default_factory=now_ms)


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """One epoch's metrics; one request."""

    number: int
    step: int
    metrics: Mapping[str, float]
    time_ms: int = field(default_factory=now_ms)


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """Close a trial's run, with the figures that are logged once."""

    number: int
    state: str
    metrics: Mapping[str, float]
    step: int
    error: str | None = None
    notes: tuple[str, ...] = ()
    time_ms: int = field(default_factory=now_ms)


@dataclass(frozen=True, kw_only=True)
class RunRecalled:
    """Complete the run of a trial that an earlier driver handed out, which may have died amid sending."""

    start: RunStarted
    epochs: tuple[RunMetrics, ...]
    """All there are, in order."""
    end: RunEnded | None
    """None: the trial is not over."""


@dataclass(frozen=True, kw_only=True)
class SearchEnded:
    """Close the parent run, with the search's files."""

    state: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    time_ms: int = field(default_factory=now_ms)


Event: TypeAlias = SearchStarted | RunStarted | RunMetrics | RunEnded | RunRecalled | SearchEnded
