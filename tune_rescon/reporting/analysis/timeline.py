"""Which trial held which slot when, from the recorded ends and lengths of epochs.

The record does not say which worker ran an epoch, so slots are counted: a stretch of epochs takes the lowest
slot that is free when it begins, which needs as many slots as ever were busy at once.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tune_rescon.config import TrialState
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "Stretch",
    "Throughput",
    "Timeline",
    "devices_in_use",
    "epoch_spans",
    "throughput",
    "timeline",
]


#: Two epochs of a trial are one stretch if between them is less than this, seconds, or half an epoch.
PAUSE: Final = 2.0

#: Longer than this, seconds, without any epoch anywhere: no driver ran then.
DOWN: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Epochs of one trial without a break."""

    number: int
    state: TrialState
    """Of its trial, in the end."""
    begun: float
    """Seconds since 1970."""
    ended: float
    epochs: tuple[int, int]
    """The first and the last."""
    busy: float
    """Seconds of :attr:`begun` to :attr:`ended` in which an epoch ran."""
    slot: int = 0


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All stretches, in the order in which they begin."""

    stretches: tuple[Stretch, ...]
    slots: int
    seconds: float
    """From the first epoch's begin to the last one's end, without the time when no driver ran."""

    @property
    def utilisation(self) -> float:
        """The share of the slots' time in which an epoch ran, 0..1; 0 where nothing ran."""
        busy = math.fsum(stretch.busy for stretch in self.stretches)
        return min(busy / (self.slots * self.seconds), 1.0) if self.seconds else 0.0


def timeline(result: StudyResult) -> Timeline:
    """The epochs that were recorded; lost ones are not in the record, and count as idle."""
    found = sorted(
        (stretch for trial in result.trials for stretch in _stretches(trial)),
        key=lambda stretch: (stretch.begun, stretch.number),
    )
    placed = tuple(_placed(found))
    slots = 1 + max((stretch.slot for stretch in placed), default=-1)
    return Timeline(stretches=placed, slots=slots, seconds=_covered(placed))


def _stretches(trial: TrialRecord) -> Iterator[Stretch]:
    """A trial's, in order."""
    held: Stretch | None = None
    for epoch, (begun, ended) in enumerate(epoch_spans(trial), 1):
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


def epoch_spans(trial: TrialRecord) -> Iterator[tuple[float, float]]:
    """When each recorded epoch began and ended, seconds since 1970; none begins before the last one's end."""
    before = -math.inf
    for time_ms, seconds in zip(trial.times_ms, trial.history.get("epoch_seconds", ()), strict=False):
        ended = time_ms / 1000
        begun = max(ended - seconds, before) if math.isfinite(seconds) else ended
        yield min(begun, ended), ended
        before = ended


def _placed(stretches: Sequence[Stretch]) -> Iterator[Stretch]:
    """Each with the lowest slot that is free when it begins."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for stretch in stretches:
        # A report takes a moment: who begins within it has waited for this slot.
        while busy and busy[0][0] <= stretch.begun + 1e-3:
            heapq.heappush(free, heapq.heappop(busy)[1])
        slot = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (stretch.ended, slot))
        yield replace(stretch, slot=slot)


def _covered(stretches: Sequence[Stretch]) -> float:
    """Seconds between the first begin and the last end, but for gaps in which no driver ran."""
    if not stretches:
        return 0.0
    total, until = 0.0, stretches[0].begun
    for stretch in stretches:
        gap = max(stretch.begun - until, 0.0)
        total += (gap if gap < DOWN else 0.0) + max(stretch.ended - max(until, stretch.begun), 0.0)
        until = max(until, stretch.ended)
    return total


#: Parts that the time from the first epoch's begin to the last one's end is cut into.
PARTS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The recorded speeds of the epochs that ran, added up."""

    begun: float
    """Seconds since 1970."""
    part: float
    """Seconds of each of :attr:`speeds`."""
    speeds: tuple[float, ...]
    """Images/s of all trials, the mean of one part of the time after the other."""
    devices: int
    """That were in use at most: GPUs, or CPU cores where trials held no GPU."""
    per_device: float
    """Images/s of one of them, averaged over the time in which any epoch ran."""
    one_trial: float
    """Images/s of a trial, averaged over the epochs' time."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """An epoch: seconds since 1970, and images/s."""

    begun: float
    ended: float
    speed: float


def throughput(result: StudyResult) -> Throughput | None:
    """None where no epoch has a speed and a length.

    An epoch's speed is that of its training steps and stands for its whole time, validation included.
    """
    runs = [run for trial in result.trials for run in _runs(trial)]
    if not runs:
        return None
    devices = devices_in_use(timeline(result).slots, result.devices_per_trial)
    images = math.fsum((run.ended - run.begun) * run.speed for run in runs)
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


def devices_in_use(trials: int, share: float) -> int:
    """Devices that so many trials at once hold, each ``share`` of one (or several).

    Of a third of a GPU, three fit on one.

    >>> devices_in_use(3, 1 / 3), devices_in_use(4, 1 / 3), devices_in_use(3, 0.4), devices_in_use(3, 2)
    (1, 2, 2, 6)
    """
    if share >= 1:
        return math.ceil(trials * share)
    return math.ceil(trials / math.floor(1 / share + 1e-9))


def _runs(trial: TrialRecord) -> Iterator[_Run]:
    speeds = trial.history.get("images_per_second", ())
    for (begun, ended), speed in zip(epoch_spans(trial), speeds, strict=False):
        if ended > begun and math.isfinite(speed):
            yield _Run(begun=begun, ended=ended, speed=speed)


def _means(runs: Sequence[_Run], begun: float, part: float) -> tuple[float, ...]:
    """Means, not every change: epochs begin and end within moments of each other."""
    images = [0.0] * PARTS
    for run in runs:
        first = int((run.begun - begun) / part)
        for index in range(first, PARTS):
            left = begun + index * part
            if left >= run.ended:
                break
            images[index] += max(0.0, min(run.ended, left + part) - max(run.begun, left)) * run.speed
    return tuple(count / part for count in images)


def _busy_seconds(runs: Sequence[_Run]) -> float:
    """Seconds in which any of them ran."""
    total, until = 0.0, -math.inf
    for run in sorted(runs, key=lambda run: run.begun):
        total += max(0.0, run.ended - max(run.begun, until))
        until = max(until, run.ended)
    return total
