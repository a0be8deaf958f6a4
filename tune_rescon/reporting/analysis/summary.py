"""The result and the cost of a search: one function for each figure."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.config import TrialConfig, TrialState
from tune_rescon.reporting.formatting import device_hours_unit
from tune_rescon.spaces import place_config
from tune_rescon.tuning import StudyResult, TrialRecord, pareto_front
from tune_rescon.tuning.trial import FAILED_STATES

__all__ = [
    "UNKNOWN",
    "CostFront",
    "Failure",
    "Group",
    "Incumbent",
    "RankClass",
    "RungSurvival",
    "Savings",
    "best_command",
    "cost_fronts",
    "device_hours",
    "devices_of",
    "failures",
    "grouping",
    "groups",
    "incumbents",
    "rank_classes",
    "rung_survival",
    "savings",
    "shared_epoch",
    "values_at",
]


#: Names of the classes, and for each the fraction of all trials at which it ends.
SHARES: Final = (("best tenth", 0.1), ("best quarter", 0.25), ("better half", 0.5), ("the rest", 1.0))


@dataclass(frozen=True, kw_only=True)
class RankClass:
    """A class of trials of similar rank."""

    name: str
    numbers: tuple[int, ...]
    """Numbers of the trials, the best first."""


def rank_classes(values: Mapping[int, float], *, maximize: bool) -> tuple[RankClass, ...]:
    """Return the classes that have a trial, the best first.

    >>> [c.numbers for c in rank_classes({0: 0.1, 1: 0.9, 2: 0.5}, maximize=True)]
    [(1,), (2,), (0,)]
    """
    order = sorted(values, key=lambda number: (-values[number] if maximize else values[number], number))
    ends = [math.ceil(share * len(order)) for _, share in SHARES]
    begins = [0, *ends[:-1]]
    classes = (
        RankClass(name=name, numbers=tuple(order[begin:end]))
        for (name, _), begin, end in zip(SHARES, begins, ends, strict=True)
    )
    return tuple(one for one in classes if one.numbers)


#: The field that remains a parameter if all others are fixed, because a space needs at least one parameter.
_KEPT_PARAMETER: Final = "learning_rate"


def best_command(result: StudyResult) -> str | None:
    """Return the command of a search that trains only the best trial, to the last epoch.

    The command uses the space in the search's folder: a row of ``initial`` is run first. If a resume has
    changed that space so that it no longer contains the trial, the command fixes every field but one instead.

    Returns:
        The command, or None if the search has no best trial.
    """
    config = None if result.best is None else result.best.config(result.space)
    if config is None:
        return None
    row = place_config(result.space, config.to_dict()).sampled
    settings = [] if row is not None else _fixed(config)
    row = row or {_KEPT_PARAMETER: config.learning_rate}
    return shlex.join(
        [
            *("python", "-m", "tune_rescon.search"),
            *("--space", str(result.folder / "space.yaml"), "--name", f"{result.name}-best"),
            *settings,
            # JSON is valid YAML, and it keeps every digit.
            *("--trials", "1", "--set", f"initial=[{json.dumps(row)}]", "--set", "sampler.type=random"),
        ]
    )


def _fixed(config: TrialConfig) -> list[str]:
    """Return the settings of a space that contains only this configuration."""
    default = TrialConfig().to_dict()
    fixed = {
        name: value
        for name, value in config.to_dict().items()
        if value != default[name] and name not in (_KEPT_PARAMETER, "dataset")
    }
    values: dict[str, Any] = {
        "fixed": fixed,
        "parameters": {_KEPT_PARAMETER: {"type": "categorical", "choices": [config.learning_rate]}},
        "scheduler.group_by": None,
    }
    if config.dataset is not None:
        values["dataset.name"] = config.dataset
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@dataclass(frozen=True, kw_only=True)
class CostFront:
    """The trials with a finite value, by one cost."""

    title: str
    points: tuple[tuple[TrialRecord, float], ...]
    """Each trial and its cost."""
    front: tuple[tuple[TrialRecord, float], ...]
    """The trials with as many epochs as the best one that no other such trial dominates, cheapest first."""


def cost_fronts(result: StudyResult) -> tuple[CostFront, ...]:
    """Return the fronts by GMACs, parameters and compute; a cost that no trial has is left out."""
    costs: list[tuple[str, Callable[[TrialRecord], float]]] = [
        ("GMACs an image", lambda trial: result.costs[trial.number].gmacs),
        ("million parameters", lambda trial: result.costs[trial.number].params_m),
        (device_hours_unit(result.device), result.compute_hours),
    ]
    fronts = (_front(result, title, cost) for title, cost in costs)
    return tuple(front for front in fronts if front.points)


def _front(result: StudyResult, title: str, cost: Callable[[TrialRecord], float]) -> CostFront:
    # Use the value that trials are ranked by, so that the front and the best trial agree with the table.
    priced = {t.number: (t, cost(t)) for t in result.trials if math.isfinite(t.value)}
    priced = {number: point for number, point in priced.items() if math.isfinite(point[1])}
    furthest = result.best.epochs if result.best else 0
    sign = 1 if result.maximize else -1
    peers = {
        n: (sign * trial.value, spent) for n, (trial, spent) in priced.items() if trial.epochs == furthest
    }
    front = tuple(priced[number] for number in pareto_front(peers))
    return CostFront(title=title, points=tuple(priced.values()), front=front)


#: The device kind of an epoch whose record has none because an earlier version wrote it.
UNKNOWN: Final = "unknown"


def device_hours(result: StudyResult) -> dict[str, float]:
    """Return the device-hours by device kind, in descending order.

    Each epoch counts for the kind that it ran on, so a trial that moved counts for several kinds.
    """
    hours: defaultdict[str, float] = defaultdict(float)
    for trial in result.trials:
        for epoch, seconds in enumerate(trial.device_seconds(result.devices_per_trial)):
            if seconds:
                kind = trial.devices[epoch] if epoch < len(trial.devices) else None
                hours[kind or UNKNOWN] += seconds / 3600
    return dict(sorted(hours.items(), key=lambda item: (-item[1], item[0])))


def devices_of(trial: TrialRecord) -> str:
    """Return the device kinds that a trial ran on, in order and without repeats; "" if none is known."""
    return ", ".join(dict.fromkeys(kind for kind in trial.devices if kind))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The trials that failed for one cause."""

    state: TrialState
    cause: str
    """The cause in one line: the exception, which is the last line of a Python traceback."""
    numbers: tuple[int, ...]
    details: str
    """The full error message of the first of these trials, with its traceback."""


