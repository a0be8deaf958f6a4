"""The rows that the table and the report share: the best trials first, one line each."""

from __future__ import annotations

from typing import Final

from tune_rescon.reporting.words import figure
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["headings", "ranked", "row"]

#: What marks a trial of the Pareto front.
FRONT: Final = "*"


def headings(result: StudyResult) -> tuple[str, ...]:
    """Column names; the sampled parameters come last. Two objectives have a column that marks the front."""
    return (
        "trial",
        "state",
        "epochs",
        result.metric,
        *(["front"] if result.against else []),
        "best",
        "params M",
        "GMACs",
        "hours",
        *_sampled(result),
    )


def ranked(result: StudyResult) -> list[TrialSummary]:
    """By how far they got, then by value there."""
    return sorted(result.trials, key=TrialSummary.rank_key)


def row(result: StudyResult, trial: TrialSummary) -> tuple[str, ...]:
    """One trial's cells, as text, under :func:`headings`."""
    cost = result.costs[trial.number]
    return (
        str(trial.number),
        trial.state.value,
        str(trial.epochs),
        figure(trial.value),
        *([FRONT if _is_on_front(result, trial) else ""] if result.against else []),
        figure(trial.best_value),
        f"{cost.params_m:.2f}",
        f"{cost.gmacs:.3f}",
        f"{result.compute_hours(trial):.3f}",
        *(figure(trial.parameters.get(name)) for name in _sampled(result)),
    )


def _is_on_front(result: StudyResult, trial: TrialSummary) -> bool:
    return any(trial.number == other.number for other in result.front)


def _sampled(result: StudyResult) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for trial in result.trials for name in trial.parameters))
