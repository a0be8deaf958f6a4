"""The median rule, which stops a trial that is worse than the average trial at its epoch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from tune_rescon.tuning.stopping.rule import Decision, Observation, StoppingRule, Verdict

__all__ = ["MedianRule"]

#: Number of other trials that must have reached the same epoch before a trial may be stopped.
MIN_OTHERS: Final = 3


@dataclass(kw_only=True)
class MedianRule(StoppingRule):
    """Median rule over the running average of every trial. It pauses no trial."""

    first: int
    """The first epoch after which a trial may be stopped (``fidelity.min``)."""
    last: int
    """The epoch at which a trial is finished."""
    maximize: bool
    _sums: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _best: dict[int, float] = field(default_factory=lambda: defaultdict(lambda: -math.inf))
    _averages: dict[tuple[int, Hashable], list[tuple[float, float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def judge(self, seen: Observation) -> Verdict:
        """Compare the trial with the others that have reached its epoch, and record the trial's value.

        A trial is stopped if its best value so far is in the lower half, compared with the running averages
        of the others.
        """
        if not math.isfinite(seen.value):
            return Verdict(decision=Decision.DIVERGED)
        others = self._averages[seen.epoch, seen.group].copy()
        self.replay(seen)
        if seen.epoch >= self.last:
            return Verdict(decision=Decision.FINISH)
        if seen.epoch < self.first or len(others) < MIN_OTHERS:
            return Verdict(decision=Decision.CONTINUE)
        best = (self._best[seen.number], -seen.tie_breaker, -seen.number)
        rank, compared = 1 + sum(other > best for other in others), len(others) + 1
        if rank <= (compared + 1) // 2:
            return Verdict(decision=Decision.CONTINUE)
        return Verdict(decision=Decision.STOP, rung=seen.epoch, rank=rank, compared=compared)

    def replay(self, seen: Observation) -> None:
        """Record a value without judging the trial."""
        if math.isfinite(seen.value):
            score = seen.value if self.maximize else -seen.value
            self._sums[seen.number] += score
            self._best[seen.number] = max(self._best[seen.number], score)
            average = self._sums[seen.number] / seen.epoch
            self._averages[seen.epoch, seen.group].append((average, -seen.tie_breaker, -seen.number))
