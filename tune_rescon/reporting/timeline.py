"""A search over time: the trials in each slot, and how busy the devices were.

The record does not contain which worker process ran an epoch. Slots are therefore assigned: an epoch gets the
slot of the trial's previous epoch, or else a slot that is free at its start. There are as many slots as
epochs ran at once.
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
from tune_rescon.reporting.hours import has_moved
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

#: A shorter pause between two epochs of a trial, in seconds, does not split a stretch. Neither does one that
#: is shorter than half an epoch.
PAUSE: Final = 2.0

#: If all trials pause for longer than this, in seconds, no driver ran.
DOWN: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive epochs of one trial without a pause."""

    number: int
    state: TrialState
    """Final state of the trial."""
    start: float
    """Start time, in seconds since 1970."""
    end: float
    epochs: tuple[int, int]
    """The first and the last epoch."""
    busy: float
    """Seconds between :attr:`start` and :attr:`end` in which an epoch ran."""
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

    An epoch that was lost is not in the record. Its time counts as idle.
    """
    spans = sorted(
        (span for trial in result.trials for span in _spans(trial)),
        key=lambda span: (span.start, span.number, span.epoch),
    )
    by_slot: defaultdict[int, list[_Span]] = defaultdict(list)
    for span, slot in zip(spans, _assign_slots(spans), strict=True):
        by_slot[slot].append(span)
    stretches = sorted(
        (stretch for slot, in_slot in by_slot.items() for stretch in _stretches(in_slot, slot)),
        key=lambda stretch: (stretch.start, stretch.number),
    )
    return Timeline(stretches=tuple(stretches), slots=len(by_slot), seconds=_driver_seconds(stretches))


@dataclass(frozen=True, kw_only=True)
class _Span:
    """The time of one epoch."""

    number: int
    state: TrialState
    """Final state of the trial."""
    epoch: int
    start: float
    end: float
    continues: bool
    """Whether the trial's next epoch follows without a pause."""


def _spans(trial: TrialRecord) -> Iterator[_Span]:
    """Yield the times of a trial's epochs, in order."""
    times = list(_epoch_spans(trial))
    for epoch, ((start, end), after) in enumerate(itertools.zip_longest(times, times[1:]), 1):
        yield _Span(
            number=trial.number,
            state=trial.state,
            epoch=epoch,
            start=start,
            end=end,
            continues=after is not None and after[0] - end < max(PAUSE, (after[1] - after[0]) / 2),
        )


def _stretches(spans: Iterable[_Span], slot: int) -> Iterator[Stretch]:
    """Yield the stretches of the epochs that ran in a slot, in order."""
    current: list[_Span] = []
    for span in spans:
        if current and not (
            current[-1].continues and (current[-1].number, current[-1].epoch + 1) == (span.number, span.epoch)
        ):
            yield _stretch(current, slot)
            current = []
        current.append(span)
    if current:
        yield _stretch(current, slot)


def _stretch(spans: Sequence[_Span], slot: int) -> Stretch:
    first, last = spans[0], spans[-1]
    return Stretch(
        number=first.number,
        state=first.state,
        start=first.start,
        end=last.end,
        epochs=(first.epoch, last.epoch),
        busy=math.fsum(span.end - span.start for span in spans),
        slot=slot,
    )


def _epoch_spans(trial: TrialRecord) -> Iterator[tuple[float, float]]:
    """Yield the start and end of each recorded epoch, in seconds since 1970. Epochs do not overlap."""
    before = -math.inf
    for time_ms, seconds in zip(trial.times_ms, trial.history.get("epoch_seconds", ()), strict=False):
        end = time_ms / 1000
        start = max(end - seconds, before) if math.isfinite(seconds) else end
        yield min(start, end), end
        before = end


#: Seconds of a report. An epoch may begin this much earlier than the end of the one before it in its slot.
_MOMENT: Final = 1e-3


