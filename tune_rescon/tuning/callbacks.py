"""Listeners and presentations, which receive the events of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.result import StudyResult
from tune_rescon.tuning.stopping_rule import Verdict
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "ClusterSize",
    "Gauges",
    "Presentation",
    "SearchListener",
]


@dataclass(frozen=True, kw_only=True)
class ClusterSize:
    """All resources that Ray has for trials, used and unused."""

    nodes: int
    """Number of live nodes."""
    gpus: float
    cpus: float


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """Values that can be read while a search runs, from any thread, at any time and without blocking."""

    slots: int
    """Number of trials that run at once."""
    deadline: float | None
    """Time at which the trials end, in seconds on the clock of ``time.monotonic``.

    None if the search has no deadline and ends when all trials are done.
    """
    waiting: Callable[[], int]
    """Return the number of updates that MLflow has not accepted yet."""
    cluster: Callable[[], ClusterSize | None]
    """Return the last known size of the cluster. None if it is unknown or can no longer be queried."""


class SearchListener(Protocol):
    """Receives the events of a search.

    Its methods are called in the driver, one at a time. They must neither block nor raise.
    """

    def search_started(self, trials: Sequence[TrialRecord]) -> None:
        """Receive the start or resume of the search. ``trials`` are the trials already in its record."""

    def trial_started(self, trial: TrialRecord) -> None:
        """Receive a trial that was started, for the first time or again."""

    def epoch_done(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Receive an epoch that was recorded and judged.

        Args:
            trial: The trial. The epoch is ``trial.epochs``.
            metrics: The metrics of the epoch.
            verdict: The verdict on the epoch.
        """

    def trial_noted(self, trial: TrialRecord, text: str) -> None:
        """Receive a note about a trial for the user."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """Receive a trial that was closed, paused or interrupted."""


class Presentation(Protocol):
    """Draws a search. Its methods are called on the thread that runs the search or ends it."""

    def note(self, result: StudyResult) -> str:
        """Return a Markdown note for the search's page in MLflow. The call is cheap."""

    def watching(
        self, snapshot: Callable[[], StudyResult], folder: SearchFolder
    ) -> AbstractContextManager[SearchListener]:
        """Return a context manager that yields a listener.

        While the context is active, the listener occasionally calls ``snapshot`` and draws the result in the
        background.
        """

    def conclude(self, result: StudyResult, folder: SearchFolder) -> Sequence[Path]:
        """Write the report of an ended search and return its files.

        Raises:
            OSError: If a file cannot be written.
        """
