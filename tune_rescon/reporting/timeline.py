"""A search over time: which trial held which slot when, how busy the devices were, and the best value so far.

The record does not contain the worker process of an epoch. Slots are therefore assigned: a stretch of epochs
gets the lowest slot that is free when the stretch begins. The number of slots is then the maximum number of
stretches at once.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tune_rescon.config import TrialState
from tune_rescon.metric_names import (
    CHECKPOINT_SECONDS,
    FIRST_STEP_SECONDS,
    GPU_UTILISATION,
    VALIDATION_SECONDS,
)
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "GpuUse",
    "Group",
    "Incumbent",
    "Stretch",
    "Throughput",
    "Timeline",
    "gpu_use",
    "grouping",
    "groups",
    "incumbents",
    "throughput",
    "timeline",
]

#: Two epochs of a trial belong to one stretch if the pause between them is shorter than this, in seconds, or
#: than half an epoch.
PAUSE: Final = 2.0

#: A pause of all trials that is longer than this, in seconds, means that no driver ran.
DOWN: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive epochs of one trial without a pause."""

    number: int
    state: TrialState
    """Final state of the trial."""
    begun: float
    """Start time, in seconds since 1970."""
    ended: float
    epochs: tuple[int, int]
    """The first and the last epoch."""
    busy: float
    """Seconds between :attr:`begun` and :attr:`ended` in which an epoch ran."""
    slot: int = 0


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All stretches, in the order in which they begin."""

    stretches: tuple[Stretch, ...]
    slots: int
    seconds: float
    """Seconds from the first epoch's start to the last one's end, without the time when no driver ran."""

    @property
    def utilisation(self) -> float:
        """Fraction of the slots' time in which an epoch ran, 0..1; 0 if no epoch ran."""
        busy = math.fsum(stretch.busy for stretch in self.stretches)
        return min(busy / (self.slots * self.seconds), 1.0) if self.seconds else 0.0


def timeline(result: StudyResult) -> Timeline:
    """Return the timeline of the recorded epochs.

    Epochs that were lost are not in the record, so their time counts as idle.
    """
    found = sorted(
        (stretch for trial in result.trials for stretch in _stretches(trial)),
        key=lambda stretch: (stretch.begun, stretch.number),
    )
    placed = tuple(_assign_slots(found))
    slots = 1 + max((stretch.slot for stretch in placed), default=-1)
    return Timeline(stretches=placed, slots=slots, seconds=_driver_seconds(placed))


def _stretches(trial: TrialRecord) -> Iterator[Stretch]:
    """Yield the stretches of a trial, in order."""
    held: Stretch | None = None
    for epoch, (begun, ended) in enumerate(_epoch_spans(trial), 1):
        if held is not None and begun - held.ended < max(PAUSE, (ended - begun) / 2):
            busy = held.busy + ended - begun
            held = replace(held, ended=ended, epochs=(held.epochs[0], epoch), busy=busy)
            continue
        if held is not None:
            yield held
        held = Stretch(
            number=trial.number,
            state=trial.state,
            begun=begun,
            ended=ended,
            epochs=(epoch, epoch),
            busy=ended - begun,
        )
    if held is not None:
        yield held


def _epoch_spans(trial: TrialRecord) -> Iterator[tuple[float, float]]:
    """Yield the start and end of each recorded epoch, in seconds since 1970.

    No epoch starts before the previous one ends.
    """
    before = -math.inf
    for time_ms, seconds in zip(trial.times_ms, trial.history.get("epoch_seconds", ()), strict=False):
        ended = time_ms / 1000
        begun = max(ended - seconds, before) if math.isfinite(seconds) else ended
        yield min(begun, ended), ended
        before = ended


def _assign_slots(stretches: Sequence[Stretch]) -> Iterator[Stretch]:
    """Yield each stretch with the lowest slot that is free when the stretch begins."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for stretch in stretches:
        # A report takes a moment, so a stretch that begins within it was waiting for this slot.
        while busy and busy[0][0] <= stretch.begun + 1e-3:
            heapq.heappush(free, heapq.heappop(busy)[1])
        slot = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (stretch.ended, slot))
        yield replace(stretch, slot=slot)


def _driver_seconds(stretches: Sequence[Stretch]) -> float:
    """Return the seconds from the first start to the last end, without the gaps in which no driver ran."""
    if not stretches:
        return 0.0
    total, until = 0.0, stretches[0].begun
    for stretch in stretches:
        gap = max(stretch.begun - until, 0.0)
        total += (gap if gap < DOWN else 0.0) + max(stretch.ended - max(until, stretch.begun), 0.0)
        until = max(until, stretch.ended)
    return total


#: Number of parts into which the time from the first epoch's start to the last one's end is divided.
PARTS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The recorded speeds of the epochs that ran, added up."""

    begun: float
    """Start of the first epoch, in seconds since 1970."""
    part: float
    """Duration of each entry of :attr:`speeds`, in seconds."""
    speeds: tuple[float, ...]
    """Images/s of all trials together: the mean of each part of the time, in order."""
    devices: int
    """Maximum number of devices in use at once: GPUs, or CPU cores if the trials held no GPU."""
    per_device: float
    """Images/s of one device, averaged over the time in which any epoch ran."""
    one_trial: float
    """Images/s of one trial, averaged over the time of the epochs."""


