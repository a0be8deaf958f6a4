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
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["Stretch", "Timeline", "epoch_spans", "timeline"]

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


def _stretches(trial: TrialSummary) -> Iterator[Stretch]:
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


def epoch_spans(trial: TrialSummary) -> Iterator[tuple[float, float]]:
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