def _assign_slots(spans: Sequence[_Span]) -> Iterator[int]:
    """Yield the slot of each epoch, in the order in which the epochs begin.

    A trial that continues keeps its slot, unless another trial got it in a short pause. A new slot is added
    only while there are fewer than the maximum number of epochs at once.
    """
    most = _most_at_once(spans)
    last: list[_Span] = []
    is_free: list[bool] = []
    #: Heap of (end of the epoch, whether its trial continues, slot).
    busy: list[tuple[float, bool, int]] = []
    #: Heap of (whether the slot waits for the next epoch of a trial, slot): such slots are taken last.
    free: list[tuple[bool, int]] = []
    #: The slot of each trial that continues.
    kept: dict[int, int] = {}
    for span in spans:
        while busy and busy[0][0] <= span.start + _MOMENT:
            _, continues, slot = heapq.heappop(busy)
            is_free[slot] = True
            heapq.heappush(free, (continues, slot))
        while free and not is_free[free[0][1]]:
            heapq.heappop(free)
        slot = kept.pop(span.number, -1)
        if slot < 0 or not is_free[slot] or last[slot].number != span.number:
            if free and (len(last) == most or not free[0][0]):
                _, slot = heapq.heappop(free)
            else:
                slot = len(last)
                last.append(span)
                is_free.append(False)
        last[slot], is_free[slot] = span, False
        heapq.heappush(busy, (span.end, span.continues, slot))
        if span.continues:
            kept[span.number] = slot
        yield slot


def _most_at_once(spans: Iterable[_Span]) -> int:
    """Return the maximum number of epochs at once; the epochs are in the order in which they begin."""
    ends: list[float] = []
    most = 0
    for span in spans:
        while ends and ends[0] <= span.start + _MOMENT:
            heapq.heappop(ends)
        heapq.heappush(ends, span.end)
        most = max(most, len(ends))
    return most


def _driver_seconds(stretches: Sequence[Stretch]) -> float:
    """Return the seconds from the first start to the last end, without the gaps in which no driver ran."""
    if not stretches:
        return 0.0
    total, until = 0.0, stretches[0].start
    for stretch in stretches:
        gap = max(stretch.start - until, 0.0)
        total += (gap if gap < DOWN else 0.0) + max(stretch.end - max(until, stretch.start), 0.0)
        until = max(until, stretch.end)
    return total


