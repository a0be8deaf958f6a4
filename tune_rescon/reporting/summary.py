"""Results and costs of a search, as plain values for tables and plots. :mod:`.timeline` has those by time."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

from tune_rescon.config import TrialConfig, TrialState, trial_name
from tune_rescon.errors import hide_passwords
from tune_rescon.reporting.formatting import format_number, in_hand_message, setting_text
from tune_rescon.reporting.hours import hours_by_unit, named_device, reserved_hours
from tune_rescon.spaces import CategoricalParameter, Space, place_config
from tune_rescon.tuning import StudyResult, TrialRecord, pareto_front, repeated
from tune_rescon.tuning.trial import FAILED_STATES, usable_trials

__all__ = [
    "ABSENT",
    "Axis",
    "CostFront",
    "Failure",
    "RankClass",
    "RungSurvival",
    "best_command",
    "cost_fronts",
    "devices_of",
    "failures",
    "parameter_axes",
    "rank_classes",
    "rung_survival",
    "shared_epoch",
    "values_at",
    "winner_messages",
]

#: The rank classes: name, and the fraction of all trials that are in this class or a better one.
RANK_CLASSES: Final = (("best tenth", 0.1), ("best quarter", 0.25), ("better half", 0.5), ("the rest", 1.0))


@dataclass(frozen=True, kw_only=True)
class RankClass:
    """Trials of similar rank."""

    name: str
    numbers: tuple[int, ...]
    """Numbers of the trials, the best first."""


def rank_classes(values: Mapping[int, float], *, maximize: bool) -> tuple[RankClass, ...]:
    """Return the classes of the trials with these values, the best first. Empty classes are left out.

    >>> [c.numbers for c in rank_classes({0: 0.1, 1: 0.9, 2: 0.5}, maximize=True)]
    [(1,), (2,), (0,)]
    """
    order = sorted(values, key=lambda number: (-values[number] if maximize else values[number], number))
    ends = [math.ceil(share * len(order)) for _, share in RANK_CLASSES]
    classes = (
        RankClass(name=name, numbers=tuple(order[start:end]))
        for (name, _), (start, end) in zip(RANK_CLASSES, pairwise([0, *ends]), strict=True)
    )
    return tuple(rank_class for rank_class in classes if rank_class.numbers)


#: A space needs at least one parameter. This field stays one if all others are fixed.
_KEPT_PARAMETER: Final = "learning_rate"


def best_command(result: StudyResult) -> str | None:
    """Return the command of a search that trains only the best trial, to the last epoch.

    The command loads the space in the search's folder and sets the trial as its only row of ``initial``. If a
    resume changed the space so that it no longer contains the trial, the command fixes every field but one.
    Passwords in URLs are hidden.

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
            *("--trials", "1", "--set", f"initial=[{_yaml(row)}]"),
            *("--set", "sampler.type=random"),
        ]
    )


def _yaml(value: object) -> str:
    """Return a value as JSON, which is valid YAML and keeps every digit, without passwords in URLs."""
    return hide_passwords(json.dumps(value))


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
    return [word for key, value in values.items() for word in ("--set", f"{key}={_yaml(value)}")]


def winner_messages(result: StudyResult) -> list[str]:
    """Return the lines that the reader should know before choosing the winner of a search."""
    return [line for line in (in_hand_message(result), _mean_message(result)) if line is not None]


def _mean_message(result: StudyResult) -> str | None:
    """Return a line with the best mean of repeated parameters; None if none were repeated.

    Among trials that differ only in their seed, the winner is the luckiest one. Final trainings are ranked by
    their means already.
    """
    winner = result.best
    if winner is None or not result.space.sampler.repeats or result.space.metric.of_test_images:
        return None
    groups = [group for group in repeated(result.trials) if len(group) > 1]
    if not groups:
        return None
    sign = 1 if result.maximize else -1
    best = max(groups, key=lambda group: sign * statistics.fmean(trial.value for trial in group))
    its = next((group for group in groups if any(t.number == winner.number for t in group)), None)
    line = (
        f"The winner, {trial_name(winner.number)}, is the best single trial. Of parameters that finished more"
        f" than once, those of {trial_name(best[0].number)} have the best mean {result.metric}: {_mean(best)}"
    )
    if its is best:
        return f"{line}. The winner is one of these."
    return f"{line}. Those of the winner {'finished once' if its is None else f'have {_mean(its)}'}."


def _mean(trials: Sequence[TrialRecord]) -> str:
    return f"{format_number(statistics.fmean(trial.value for trial in trials))} over {len(trials)} trials"


@dataclass(frozen=True, kw_only=True)
class CostFront:
    """The trials with a finite value, by one cost."""

    title: str
    points: tuple[tuple[TrialRecord, float], ...]
    """Each trial and its cost."""
    front: tuple[tuple[TrialRecord, float], ...]
    """The Pareto front, cheapest first. Only trials with as many epochs as the best one can be on it, and no
    trial that failed."""