@dataclass(frozen=True, kw_only=True)
class _EpochRun:
    """An epoch: its start and end, in seconds since 1970, and its images/s or its GPU's utilisation."""

    begun: float
    ended: float
    rate: float


def throughput(result: StudyResult) -> Throughput | None:
    """Return the throughput of a search, or None if no epoch has both a speed and a duration.

    An epoch's speed is that of its training steps. It is used for the whole epoch, including validation.
    """
    runs = [run for trial in result.trials for run in _runs(trial, "images_per_second")]
    if not runs:
        return None
    devices = _devices_in_use(timeline(result).slots, result.devices_per_trial)
    images = math.fsum((run.ended - run.begun) * run.rate for run in runs)
    begun, ended = min(run.begun for run in runs), max(run.ended for run in runs)
    part = (ended - begun) / PARTS
    return Throughput(
        begun=begun,
        part=part,
        speeds=_means(runs, begun, part),
        devices=devices,
        per_device=images / _busy_seconds(runs) / devices,
        one_trial=images / math.fsum(run.ended - run.begun for run in runs),
    )


def _devices_in_use(trials: int, share: float) -> int:
    """Return the number of devices that trials hold at once, each a ``share`` of one or several.

    >>> _devices_in_use(3, 1 / 3), _devices_in_use(4, 1 / 3), _devices_in_use(3, 0.4), _devices_in_use(3, 2)
    (1, 2, 2, 6)
    """
    if share >= 1:
        return math.ceil(trials * share)
    return math.ceil(trials / math.floor(1 / share + 1e-9))


def _runs(trial: TrialRecord, metric: str) -> Iterator[_EpochRun]:
    rates = trial.history.get(metric, ())
    for (begun, ended), rate in zip(_epoch_spans(trial), rates, strict=False):
        if ended > begun and math.isfinite(rate):
            yield _EpochRun(begun=begun, ended=ended, rate=rate)


def _means(runs: Sequence[_EpochRun], begun: float, part: float) -> tuple[float, ...]:
    """Return the mean of the rates, added up, of each part of the time.

    Means are used because the many epochs begin and end within moments of each other.
    """
    images = [0.0] * PARTS
    for run in runs:
        first = int((run.begun - begun) / part)
        for index in range(first, PARTS):
            left = begun + index * part
            if left >= run.ended:
                break
            images[index] += max(0.0, min(run.ended, left + part) - max(run.begun, left)) * run.rate
    return tuple(count / part for count in images)


def _busy_seconds(runs: Sequence[_EpochRun]) -> float:
    """Return the seconds in which at least one of the epochs ran."""
    total, until = 0.0, -math.inf
    for run in sorted(runs, key=lambda run: run.begun):
        total += max(0.0, run.ended - max(run.begun, until))
        until = max(until, run.ended)
    return total


#: The causes for which a GPU may have been idle within an epoch, and the metric that has their seconds.
_CAUSES: Final = {
    "first steps": FIRST_STEP_SECONDS,
    "validation": VALIDATION_SECONDS,
    "checkpoints": CHECKPOINT_SECONDS,
}


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """How busy the GPUs were, and for how long they did something other than training steps."""

    begun: float
    """Start of the first epoch, in seconds since 1970."""
    part: float
    """Duration of each entry of :attr:`levels`, in seconds."""
    levels: tuple[float, ...]
    """Utilisation of all slots (0..1), the mean of each part of the time, in order. A slot without an epoch
    counts as idle. Empty if it was not recorded."""
    utilisation: float | None
    """Mean utilisation over the time of the epochs; None if it was not recorded."""
    shares: Mapping[str, float]
    """Share of the slots' time, by cause; the last one is the time between trials, in which no epoch ran.

    A GPU is not idle for all of it: a validation runs kernels too.
    """


def gpu_use(result: StudyResult) -> GpuUse | None:
    """Return the use of the GPUs, or None if no epoch has recorded it: the search ran on CPUs."""
    found = timeline(result)
    whole = found.slots * found.seconds
    spent = {
        cause: math.fsum(
            seconds
            for trial in result.trials
            for seconds in trial.history.get(metric, ())
            if math.isfinite(seconds)
        )
        for cause, metric in _CAUSES.items()
    }
    if not whole or not any(spent.values()):
        return None
    runs = [run for trial in result.trials for run in _runs(trial, GPU_UTILISATION)]
    seconds = math.fsum(run.ended - run.begun for run in runs)
    begun, ended = found.stretches[0].begun, max(stretch.ended for stretch in found.stretches)
    part = (ended - begun) / PARTS
    return GpuUse(
        begun=begun,
        part=part,
        levels=tuple(level / found.slots for level in _means(runs, begun, part)) if runs else (),
        utilisation=math.fsum((run.ended - run.begun) * run.rate for run in runs) / seconds if runs else None,
        shares={
            **{cause: seconds / whole for cause, seconds in spent.items()},
            "between trials": 1.0 - found.utilisation,
        },
    )


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
