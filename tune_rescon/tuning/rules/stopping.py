"""What a rule that ends trials early sees and says: shared by ASHA (:mod:`.rungs`) and the median rule."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

__all__ = ["Decision", "Observation", "StoppingRule", "Verdict"]


class Decision(Enum):
    """What becomes of a trial after an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    """The rule, or the end of the budget, ended it early."""
    PAUSE = "pause"
    """It waits at its rung for its promotion; its slot is free meanwhile."""
    FINISH = "finish"
    """It reached the last epoch."""
    DIVERGED = "diverged"
    """Its value is not finite."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A trial's metric after an epoch."""

    number: int
    """The trial's."""
    epoch: int
    """Counted from 1."""
    value: float
    group: Hashable = None
    """Trials of different groups (say, image sizes) are never compared."""
    cost: float = 0.0
    """The second objective, smaller being better; the same for all where there is none."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision and what it was based on. ``rank`` counts from 1; 0 where nobody was compared."""

    decision: Decision
    rung: int = 0
    rank: int = 0
    of: int = 0


class StoppingRule(Protocol):
    """Judges every epoch of every trial, in the order in which they end. Deterministic, without a clock.

    A trial's observations come in the order of its epochs, none twice. A search that goes on shows its new
    rule everything that was recorded (:meth:`recall`), in any order of trials, before it asks anything.
    """

    def judge(self, seen: Observation) -> Verdict:
        """Take note of an epoch, and say what becomes of its trial."""

    def recall(self, seen: Observation) -> None:
        """Take note of an epoch that was judged in an earlier run."""

    def wait(self, number: int) -> bool:
        """A recalled trial was told to pause, and still waits; False if this rule has no rung for it."""

    def promote(self, *, anyone: bool = False) -> int | None:
        """Take one waiting trial that may go on; with ``anyone``, the most promising even if none may."""

    def waiting(self) -> tuple[int, ...]:
        """The trials that are paused, by number."""