#: Number of equal intervals from the start of the first epoch to the end of the last one.
INTERVALS: Final = 200


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The speeds of all trials, added up over time."""

    start: float
    """Start of the first epoch, in seconds since 1970."""
    interval: float
    """Duration of each entry of :attr:`speeds`, in seconds."""
    speeds: tuple[float, ...]
    """Images/s of all trials together, the mean in each interval."""
    devices: int
    """Maximum number of devices in use at once: GPUs, or CPU cores if the trials had no GPU."""
    per_device: float | None
    """Images/s of one device, averaged over the time in which any epoch ran. None if the search has moved
    between cores and GPUs."""
    one_trial: float
    """Images/s of one trial, averaged over the time of the epochs."""


@dataclass(frozen=True, kw_only=True)
class _EpochRate:
    """The images/s or the GPU utilisation of an epoch, with its start and end in seconds since 1970."""

    start: float
    end: float
    rate: float


def throughput(result: StudyResult) -> Throughput | None:
    """Return the throughput of a search, or None if no epoch has both a speed and a duration.

    The speed of an epoch's training steps is taken for the whole epoch, including validation.
    """
    runs = [run for trial in result.trials for run in _epoch_rates(trial, "images_per_second")]
    if not runs:
        return None
    devices = _most_devices(result)
    images = math.fsum((run.end - run.start) * run.rate for run in runs)
    start, end = min(run.start for run in runs), max(run.end for run in runs)
    interval = (end - start) / INTERVALS
    return Throughput(
        start=start,
        interval=interval,
        speeds=_means(runs, start, interval),
        devices=devices,
        per_device=None if has_moved(result) else images / _busy_seconds(runs) / devices,
        one_trial=images / math.fsum(run.end - run.start for run in runs),
    )


def _most_devices(result: StudyResult) -> int:
    """Return the maximum number of devices in use at once.

    A resume may have changed the number of devices of each trial.
    """
    spans: list[tuple[float, float, float]] = []
    for trial in result.trials:
        counts = itertools.chain(trial.device_counts, itertools.repeat(None))
        for (start, end), count in zip(_epoch_spans(trial), counts, strict=False):
            spans.append((start, end, result.devices_per_trial if count is None else count))
    running: list[tuple[float, float]] = []
    trials: Counter[float] = Counter()
    most = 0
    for start, end, share in sorted(spans):
        while running and running[0][0] <= start + _MOMENT:
            trials[heapq.heappop(running)[1]] -= 1
        heapq.heappush(running, (end, share))
        trials[share] += 1
        most = max(most, sum(_devices_in_use(count, each) for each, count in trials.items()))
    return most


def _devices_in_use(trials: int, share: float) -> int:
    """Return the number of devices of ``trials`` trials, each with ``share`` devices: 0.5 is half a device.

    >>> _devices_in_use(3, 1 / 3), _devices_in_use(4, 1 / 3), _devices_in_use(3, 0.4), _devices_in_use(3, 2)
    (1, 2, 2, 6)
    """
    if share >= 1:
        return math.ceil(trials * share)
    return math.ceil(trials / math.floor(1 / share + 1e-9))


def _epoch_rates(trial: TrialRecord, metric: str) -> Iterator[_EpochRate]:
    """Yield the epochs of a trial that recorded ``metric``."""
    rates = trial.history.get(metric, ())
    for (start, end), rate in zip(_epoch_spans(trial), rates, strict=False):
        if end > start and math.isfinite(rate):
            yield _EpochRate(start=start, end=end, rate=rate)


def _means(runs: Sequence[_EpochRate], start: float, interval: float) -> tuple[float, ...]:
    """Return the mean of the summed rates in each interval."""
    sums = [0.0] * INTERVALS
    for run in runs:
        first = int((run.start - start) / interval)
        for index in range(first, INTERVALS):
            left = start + index * interval
            if left >= run.end:
                break
            sums[index] += max(0.0, min(run.end, left + interval) - max(run.start, left)) * run.rate
    return tuple(total / interval for total in sums)


def _busy_seconds(runs: Sequence[_EpochRate]) -> float:
    """Return the seconds in which at least one of the epochs ran."""
    total, until = 0.0, -math.inf
    for run in sorted(runs, key=lambda run: run.start):
        total += max(0.0, run.end - max(run.start, until))
        until = max(until, run.end)
    return total


#: Causes of idle time of a GPU within an epoch, and for each the metric of its seconds.
_CAUSES: Final = {
    "first steps": FIRST_STEP_SECONDS,
    "validation": VALIDATION_SECONDS,
    "checkpoints": CHECKPOINT_SECONDS,
}


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """How busy the GPUs were, and how much time was not spent on training steps."""

    start: float
    """Start of the first epoch, in seconds since 1970."""
    interval: float
    """Duration of each entry of :attr:`levels`, in seconds."""
    levels: tuple[float, ...]
    """Utilisation of all slots (0..1), the mean in each interval. A slot without an epoch counts as idle.
    Empty if it was not recorded."""
    utilisation: float | None
    """Mean utilisation over the time of the epochs; None if it was not recorded."""
    shares: Mapping[str, float]
    """Share of the slots' time by cause. The last cause is the time between trials, when no epoch ran.

    A GPU is not idle all of this time, because validation runs kernels too.
    """


def gpu_use(result: StudyResult) -> GpuUse | None:
    """Return the use of the GPUs, or None if no epoch recorded it, as on CPUs."""
    slots = timeline(result)
    slot_seconds = slots.slots * slots.seconds
    spent = {
        cause: math.fsum(
            seconds
            for trial in result.trials
            for seconds in trial.history.get(metric, ())
            if math.isfinite(seconds)
        )
        for cause, metric in _CAUSES.items()
    }
    if not slot_seconds or not any(spent.values()):
        return None
    runs = [run for trial in result.trials for run in _epoch_rates(trial, GPU_UTILISATION)]
    seconds = math.fsum(run.end - run.start for run in runs)
    start, end = slots.stretches[0].start, max(stretch.end for stretch in slots.stretches)
    interval = (end - start) / INTERVALS
    return GpuUse(
        start=start,
        interval=interval,
        levels=tuple(level / slots.slots for level in _means(runs, start, interval)) if runs else (),
        utilisation=math.fsum((run.end - run.start) * run.rate for run in runs) / seconds if runs else None,
        shares={
            **{cause: seconds / slot_seconds for cause, seconds in spent.items()},
            "between trials": 1.0 - slots.utilisation,
        },
    )
