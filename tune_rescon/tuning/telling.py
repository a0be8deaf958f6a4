"""What the sampler is told about a trial, which is not what the study says about it.

The study is for people: a stopped trial is PRUNED, a diverged one FAIL. The sampler is to learn from both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.tuning.summary import TrialSummary

__all__ = ["Told", "told"]

#: Samplers that order pruned trials by how far they came, and by their value there.
_READS_PRUNED: Final = ("tpe",)


@dataclass(frozen=True, kw_only=True)
class Told:
    """An ended trial in Optuna's words."""

    state: OptunaState
    values: tuple[float, ...] | None = None
    steps: tuple[tuple[int, float], ...] = ()
    """Intermediate values: (epoch, value)."""


def told(trial: TrialSummary, sampler: str, *, worst: float | None) -> Told:
    """An ended ``trial`` for a sampler of the type ``sampler``.

    One that diverged or ran out of memory is worse than all others, or the sampler would go on proposing its
    neighbours; one that failed by a fault of ours says nothing about its parameters.

    Args:
        trial: ended.
        sampler: ``sampler.type`` of the space file.
        worst: the worst finite value that any trial before it ended with; None if there is none.
    """
    if trial.state in (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY):
        return _worst(trial, sampler, worst)
    if not math.isfinite(trial.value) or trial.state is TrialState.FAILED:
        return Told(state=OptunaState.FAIL)
    if trial.cost is not None:
        return Told(state=OptunaState.COMPLETE, values=(trial.value, trial.cost))
    if trial.state is TrialState.FINISHED or sampler not in _READS_PRUNED:
        return Told(state=OptunaState.COMPLETE, values=(trial.value,))
    return Told(state=OptunaState.PRUNED, values=(trial.value,), steps=((trial.epochs, trial.value),))


def _worst(trial: TrialSummary, sampler: str, worst: float | None) -> Told:
    if sampler in _READS_PRUNED:
        # TPE ranks a pruned trial without any value below all that have one.
        return Told(state=OptunaState.PRUNED)
    if worst is None or trial.cost is not None:
        return Told(state=OptunaState.FAIL)
    return Told(state=OptunaState.COMPLETE, values=(worst,))
