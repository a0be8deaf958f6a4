"""Asynchronous successive halving (ASHA) as arithmetic: no Ray, no Optuna, no clock.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020), in both variants. Stopping: a
trial that reaches a rung goes on only while it is in the top ``1 / reduction_factor`` of the values seen
there. Promoting: every trial pauses at its rung, and goes on when it has come into the top (algorithm 2).

Two rules differ from Ray Tune's scheduler on purpose. A rung judges nobody before it holds
``reduction_factor`` values (Ray stops the second trial at a rung if it is below the first). And a value
counts at a rung only if it was measured at exactly that rung's epoch (Ray files a late score under every
lower rung; ray issue 30838).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass, field

from tune_rescon.tuning.rules.stopping import Decision, Observation, Verdict

__all__ = ["RungLadder", "rungs"]


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


@dataclass(kw_only=True)
class RungLadder:
    """Values seen at each rung, and the rule over them: a :class:`.StoppingRule`.

    The order in which values arrive matters, as it does for any asynchronous rule; their scale does not: an
    increasing transform of the metric changes no decision. With a second objective (costs that differ) a
    trial's rank is one more than the number of trials that are at least as good and as cheap, and better in
    one; so no trial of the rung's Pareto front is ever stopped there.
    """

    levels: tuple[int, ...]
    """From :func:`rungs`; a single level judges nobody."""
    reduction_factor: int
    maximize: bool
    pauses: bool = False
    """The promoting variant."""
    minimum: int | None = None
    """Values a rung must hold before it stops anybody; None: ``reduction_factor``."""
    _rungs: dict[tuple[int, Hashable], _Rung] = field(default_factory=dict)
    _place: dict[int, _Rung] = field(default_factory=dict)

    def judge(self, seen: Observation) -> Verdict:
        """File the value if its epoch is a rung, and say what becomes of its trial."""
        if not math.isfinite(seen.value):
            return Verdict(decision=Decision.DIVERGED)
        if seen.epoch >= self.levels[-1]:
            return Verdict(decision=Decision.FINISH)
        if seen.epoch not in self.levels:
            return Verdict(decision=Decision.CONTINUE)
        self.recall(seen)
        rung = self._place[seen.number]
        rank, of = rung.rank(seen.number), len(rung)
        decision = Decision.CONTINUE
        is_in_top = rank <= of // self.reduction_factor
        if self.pauses and not is_in_top:
            rung.waiting.add(seen.number)
            decision = Decision.PAUSE
        elif not is_in_top and of >= self._minimum:
            decision = Decision.STOP
        return Verdict(decision=decision, rung=seen.epoch, rank=rank, of=of)

    def recall(self, seen: Observation) -> None:
        """Count a recorded value without judging: how a resumed search rebuilds its rungs."""
        if seen.epoch in self.levels[:-1] and math.isfinite(seen.value):
            rung = self._rungs.setdefault((seen.epoch, seen.group), _Rung())
            rung.add(seen.number, -seen.value if self.maximize else seen.value, seen.cost)
            self._place[seen.number] = rung

    def wait(self, number: int) -> bool:
        """A recalled trial waits at the highest rung it has a value at; False if it has none at any."""
        if number not in self._place:
            return False
        self._place[number].waiting.add(number)
        return True

    def promote(self, *, anyone: bool = False) -> int | None:
        """Take the best waiting trial of the highest rung that has one in its top (algorithm 2)."""
        # Keys differ in their level; groups of one level are tried in the order in which they came.
        for _, rung in sorted(self._rungs.items(), key=lambda item: -item[0][0]):
            best = rung.best_waiting()
            if best is not None and (anyone or rung.rank(best) <= len(rung) // self.reduction_factor):
                rung.waiting.remove(best)
                return best
        return None

    def waiting(self) -> tuple[int, ...]:
        """The paused trials."""
        return tuple(sorted(number for rung in self._rungs.values() for number in rung.waiting))

    def population(self) -> dict[int, int]:
        """How many values each rung below the last holds, over all groups."""
        counts = dict.fromkeys(self.levels[:-1], 0)
        for (epoch, _), rung in self._rungs.items():
            counts[epoch] += len(rung)
        return counts

    @property
    def _minimum(self) -> int:
        return self.reduction_factor if self.minimum is None else self.minimum


class _Rung:
    """The values of one level and group; ``loss`` is the metric turned so that smaller is better."""

    def __init__(self) -> None:
        self._points: dict[int, tuple[float, float]] = {}
        self._losses: list[float] = []
        self._costs_differ = False
        self.waiting: set[int] = set()

    def __len__(self) -> int:
        return len(self._points)

    def add(self, number: int, loss: float, cost: float) -> None:
        self._costs_differ |= any(cost != other for _, other in list(self._points.values())[:1])
        self._points[number] = (loss, cost)
        insort(self._losses, loss)

    def rank(self, number: int) -> int:
        """1 for the best; equals share their rank."""
        loss, cost = self._points[number]
        if not self._costs_differ:
            # A rung may hold thousands, and is asked at every slot that falls free.
            return 1 + bisect_left(self._losses, loss)
        return 1 + sum(
            other != (loss, cost) and other[0] <= loss and other[1] <= cost for other in self._points.values()
        )

    def best_waiting(self) -> int | None:
        """The waiting trial of the lowest rank, the oldest of equals."""
        if self._costs_differ:
            return min(self.waiting, key=lambda number: (self.rank(number), number), default=None)
        return min(self.waiting, key=lambda number: (self._points[number][0], number), default=None)
