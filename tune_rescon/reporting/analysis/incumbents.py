"""The best value so far, by what had been spent: how soon a search was good."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["Incumbent", "incumbents"]


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best trial from some moment on: furthest first, then the best value, as the winner is found."""

    hours: float
    """Device-hours that all trials had spent by then."""
    number: int
    epoch: int
    value: float


def incumbents(result: StudyResult) -> tuple[Incumbent, ...]:
    """Each time the best trial changed or came further; one that came further may have a worse value."""
    found: list[Incumbent] = []
    best = (0, -math.inf)
    spent = 0.0
    for _, number, epoch, value, seconds in sorted(_epochs(result)):
        spent += seconds / 3600 * result.devices_per_trial
        score = value if result.maximize else -value
        if math.isfinite(value) and (epoch, score) > best:
            best = (epoch, score)
            found.append(Incumbent(hours=spent, number=number, epoch=epoch, value=value))
    return tuple(found)


def _epochs(result: StudyResult) -> list[tuple[int, int, int, float, float]]:
    """When each epoch ended, its trial and number, the trial's value by then and its seconds."""
    return [
        (when, trial.number, epoch, value, seconds if math.isfinite(seconds) else 0.0)
        for trial in result.trials
        for epoch, (when, value, seconds) in enumerate(
            zip(
                trial.times_ms,
                _counted(trial),
                itertools.chain(trial.history.get("epoch_seconds", ()), itertools.repeat(0.0)),
                strict=False,
            ),
            1,
        )
    ]


def _counted(trial: TrialSummary) -> Sequence[float]:
    """A trial's value after each epoch, as ``metric.at`` counts it."""
    if trial.at == "last":
        return trial.values
    better, worst = (max, -math.inf) if trial.maximize else (min, math.inf)
    finite = (value if math.isfinite(value) else worst for value in trial.values)
    running = itertools.accumulate(finite, better)
    return [
        best if math.isfinite(value) else value for best, value in zip(running, trial.values, strict=True)
    ]