def cost_fronts(result: StudyResult) -> tuple[CostFront, ...]:
    """Return the fronts by GMACs, parameters and device-hours. A cost that no trial has is left out.

    A search that has moved between cores and GPUs has a front by the hours of each. It contains the trials
    that ran on nothing else.
    """
    device = named_device(result.trials, result.device)
    costs: list[tuple[str, Callable[[TrialRecord], float]]] = [
        ("GMACs an image", lambda trial: result.costs[trial.number].gmacs),
        ("million parameters", lambda trial: result.costs[trial.number].params_m),
        *((unit, partial(_hours_in, result, unit, device)) for unit in reserved_hours(result)),
    ]
    fronts = (_front(result, title, cost) for title, cost in costs)
    return tuple(front for front in fronts if front.points)


def _hours_in(result: StudyResult, unit: str, device: str, trial: TrialRecord) -> float:
    """Return the device-hours of a trial; nan if some of them are of another unit."""
    hours = hours_by_unit([trial], device=device, devices=result.devices_per_trial)
    spent = {name: count for name, count in hours.items() if count}
    return spent.get(unit, 0.0) if spent.keys() <= {unit} else math.nan


def _front(result: StudyResult, title: str, cost: Callable[[TrialRecord], float]) -> CostFront:
    # The values are those that trials are ranked by, so that the front and the best trial agree with the
    # table.
    points = {t.number: (t, cost(t)) for t in result.trials if math.isfinite(t.value)}
    points = {number: point for number, point in points.items() if math.isfinite(point[1])}
    most_epochs = result.best.epochs if result.best else 0
    sign = 1 if result.maximize else -1
    comparable = {trial.number for trial in usable_trials(result.trials) if trial.epochs == most_epochs}
    objectives = {n: (sign * trial.value, spent) for n, (trial, spent) in points.items() if n in comparable}
    front = tuple(points[number] for number in pareto_front(objectives))
    return CostFront(title=title, points=tuple(points.values()), front=front)


def devices_of(trial: TrialRecord) -> str:
    """Return the kinds of devices that a trial ran on, in order and each once; "" if none is known."""
    return ", ".join(dict.fromkeys(kind for kind in trial.devices if kind))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The trials that failed for the same cause."""

    state: TrialState
    cause: str
    """The exception, which is the last line of a Python traceback."""
    numbers: tuple[int, ...]
    details: str
    """The error message of the first of these trials, with its traceback."""


def failures(result: StudyResult) -> tuple[Failure, ...]:
    """Return every cause of failure, the most frequent first."""
    groups: dict[tuple[TrialState, str], list[TrialRecord]] = defaultdict(list)
    for trial in result.trials:
        if trial.state in FAILED_STATES:
            groups[trial.state, _cause(trial)].append(trial)
    causes = [
        Failure(
            state=state,
            cause=cause,
            numbers=tuple(trial.number for trial in trials),
            details=(trials[0].error or "").strip(),
        )
        for (state, cause), trials in groups.items()
    ]
    return tuple(sorted(causes, key=lambda failure: (-len(failure.numbers), failure.numbers)))


def _cause(trial: TrialRecord) -> str:
    if trial.error and trial.error.strip():
        return trial.error.strip().splitlines()[-1].strip()
    if trial.state is TrialState.DIVERGED:
        return f"{trial.metric} was not finite"
    return "no reason was recorded"


#: Number of trials that are enough to compare.
ENOUGH: Final = 30


def values_at(result: StudyResult, epoch: int) -> dict[int, float]:
    """Return the finite values after ``epoch`` of the trials that reached it, by trial number."""
    reached = {t.number: t.values[epoch - 1] for t in result.trials if t.epochs >= epoch > 0}
    return {number: value for number, value in reached.items() if math.isfinite(value)}


def shared_epoch(result: StudyResult) -> int:
    """Return the epoch at which trials are compared: the highest rung with values of :data:`ENOUGH` trials.

    If no rung has that many, it is the rung with the most values; 0 if no trial has a value. Values at a
    higher rung are more meaningful, but a lower rung compares more trials.
    """
    counts = {rung: len(values_at(result, rung)) for rung in {1, *result.rungs}}
    if populated := [rung for rung, count in counts.items() if count >= ENOUGH]:
        return max(populated)
    most = max(counts, key=lambda rung: (counts[rung], rung))
    return most if counts[most] else 0


@dataclass(frozen=True, kw_only=True)
class RungSurvival:
    """Numbers of trials at a rung. The last three add up to :attr:`reached`."""

    epoch: int
    reached: int
    continued: int
    """Trials that continued after the rung or, at the last rung, finished."""
    stopped: int
    """Trials that were stopped at the rung."""
    other: int
    """Trials that diverged or failed at the rung, or that are interrupted, paused or running there."""


def rung_survival(result: StudyResult) -> tuple[RungSurvival, ...]:
    """Return the survival at every rung, the lowest first."""
    survival = []
    for rung in result.rungs:
        reached = [trial for trial in result.trials if trial.epochs >= rung]
        continued = sum(trial.epochs > rung or trial.state is TrialState.FINISHED for trial in reached)
        stopped = sum(trial.epochs == rung and trial.state is TrialState.STOPPED for trial in reached)
        survival.append(
            RungSurvival(
                epoch=rung,
                reached=len(reached),
                continued=continued,
                stopped=stopped,
                other=len(reached) - continued - stopped,
            )
        )
    return tuple(survival)


#: Position of trials without the parameter: below the axis.
ABSENT: Final = -0.12

#: Number of labels on a numeric axis, and the maximum number of characters of a label.
LABELS: Final = 4
MAX_LABEL: Final = 14


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The values of a parameter as positions on a scale from 0 to 1."""

    name: str
    positions: Mapping[int, float]
    """Position of each trial by its number, 0..1; :data:`ABSENT` for a trial without the parameter."""
    ticks: tuple[tuple[float, str], ...]
    """Positions and their labels, in ascending order."""
    log: bool = False
    is_categorical: bool = False


