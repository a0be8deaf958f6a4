"""The trials that ended badly, by what they died of."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from tune_rescon.config import TrialState
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["Failure", "failures"]

_BAD = (TrialState.FAILED, TrialState.OUT_OF_MEMORY, TrialState.DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One cause."""

    state: TrialState
    cause: str
    """In a line: the exception, as Python puts it last."""
    numbers: tuple[int, ...]
    details: str
    """All that the first of them said, with its traceback."""


def failures(result: StudyResult) -> tuple[Failure, ...]:
    """Every cause, the most frequent first."""
    groups: dict[tuple[TrialState, str], list[TrialSummary]] = defaultdict(list)
    for trial in result.trials:
        if trial.state in _BAD:
            groups[trial.state, _cause(trial)].append(trial)
    found = [
        Failure(
            state=state,
            cause=cause,
            numbers=tuple(trial.number for trial in trials),
            details=(trials[0].error or "").strip(),
        )
        for (state, cause), trials in groups.items()
    ]
    return tuple(sorted(found, key=lambda failure: (-len(failure.numbers), failure.numbers)))


def _cause(trial: TrialSummary) -> str:
    if trial.error and trial.error.strip():
        return trial.error.strip().splitlines()[-1].strip()
    if trial.state is TrialState.DIVERGED:
        return f"{trial.metric} was not finite"
    return "no reason was recorded"
