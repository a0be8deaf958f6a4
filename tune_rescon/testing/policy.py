"""The interface between a search and the process that runs its trials; the simulator uses it.

:class:`tune_rescon.tuning.Coordinator` is a policy without any adapter. :class:`.TunePolicy` makes a policy
of a searcher and a scheduler of Ray Tune. A user's own rule can be a policy too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tune_rescon.config import TrialState
from tune_rescon.tuning import Decision

__all__ = ["Assignment", "SearchPolicy"]


class Assignment(Protocol):
    """A trial as it is handed to a worker; :class:`tune_rescon.tuning.TrialRecord` is one."""

    @property
    def number(self) -> int:
        """The trial's identity; it stays the same when the trial is handed out again."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The active hyperparameters of the trial."""

    @property
    def epochs(self) -> int:
        """Epochs that the trial has reported already."""


class SearchPolicy(Protocol):
    """Proposes trials and decides after each of their epochs. It is called from one thread."""

    @property
    def no_more_trials(self) -> bool:
        """True if no trial will be handed out any more."""

    def next_trial(self) -> Assignment | None:
        """Return the next trial for a free worker.

        None means that no trial is ready. Unless :attr:`no_more_trials` is true, call again after the next
        epoch has ended.
        """

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        """Decide after an epoch of a trial that was handed out.

        Every decision except CONTINUE frees the worker; a PAUSED trial may be handed out again. A worker that
        resumed from a checkpoint reports the checkpoint's epoch again, even if it was reported before.

        Args:
            number: the trial.
            epoch: the epoch, counted from 1.
            metrics: the metrics of the epoch.
            checkpoint: the trial's checkpoint; None if it has none.
        """

    def close(self, number: int, state: TrialState, *, error: str | None = None) -> None:
        """End a trial whose code raised.

        Args:
            number: the trial.
            state: the final state.
            error: the text of the exception.
        """

    def worker_failed(self, number: int) -> None:
        """Record that a trial's process has died. The trial may be handed out again or be given up."""
