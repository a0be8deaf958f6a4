"""The best trial so far, by the device-hours spent: of a search, and of each of its groups of trials.

Trials that diverged or failed later count by what they spent alone, as in the choice of the winner.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tune_rescon.tuning import StudyResult, TrialRecord
from tune_rescon.tuning.trial import usable_trials

__all__ = ["Group", "Incumbent", "grouping", "groups", "incumbents"]


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best trial from some moment on: the trial with the most epochs, and of these the best value."""

    hours: float
    """Device-hours that all trials had spent by then."""
    number: int
    epoch: int
    value: float


def incumbents(result: StudyResult) -> tuple[Incumbent, ...]:
    """Return each time that the best trial changed or trained further.

    The value may get worse when a trial with more epochs becomes the best.
    """
    found: list[Incumbent] = []
    best = (0, -math.inf)
    spent = 0.0
    usable = {trial.number for trial in usable_trials(result.trials)}
    for _, number, epoch, value, seconds in sorted(_epochs(result, result.trials)):
        spent += seconds / 3600
        score = value if result.maximize else -value
        if number in usable and math.isfinite(value) and (epoch, score) > best:
            best = (epoch, score)
            found.append(Incumbent(hours=spent, number=number, epoch=epoch, value=value))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The trials of one value of a parameter, such as a network, and what they reached for what they cost."""

    value: object
    """The value of the parameter, as Optuna stores it."""
    trials: int
    epochs: int
    hours: float
    """Device-hours of the group's trials."""
    best: tuple[Incumbent, ...]
    """Each better value, with the device-hours that the group had spent by then."""

    def best_within(self, hours: float) -> Incumbent | None:
        """Return the best value of the first ``hours`` device-hours of the group; None if it had none."""
        # A sum of the same numbers in another order may differ in its last digit.
        return next((one for one in reversed(self.best) if one.hours <= hours * (1 + 1e-9)), None)


def grouping(result: StudyResult) -> str | None:
    """Return the parameter whose values are compared as groups; None without one.

    It is ``scheduler.group_by``, and else the network.
    """
    name = result.space.scheduler.group_by or "network"
    return name if name in result.space.parameters else None


def groups(result: StudyResult) -> tuple[Group, ...]:
    """Return the groups of :func:`grouping` that have an epoch, the best first; none of fewer than two.

    Groups may have spent differently: compare them at the device-hours that all of them have spent.
    """
    name = grouping(result)
    if name is None:
        return ()
    members: defaultdict[object, list[TrialRecord]] = defaultdict(list)
    for trial in result.trials:
        if trial.epochs:
            members[trial.setting(name)].append(trial)
    found = [_group(result, value, trials) for value, trials in members.items()]
    sign = 1 if result.maximize else -1
    order = sorted(found, key=lambda one: -sign * one.best[-1].value if one.best else math.inf)
    return tuple(order) if len(order) > 1 else ()


def _group(result: StudyResult, value: object, trials: Sequence[TrialRecord]) -> Group:
    best: list[Incumbent] = []
    spent = 0.0
    usable = {trial.number for trial in usable_trials(trials)}
    for _, number, epoch, reached, seconds in sorted(_epochs(result, trials)):
        spent += seconds / 3600
        lead = reached - best[-1].value if best else math.inf
        if (
            number in usable
            and math.isfinite(reached)
            and (lead if result.maximize or not best else -lead) > 0
        ):
            best.append(Incumbent(hours=spent, number=number, epoch=epoch, value=reached))
    return Group(
        value=value,
        trials=len(trials),
        epochs=sum(trial.epochs for trial in trials),
        hours=math.fsum(result.compute_hours(trial) for trial in trials),
        best=tuple(best),
    )


def _epochs(result: StudyResult, trials: Iterable[TrialRecord]) -> list[tuple[int, int, int, float, float]]:
    """Return each epoch's end time, trial and epoch number, the trial's value by then, and device-seconds."""
    return [
        (when, trial.number, epoch, value, seconds)
        for trial in trials
        for epoch, (when, value, seconds) in enumerate(
            zip(
                trial.times_ms,
                _counted(trial),
                itertools.chain(trial.device_seconds(result.devices_per_trial), itertools.repeat(0.0)),
                strict=False,
            ),
            1,
        )
    ]


def _counted(trial: TrialRecord) -> Sequence[float]:
    """Return a trial's value after each epoch, as ``metric.at`` defines it."""
    if trial.at == "last":
        return trial.values
    better, worst = (max, -math.inf) if trial.maximize else (min, math.inf)
    finite = (value if math.isfinite(value) else worst for value in trial.values)
    running = itertools.accumulate(finite, better)
    return [
        best if math.isfinite(value) else value for best, value in zip(running, trial.values, strict=True)
    ]
