"""A search over time: which trial held which slot when, and how busy the devices were.

The record does not contain the worker process of an epoch. Slots are therefore assigned: an epoch gets the
slot of the trial's previous epoch, or else one that is free when it begins. The number of slots is the
maximum number of epochs at once.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    "Stretch",
    "Throughput",
    "Timeline",
    "gpu_use",
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
    slot: int


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
    found = (span for trial in result.trials for span in _spans(trial))
    spans = sorted(found, key=lambda span: (span.begun, span.number, span.epoch))
    held: defaultdict[int, list[_Span]] = defaultdict(list)
    for span, slot in zip(spans, _assign_slots(spans), strict=True):
        held[slot].append(span)
    stretches = (stretch for slot, inside in held.items() for stretch in _stretches(inside, slot))
    placed = tuple(sorted(stretches, key=lambda stretch: (stretch.begun, stretch.number)))
    return Timeline(stretches=placed, slots=len(held), seconds=_driver_seconds(placed))


@dataclass(frozen=True, kw_only=True)
class _Span:
    """The time of one epoch."""

    number: int
    state: TrialState
    """Final state of the trial."""
    epoch: int
    begun: float
    ended: float
    continues: bool
    """Whether the trial's next epoch follows without a pause."""


def _spans(trial: TrialRecord) -> Iterator[_Span]:
    """Yield the times of a trial's epochs, in order."""
    times = list(_epoch_spans(trial))
    for epoch, ((begun, ended), after) in enumerate(itertools.zip_longest(times, times[1:]), 1):
        yield _Span(
            number=trial.number,
            state=trial.state,
            epoch=epoch,
            begun=begun,
            ended=ended,
            continues=after is not None and after[0] - ended < max(PAUSE, (after[1] - after[0]) / 2),
        )


def _stretches(spans: Iterable[_Span], slot: int) -> Iterator[Stretch]:
    """Yield the stretches of the epochs that ran in a slot, in order."""
    whole: list[_Span] = []
    for span in spans:
        if whole and not (
            whole[-1].continues and (whole[-1].number, whole[-1].epoch + 1) == (span.number, span.epoch)
        ):
            yield _stretch(whole, slot)
            whole = []
        whole.append(span)
    if whole:
        yield _stretch(whole, slot)


def _stretch(spans: Sequence[_Span], slot: int) -> Stretch:
    first, last = spans[0], spans[-1]
    return Stretch(
        number=first.number,
        state=first.state,
        begun=first.begun,
        ended=last.ended,
        epochs=(first.epoch, last.epoch),
        busy=math.fsum(span.ended - span.begun for span in spans),
        slot=slot,
    )


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


#: A report takes a moment: an epoch that begins within this number of seconds was waiting for its slot.
_MOMENT: Final = 1e-3


def _assign_slots(spans: Sequence[_Span]) -> Iterator[int]:
    """Yield the slot of each epoch, in the order in which the epochs begin.

    A trial that continues keeps its slot. In a short pause of a trial, its slot may have run an epoch of
    another one, or only waited for the driver: there are as many slots as epochs ran at once.
    """
    most = _most_at_once(spans)
    last: list[_Span] = []
    is_free: list[bool] = []
    busy: list[tuple[float, bool, int]] = []
    free: list[tuple[bool, int]] = []
    kept: dict[int, int] = {}
    for span in spans:
        while busy and busy[0][0] <= span.begun + _MOMENT:
            _, continues, slot = heapq.heappop(busy)
            is_free[slot] = True
            heapq.heappush(free, (continues, slot))
        while free and not is_free[free[0][1]]:
            heapq.heappop(free)
        slot = kept.pop(span.number, -1)
        if slot < 0 or not is_free[slot] or last[slot].number != span.number:
            # The slots that wait for the next epoch of a trial are the last of the free ones.
            if free and (len(last) == most or not free[0][0]):
                _, slot = heapq.heappop(free)
            else:
                slot = len(last)
                last.append(span)
                is_free.append(False)
        last[slot], is_free[slot] = span, False
        heapq.heappush(busy, (span.ended, span.continues, slot))
        if span.continues:
            kept[span.number] = slot
        yield slot


def _most_at_once(spans: Iterable[_Span]) -> int:
    """Return the maximum number of epochs at once; the epochs are in the order in which they begin."""
    ends: list[float] = []
    most = 0
    for span in spans:
        while ends and ends[0] <= span.begun + _MOMENT:
            heapq.heappop(ends)
        heapq.heappush(ends, span.ended)
        most = max(most, len(ends))
    return most


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
    devices = _most_devices(result)
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


def _most_devices(result: StudyResult) -> int:
    """Return the maximum number of devices in use at once. A resume may have changed those of a trial."""
    spans: list[tuple[float, float, float]] = []
    for trial in result.trials:
        held = itertools.chain(trial.held, itertools.repeat(None))
        for (begun, ended), count in zip(_epoch_spans(trial), held, strict=False):
            spans.append((begun, ended, result.devices_per_trial if count is None else count))
    running: list[tuple[float, float]] = []
    trials: Counter[float] = Counter()
    most = 0
    for begun, ended, share in sorted(spans):
        while running and running[0][0] <= begun + _MOMENT:
            trials[heapq.heappop(running)[1]] -= 1
        heapq.heappush(running, (ended, share))
        trials[share] += 1
        most = max(most, sum(_devices_in_use(count, each) for each, count in trials.items()))
    return most


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
