"""Who is told what happens in a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.result import StudyResult
from tune_rescon.tuning.schedulers import Verdict
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "ClusterSize",
    "Gauges",
    "Presentation",
    "SearchListener",
]


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


class SearchListener(Protocol):
    """Whoever wants to know what happens. Called on the driver's main thread; may neither block nor raise."""

    def search_started(self, trials: Sequence[TrialRecord]) -> None:
        """The search begins, or goes on; ``trials`` is what its record holds already."""

    def trial_started(self, trial: TrialRecord) -> None:
        """A trial was handed out, for the first time or again."""

    def epoch_done(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """An epoch (``trial.epochs``) was recorded and judged."""

    def trial_noted(self, trial: TrialRecord, text: str) -> None:
        """Something happened to a trial that the user should know."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """A trial was closed, paused or interrupted."""


class Presentation(Protocol):
    """Called on the thread that runs the search or ends it."""

    def note(self, result: StudyResult) -> str:
        """Markdown, for the search's page in MLflow; cheap."""

    def watching(
        self, snapshot: Callable[[], StudyResult], folder: SearchFolder
    ) -> AbstractContextManager[SearchListener]:
        """A listener that now and then takes a ``snapshot`` and draws it, aside, while the block lasts."""

    def conclude(self, result: StudyResult, folder: SearchFolder) -> Sequence[Path]:
        """Write what is to be seen of a search that has ended; the files.

        Raises:
            OSError: a file cannot be written.
        """
