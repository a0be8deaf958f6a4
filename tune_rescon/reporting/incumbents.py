"""The best trial so far, by the hours spent: of a search, and of each of its groups of trials.

A trial that diverged or failed later is never the best one, but its hours count.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tune_rescon.reporting.hours import spent_hours, spent_seconds
from tune_rescon.tuning import StudyResult, TrialRecord
from tune_rescon.tuning.trial import usable_trials

__all__ = ["Group", "Incumbent", "grouping", "groups", "incumbents"]


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best trial from some time on: the one with the most epochs and, among these, the best value."""

    hours: float
    """Hours that all trials had spent by then: see :func:`.spent_hours`."""
    number: int
    epoch: int
    value: float


def incumbents(result: StudyResult) -> tuple[Incumbent, ...]:
    """Return the changes of the best trial: another one became the best, or it trained further.

    The value may get worse when a trial with more epochs becomes the best.
    """
    changes: list[Incumbent] = []
    best = (0, -math.inf)
    spent = 0.0
    usable = {trial.number for trial in usable_trials(result.trials)}
    for _, number, epoch, value, seconds in sorted(_epochs(result, result.trials)):
        spent += seconds / 3600
        score = value if result.maximize else -value
        if number in usable and math.isfinite(value) and (epoch, score) > best:
            best = (epoch, score)
            changes.append(Incumbent(hours=spent, number=number, epoch=epoch, value=value))
    return tuple(changes)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The trials with the same value of a parameter, such as a network: their costs and best values."""

    value: object
    """The value of the parameter, as Optuna stores it."""
    trials: int
    epochs: int
    hours: float
    """Hours of the group's trials: see :func:`.spent_hours`."""
    best: tuple[Incumbent, ...]
    """The best value each time it improved, with the hours that the group had spent by then."""

    def best_within(self, hours: float) -> Incumbent | None:
        """Return the best value within the group's first ``hours`` hours; None without a value."""
        # A sum of the same numbers in another order may differ in its last digit.
        return next((each for each in reversed(self.best) if each.hours <= hours * (1 + 1e-9)), None)


def grouping(result: StudyResult) -> str | None:
    """Return the parameter that defines the groups: ``scheduler.group_by``, or else the network.

    Returns:
        The name, or None if the space does not have the parameter.
    """
    name = result.space.scheduler.group_by or "network"
    return name if name in result.space.parameters else None


def groups(result: StudyResult) -> tuple[Group, ...]:
    """Return the groups of :func:`grouping` that have an epoch, the best first.

    The result is empty if there are fewer than two. Groups may differ in cost: compare them at the
    hours that all of them have spent.
    """
    name = grouping(result)
    if name is None:
        return ()
    members: defaultdict[object, list[TrialRecord]] = defaultdict(list)
    for trial in result.trials:
        if trial.epochs:
            members[trial.setting(name)].append(trial)
    if len(members) < 2:
        return ()
    sign = 1 if result.maximize else -1
    return tuple(
        sorted(
            (_group(result, value, trials) for value, trials in members.items()),
            key=lambda group: -sign * group.best[-1].value if group.best else math.inf,
        )
    )


def _group(result: StudyResult, value: object, trials: Sequence[TrialRecord]) -> Group:
    best: list[Incumbent] = []
    sign = 1 if result.maximize else -1
    spent = 0.0
    usable = {trial.number for trial in usable_trials(trials)}
    for _, number, epoch, value_so_far, seconds in sorted(_epochs(result, trials)):
        spent += seconds / 3600
        is_better = not best or sign * value_so_far > sign * best[-1].value
        if number in usable and math.isfinite(value_so_far) and is_better:
            best.append(Incumbent(hours=spent, number=number, epoch=epoch, value=value_so_far))
    return Group(
        value=value,
        trials=len(trials),
        epochs=sum(trial.epochs for trial in trials),
        hours=spent_hours(result, trials),
        best=tuple(best),
    )


def _epochs(result: StudyResult, trials: Iterable[TrialRecord]) -> list[tuple[int, int, int, float, float]]:
    """Return the end, trial number, epoch number, trial's value so far and seconds spent of each epoch."""
    spent = spent_seconds(result)
    return [
        (when, trial.number, epoch, value, seconds)
        for trial in trials
        for epoch, (when, value, seconds) in enumerate(
            zip(
                trial.times_ms,
                _values_so_far(trial),
                itertools.chain(spent(trial), itertools.repeat(0.0)),
                strict=False,
            ),
            1,
        )
    ]


def _values_so_far(trial: TrialRecord) -> Sequence[float]:
    """Return a trial's value after each epoch, as ``metric.at`` defines it."""
    if trial.at == "last":
        return trial.values
    better, worst = (max, -math.inf) if trial.maximize else (min, math.inf)
    finite = (value if math.isfinite(value) else worst for value in trial.values)
    running = itertools.accumulate(finite, better)
    return [
        best if math.isfinite(value) else value for best, value in zip(running, trial.values, strict=True)
    ]