def failures(result: StudyResult) -> tuple[Failure, ...]:
    """Return every cause of failure, the most frequent first."""
    groups: dict[tuple[TrialState, str], list[TrialRecord]] = defaultdict(list)
    for trial in result.trials:
        if trial.state in FAILED_STATES:
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


def _cause(trial: TrialRecord) -> str:
    if trial.error and trial.error.strip():
        return trial.error.strip().splitlines()[-1].strip()
    if trial.state is TrialState.DIVERGED:
        return f"{trial.metric} was not finite"
    return "no reason was recorded"


#: Number of trials that makes a comparison worth drawing.
ENOUGH: Final = 30


def values_at(result: StudyResult, epoch: int) -> dict[int, float]:
    """Return the finite values after ``epoch`` of the trials that reached it, by trial number."""
    reached = {t.number: t.values[epoch - 1] for t in result.trials if t.epochs >= epoch > 0}
    return {number: value for number, value in reached.items() if math.isfinite(value)}


def shared_epoch(result: StudyResult) -> int:
    """Return the highest rung at which :data:`ENOUGH` trials have a value.

    If no rung has that many, return the rung with the most values, or 0 if no trial has a value. Values at a
    higher rung are more meaningful; a lower rung compares more trials.
    """
    counts = {level: len(values_at(result, level)) for level in {1, *result.levels}}
    populated = [level for level, count in counts.items() if count >= ENOUGH]
    most = max(counts, key=lambda level: (counts[level], level))
    return max(populated) if populated else most if counts[most] else 0


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The epochs that ran, and the epochs that the stopped trials would have run."""

    epochs: int
    """Epochs that ran."""
    epochs_saved: int
    hours: float
    """Device-hours of the epochs that ran."""
    hours_saved: float
    """Estimated device-hours of the saved epochs, by the mean epoch of each stopped trial."""

    @property
    def share(self) -> float:
        """Saved epochs as a fraction of all epochs that would have run, 0..1."""
        return self.epochs_saved / max(self.epochs + self.epochs_saved, 1)


def savings(result: StudyResult) -> Savings:
    """Return the savings by the trials that were stopped; diverged and failed trials saved nothing."""
    stopped = [trial for trial in result.trials if trial.state is TrialState.STOPPED and trial.epochs]
    last = result.levels[-1]
    return Savings(
        epochs=sum(trial.epochs for trial in result.trials),
        epochs_saved=sum(last - trial.epochs for trial in stopped),
        hours=math.fsum(result.compute_hours(trial) for trial in result.trials),
        hours_saved=math.fsum(_hours_saved(result, trial, last) for trial in stopped),
    )


def _hours_saved(result: StudyResult, trial: TrialRecord, last: int) -> float:
    return result.compute_hours(trial) / trial.epochs * (last - trial.epochs)


@dataclass(frozen=True, kw_only=True)
class RungSurvival:
    """The trials that have a value at one rung. The other three counts add up to :attr:`reached`."""

    epoch: int
    reached: int
    continued: int
    """Trials that continued after the rung or, at the last rung, finished."""
    stopped: int
    """Trials that were stopped at the rung."""
    otherwise: int
    """Trials that diverged or failed at the rung, or that wait or run."""


def rung_survival(result: StudyResult) -> tuple[RungSurvival, ...]:
    """Return the survival at every rung, the lowest first."""
    return tuple(_survival_at(result, level) for level in result.levels)


def _survival_at(result: StudyResult, level: int) -> RungSurvival:
    reached = [trial for trial in result.trials if trial.epochs >= level]
    continued = sum(_continued(trial, level) for trial in reached)
    stopped = sum(trial.epochs == level and trial.state is TrialState.STOPPED for trial in reached)
    return RungSurvival(
        epoch=level,
        reached=len(reached),
        continued=continued,
        stopped=stopped,
        otherwise=len(reached) - continued - stopped,
    )


def _continued(trial: TrialRecord, level: int) -> bool:
    return trial.epochs > level or trial.state is TrialState.FINISHED


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
    for _, number, epoch, value, seconds in sorted(_epochs(result, result.trials)):
        spent += seconds / 3600
        score = value if result.maximize else -value
        if math.isfinite(value) and (epoch, score) > best:
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
    for _, number, epoch, reached, seconds in sorted(_epochs(result, trials)):
        spent += seconds / 3600
        lead = reached - best[-1].value if best else math.inf
        if math.isfinite(reached) and (lead if result.maximize or not best else -lead) > 0:
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
