"""What early stopping did not have to train."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tune_rescon.config import TrialState
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["Savings", "savings"]


@dataclass(frozen=True, kw_only=True)
class Savings:
    """Epochs that ran, and those that the stopped trials would have run to the last one."""

    epochs: int
    """That ran."""
    epochs_saved: int
    hours: float
    """Device-hours that ran."""
    hours_saved: float
    """At each stopped trial's own mean epoch: an estimate."""

    @property
    def share(self) -> float:
        """Saved epochs of all that would have run, 0..1."""
        return self.epochs_saved / max(self.epochs + self.epochs_saved, 1)


def savings(result: StudyResult) -> Savings:
    """Of the trials that a rule stopped; what diverged or failed was no saving."""
    stopped = [trial for trial in result.trials if trial.state is TrialState.STOPPED and trial.epochs]
    last = result.levels[-1]
    return Savings(
        epochs=sum(trial.epochs for trial in result.trials),
        epochs_saved=sum(last - trial.epochs for trial in stopped),
        hours=math.fsum(result.compute_hours(trial) for trial in result.trials),
        hours_saved=math.fsum(_hours_saved(result, trial, last) for trial in stopped),
    )


def _hours_saved(result: StudyResult, trial: TrialSummary, last: int) -> float:
    return result.compute_hours(trial) / trial.epochs * (last - trial.epochs)