def parameter_axes(result: StudyResult) -> tuple[Axis, ...]:
    """Return an axis for each sampled parameter whose values differ, in the order of the space."""
    sampled = dict.fromkeys(name for trial in result.trials for name in trial.parameters)
    # A resume may have removed a parameter of earlier trials from the space.
    names = dict.fromkeys([*(name for name in result.space.parameters if name in sampled), *sampled])
    axes = (_axis(result, name) for name in names)
    return tuple(axis for axis in axes if len(set(axis.positions.values())) > 1)


def _axis(result: StudyResult, name: str) -> Axis:
    # A trial that was sampled before the space had the parameter still has a value: it was fixed.
    absent = object()
    settings = {trial.number: trial.setting(name, absent) for trial in result.trials}
    values = {number: value for number, value in settings.items() if value is not absent}
    is_categorical = _is_categorical(result.space, name, values.values())
    log = False
    if is_categorical:
        choices = _choices(result.space, name, set(values.values()))
        last = len(choices) - 1
        places = {choice: index / last if last else 0.5 for index, choice in enumerate(choices)}
        labels = _short([setting_text(name, str(choice)) for choice in places])
        ticks = list(zip(places.values(), labels, strict=True))
        positions = {number: places[value] for number, value in values.items()}
    else:
        low, high = _range(result.space, name, values)
        log = bool(getattr(result.space.parameters.get(name), "log", False)) and low > 0
        steps = [step / (LABELS - 1) for step in range(LABELS)] if low < high else [0.0]
        ticks = [(step, format_number(_value_at(step, low, high, log=log))) for step in steps]
        positions = {number: _share(float(value), low, high, log=log) for number, value in values.items()}
    if len(values) < len(settings):
        ticks = [(ABSENT, "none"), *ticks]
    return Axis(
        name=name,
        positions={number: positions.get(number, ABSENT) for number in settings},
        ticks=tuple(ticks),
        log=log,
        is_categorical=is_categorical,
    )


def _is_categorical(space: Space, name: str, values: Any) -> bool:
    if isinstance(space.parameters.get(name), CategoricalParameter):
        return True
    # A switch that a resume has removed from the space is True and False, and not a number from 0 to 1.
    return not all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def _choices(space: Space, name: str, used: set[Any]) -> list[Any]:
    """Return the used choices in the space's order, as Optuna stores them: a list as its text."""
    parameter = space.parameters.get(name)
    declared = parameter.choices if isinstance(parameter, CategoricalParameter) else ()
    # Compared by value, not by text: a choice of 1 is also the 1.0 of trials that ran with the default.
    stored = [str(list(choice)) if isinstance(choice, tuple) else choice for choice in declared]
    return [choice for choice in stored if choice in used] + sorted(used - set(stored), key=str)


def _range(space: Space, name: str, values: Mapping[int, Any]) -> tuple[float, float]:
    parameter = space.parameters.get(name)
    bounds = [getattr(parameter, bound) for bound in ("low", "high") if hasattr(parameter, bound)]
    # Trials of an earlier version of the space may lie outside the present bounds.
    numbers = [*bounds, *values.values()]
    return float(min(numbers)), float(max(numbers))


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    """Return the position of a value between the bounds, 0..1.

    >>> round(_share(0.01, 0.001, 0.1, log=True), 3), _share(5.0, 5.0, 5.0, log=False)
    (0.5, 0.0)
    """
    if low == high:
        return 0.0
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _value_at(share: float, low: float, high: float, *, log: bool) -> float:
    return low * (high / low) ** share if log else low + (high - low) * share


def _short(labels: Sequence[str]) -> list[str]:
    """Return labels with at most :data:`MAX_LABEL` characters that still differ; else, whole labels.

    >>> _short(["a very long name of a choice", "none"])
    ['a very long n…', 'none']
    >>> _short(["/data/runs/weights-a.pt", "/data/runs/weights-b.pt"])
    ['/data/run…a.pt', '/data/run…b.pt']
    """
    for head in range(MAX_LABEL - 1, -1, -1):
        tail = MAX_LABEL - 1 - head
        short = [
            label if len(label) <= MAX_LABEL else f"{label[:head]}…{label[len(label) - tail :]}"
            for label in labels
        ]
        if len(set(short)) == len(set(labels)):
            return short
    return list(labels)
