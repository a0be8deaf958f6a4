"""Asynchronous successive halving (ASHA) as arithmetic: no Ray, no Optuna, no clock.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), the stopping variant: a trial
that reaches a rung goes on only while it is in the top ``1 / reduction_factor`` of the values seen there.

Two rules differ from Ray Tune's scheduler on purpose. A rung judges nobody before it holds
``reduction_factor`` values (Ray stops the second trial at a rung if it is below the first). And a value
counts at a rung only if it was measured at exactly that rung's epoch (Ray files a late score under every
lower rung; ray issue 30838).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Decision", "RungLadder", "Verdict", "rungs"]


def rungs(low: int, high: int, reduction_factor: int) -> tuple[int, ...]:
    """Epochs at which trials are judged; the last is where a trial is finished.

    Args:
        low: the first rung (``fidelity.min``), epochs.
        high: the last rung (``fidelity.max``), epochs; always included.
        reduction_factor: eta of the paper; each rung is that many times the one below.

    >>> rungs(1, 81, 3)
    (1, 3, 9, 27, 81)
    >>> rungs(2, 10, 2)
    (2, 4, 8, 10)
    >>> rungs(5, 5, 3)
    (5,)
    """
    assert 1 <= low <= high, f"1 <= low <= high must hold, but got low={low}, high={high}"
    assert reduction_factor >= 2, f"reduction_factor must be at least 2, but got {reduction_factor}"
    levels = []
    while low < high:
        levels.append(low)
        low *= reduction_factor
    return (*levels, high)


class Decision(Enum):
    """What becomes of a trial after an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    """The rung, or the end of the budget, ended it early."""
    FINISH = "finish"
    """It reached the last epoch."""
    DIVERGED = "diverged"
    """Its value is not finite."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision and what it was based on. ``rank`` counts from 1; 0 where no rung judged."""

    decision: Decision
    rung: int = 0
    rank: int = 0
    of: int = 0


@dataclass(kw_only=True)
class RungLadder:
    """Values seen at each rung, and the stopping rule over them.

    Values of different ``group`` (say, image sizes) are never compared. Better is larger when ``maximize``.
    The order in which values arrive matters, as it does for any asynchronous rule; their scale does not:
    an increasing transform of the metric changes no decision.
    """

    levels: tuple[int, ...]
    reduction_factor: int
    maximize: bool
    _seen: dict[tuple[Hashable, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def judge(self, epoch: int, value: float, *, group: Hashable = None) -> Verdict:
        """File ``value`` if ``epoch`` is a rung, and say what becomes of its trial."""
        if not math.isfinite(value):
            return Verdict(decision=Decision.DIVERGED)
        if epoch >= self.levels[-1]:
            return Verdict(decision=Decision.FINISH)
        if epoch not in self.levels:
            return Verdict(decision=Decision.CONTINUE)
        self.file(epoch, value, group=group)
        return self._verdict(epoch, value, group)

    def file(self, epoch: int, value: float, *, group: Hashable = None) -> None:
        """Count a recorded value without judging: how a resumed search rebuilds its rungs."""
        if epoch in self.levels[:-1] and math.isfinite(value):
            self._seen[group, epoch].append(value)

    def population(self) -> dict[int, int]:
        """How many values each rung below the last holds, over all groups."""
        counts = dict.fromkeys(self.levels[:-1], 0)
        for (_, epoch), values in self._seen.items():
            counts[epoch] += len(values)
        return counts

    def _verdict(self, epoch: int, value: float, group: Hashable) -> Verdict:
        seen = self._seen[group, epoch]
        sign = 1 if self.maximize else -1
        rank = 1 + sum(sign * other > sign * value for other in seen)
        survivors = len(seen) // self.reduction_factor
        goes_on = len(seen) < self.reduction_factor or rank <= survivors
        decision = Decision.CONTINUE if goes_on else Decision.STOP
        return Verdict(decision=decision, rung=epoch, rank=rank, of=len(seen))
