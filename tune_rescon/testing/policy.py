"""What a search is to whoever runs its trials: the seam that the simulator drives.

:class:`tune_rescon.tuning.Coordinator` is a policy as it stands. So is a searcher and a scheduler of Ray Tune
behind :class:`.TunePolicy`, and so can be a rule of the reader's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tune_rescon.config import TrialState
from tune_rescon.tuning import Decision

__all__ = ["Assignment", "SearchPolicy"]


class Assignment(Protocol):
    """A trial as it is handed to a worker; :class:`tune_rescon.tuning.TrialSummary` is one."""

    @property
    def number(self) -> int:
        """Who it is; the same when it is handed out again."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Its active hyperparameters."""

    @property
    def epochs(self) -> int:
        """Epochs it has reported already."""


class SearchPolicy(Protocol):
    """Whoever proposes trials and judges their epochs. Called from one thread."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing will be handed out any more."""

    def next_trial(self) -> Assignment | None:
        """The next trial for a free worker.

        None while not :attr:`exhausted` means: nothing now, ask again after the next epoch's end.
        """

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        """Judge an epoch (from 1) of a trial that was handed out.

        All but CONTINUE frees its worker; a PAUSED trial may be handed out again. A worker that went on from
        a checkpoint reports that epoch again, whether or not it was reported before.
        """

    def close(
        self, number: int, state: TrialState, *, checkpoint: str | None = None, error: str | None = None
    ) -> None:
        """End a trial whose code raised."""

    def worker_died(self, number: int) -> None:
        """The process that ran a trial is gone; the trial may be handed out again, or be given up."""
