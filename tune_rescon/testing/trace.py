"""What a simulated search did, and the figures that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tune_rescon.tuning import Decision

__all__ = ["EpochRun", "Incumbent", "Trace"]


@dataclass(frozen=True, kw_only=True)
class EpochRun:
    """One epoch of one trial on one worker; ``begun`` and ``ended`` are simulated seconds."""

    number: int
    epoch: int
    worker: int
    begun: float
    ended: float
    value: float
    """What was reported; nan also where the epoch was lost."""
    decision: Decision | None
    """None: the epoch was lost, with its worker or its driver."""


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best trial from some moment on: furthest first, then the best value (Optuna's order of pruned
    trials, and this project's)."""

    epochs_spent: int
    """By all trials together, up to that moment."""
    seconds: float
    number: int
    epoch: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Every epoch a simulated search ran, in the order in which they ended."""

    workers: int
    runs: tuple[EpochRun, ...]

    @property
    def epochs_spent(self) -> int:
        """Epochs run, lost ones included: what the search cost."""
        return len(self.runs)

    @property
    def seconds(self) -> float:
        """When the last epoch ended."""
        return max((run.ended for run in self.runs), default=0.0)

    @property
    def utilisation(self) -> float:
        """The share of the workers' time in which they trained; lost epochs count as idle."""
        busy = math.fsum(run.ended - run.begun for run in self.runs if run.decision is not None)
        return busy / (self.workers * self.seconds) if self.runs else 0.0

    def epochs_of(self, number: int) -> tuple[int, ...]:
        """The epochs that a trial reported, in order."""
        return tuple(r.epoch for r in self.runs if r.number == number and r.decision is not None)

    def incumbents(self) -> Iterator[Incumbent]:
        """The best trial so far, each time it changes or gets further."""
        best = (0, -math.inf)
        for spent, run in enumerate(self.runs, 1):
            if run.decision is None or not math.isfinite(run.value) or (run.epoch, run.value) <= best:
                continue
            best = (run.epoch, run.value)
            yield Incumbent(
                epochs_spent=spent, seconds=run.ended, number=run.number, epoch=run.epoch, value=run.value
            )
