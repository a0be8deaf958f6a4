"""Callbacks and presentations, which receive the events of a search."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.result import StudyResult
from tune_rescon.tuning.stopping.rule import Verdict
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["CallbackList", "ClusterSize", "Gauges", "Presentation", "SearchCallback"]

_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")


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


class SearchCallback:
    """Receives the events of a search. A subclass overrides the methods that it needs; the others do nothing.

    The methods are called in the driver, not in the trials' worker processes, one at a time. They must return
    quickly, because the trials wait for the decisions that follow. A resumed search calls them only for new
    events: :meth:`on_search_start` has the trials of earlier runs.
    """

    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        """Called before the first trial starts.

        Args:
            trials: The trials that the search already has. Empty for a new search.
        """

    def on_trial_start(self, trial: TrialRecord) -> None:
        """Called when a trial starts, for the first time or again.

        Args:
            trial: The trial. ``trial.epochs`` is above 0 if it continues from a checkpoint.
        """

    def on_progress(self, trial: TrialRecord, share: float) -> None:
        """Called every 15 seconds in an epoch that takes longer.

        Args:
            trial: The trial. ``trial.epochs`` are the epochs before this one.
            share: The share of the epoch that has been trained, between 0 and 1.
        """

    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Called when an epoch has been recorded and judged.

        Args:
            trial: The trial. The epoch is ``trial.epochs``.
            metrics: The metrics of the epoch, by their names in the record.
            verdict: The decision about the trial, with its rank at the rung if the epoch is a rung's.
        """

    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        """Called with a message about a trial for the user.

        Args:
            trial: The trial.
            text: The message.
        """

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Called when a trial has ended, or is paused or interrupted.

        Args:
            trial: The trial. ``trial.state`` is the state in which it ended.
        """


class CallbackList(SearchCallback):
    """Calls several callbacks, in the given order."""

    def __init__(self, callbacks: Iterable[SearchCallback] = (), *, safe: bool = False) -> None:
        """Store the callbacks.

        If ``safe`` is True, an exception of a callback does not end the search, because a search costs hours
        of GPUs and a user's callback may fail. The exception is logged with its traceback, a message names
        the callback, and it is not called again.
        """
        self._callbacks = list(callbacks)
        self._safe = safe

    def add(self, callback: SearchCallback) -> None:
        """Call ``callback`` too, after the others."""
        self._callbacks.append(callback)

    @override
    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        self._call(lambda callback: callback.on_search_start(trials))

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        self._call(lambda callback: callback.on_trial_start(trial))

    @override
    def on_progress(self, trial: TrialRecord, share: float) -> None:
        self._call(lambda callback: callback.on_progress(trial, share))

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        self._call(lambda callback: callback.on_epoch(trial, metrics, verdict))

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        self._call(lambda callback: callback.on_trial_note(trial, text))

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        self._call(lambda callback: callback.on_trial_end(trial))

    def _call(self, event: Callable[[SearchCallback], None]) -> None:
        for callback in list(self._callbacks):
            try:
                event(callback)
            except Exception as error:
                if not self._safe:
                    raise
                self._callbacks.remove(callback)
                name = type(callback).__name__
                _LOGGER.exception("the callback %s failed", name)
                _PROGRESS.info(
                    f"The callback {name} raised {type(error).__name__}: {error}. It is not called again; the"
                    " search continues."
                )


class Presentation(Protocol):
    """Draws a search. Its methods are called on the thread that runs the search or ends it."""

    def note(self, result: StudyResult) -> str:
        """Return a Markdown note for the search's page in MLflow. The call is cheap."""

    def watching(
        self, snapshot: Callable[[], StudyResult], folder: SearchFolder
    ) -> AbstractContextManager[SearchCallback]:
        """Return a context manager that yields a callback.

        While the context is active, the callback occasionally calls ``snapshot`` and draws the result in the
        background.
        """

    def conclude(self, result: StudyResult, folder: SearchFolder) -> Sequence[Path]:
        """Write the report of an ended search and return its files.

        Raises:
            OSError: If a file cannot be written.
        """
