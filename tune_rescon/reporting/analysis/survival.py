"""Who reached each rung, and what became of them there."""

from __future__ import annotations

from dataclasses import dataclass

from tune_rescon.config import TrialState
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["RungSurvival", "rung_survival"]


@dataclass(frozen=True, kw_only=True)
class RungSurvival:
    """The trials that have a value at one rung; the other counts add up to :attr:`reached`."""

    epoch: int
    reached: int
    went_on: int
    """Finished, at the last rung."""
    stopped: int
    """Right there."""
    otherwise: int
    """Diverged or failed there, or they wait or run."""


def rung_survival(result: StudyResult) -> tuple[RungSurvival, ...]:
    """Every rung, the lowest first."""
    return tuple(_at(result, level) for level in result.levels)


def _at(result: StudyResult, level: int) -> RungSurvival:
    reached = [trial for trial in result.trials if trial.epochs >= level]
    went_on = sum(_goes_on(trial, level) for trial in reached)
    stopped = sum(trial.epochs == level and trial.state is TrialState.STOPPED for trial in reached)
    return RungSurvival(
        epoch=level,
        reached=len(reached),
        went_on=went_on,
        stopped=stopped,
        otherwise=len(reached) - went_on - stopped,
    )


def _goes_on(trial: TrialSummary, level: int) -> bool:
    return trial.epochs > level or trial.state is TrialState.FINISHED
