"""Images trained per second by all trials at once, and by each device: what sharing one gains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tune_rescon.reporting.analysis.timeline import epoch_spans, timeline
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["Throughput", "devices_in_use", "throughput"]

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
        per_device=images / _covered(runs) / devices,
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


def _runs(trial: TrialSummary) -> Iterator[_Run]:
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


def _covered(runs: Sequence[_Run]) -> float:
    """Seconds in which any of them ran."""
    total, until = 0.0, -math.inf
    for run in sorted(runs, key=lambda run: run.begun):
        total += max(0.0, run.ended - max(run.begun, until))
        until = max(until, run.ended)
    return total
