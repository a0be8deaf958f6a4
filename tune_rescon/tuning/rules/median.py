"""The median stopping rule as arithmetic.

Golovin et al., "Google Vizier: A Service for Black-Box Optimization" (KDD 2017), section 3.2.2: a trial is
stopped after an epoch if its best value so far is worse than the median of the other trials' running
averages up to that epoch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from tune_rescon.tuning.rules.stopping import Decision, Observation, Verdict

__all__ = ["MedianRule"]

#: Other trials that must have come as far before anybody is stopped.
FEWEST_OTHERS: Final = 3


@dataclass(kw_only=True)
class MedianRule:
    """Running averages of every trial, and the rule over them: a :class:`.StoppingRule`."""

    first: int
    """The first epoch after which a trial may be stopped (``fidelity.min``)."""
    last: int
    """Where a trial is finished."""
    maximize: bool
    _sums: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _best: dict[int, float] = field(default_factory=lambda: defaultdict(lambda: -math.inf))
    _averages: dict[tuple[int, Hashable], list[float]] = field(default_factory=lambda: defaultdict(list))

    def judge(self, seen: Observation) -> Verdict:
        """Compare with those that have come as far, then count this trial among them."""
        if not math.isfinite(seen.value):
            return Verdict(decision=Decision.DIVERGED)
        others = self._averages[seen.epoch, seen.group].copy()
        self.recall(seen)
        if seen.epoch >= self.last:
            return Verdict(decision=Decision.FINISH)
        if seen.epoch < self.first or len(others) < FEWEST_OTHERS:
            return Verdict(decision=Decision.CONTINUE)
        best = self._best[seen.number]
        if best >= median(others):
            return Verdict(decision=Decision.CONTINUE)
        rank = 1 + sum(other > best for other in others)
        return Verdict(decision=Decision.STOP, rung=seen.epoch, rank=rank, of=len(others) + 1)

    def recall(self, seen: Observation) -> None:
        """Count a value without judging."""
        if math.isfinite(seen.value):
            score = seen.value if self.maximize else -seen.value
            self._sums[seen.number] += score
            self._best[seen.number] = max(self._best[seen.number], score)
            self._averages[seen.epoch, seen.group].append(self._sums[seen.number] / seen.epoch)

    def wait(self, number: int) -> bool:
        """False: this rule pauses no trial. One that another rule paused, before a resume, continues."""
        del number
        return False

    def promote(self, *, anyone: bool = False) -> int | None:
        """Nobody waits."""
        del anyone
        return None

    def waiting(self) -> tuple[int, ...]:
        """Nobody waits."""
        return ()
