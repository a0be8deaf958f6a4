"""Asynchronous successive halving (ASHA), which stops or pauses trials at rungs."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass, field

from tune_rescon.tuning.stopping.rule import Decision, Observation, StoppingRule, Verdict

__all__ = ["SuccessiveHalving", "asha_rungs"]


def asha_rungs(low: int, high: int, reduction_factor: int) -> tuple[int, ...]:
    """Return the epochs at which trials are judged. A trial is finished at the last of them.

    Args:
        low: The first rung (``fidelity.min``), in epochs.
        high: The last rung (``fidelity.max``), in epochs. It is always included.
        reduction_factor: The reduction factor, eta in the paper. Each rung is the one below times this
            factor.

    >>> asha_rungs(1, 81, 3)
    (1, 3, 9, 27, 81)
    >>> asha_rungs(2, 10, 2)
    (2, 4, 8, 10)
    >>> asha_rungs(5, 5, 3)
    (5,)
    """
    assert 1 <= low <= high, f"1 <= low <= high must hold, but got low={low}, high={high}"
    assert reduction_factor >= 2, f"reduction_factor must be at least 2, but got {reduction_factor}"
    rungs = []
    while low < high:
        rungs.append(low)
        low *= reduction_factor
    return (*rungs, high)


@dataclass(kw_only=True)
class SuccessiveHalving(StoppingRule):
    """Asynchronous successive halving (ASHA) over the values at each rung.

    Decisions depend on the order in which values arrive, as with any asynchronous rule. They do not depend on
    the scale of the values: an increasing transform of the metric changes no decision. With a second
    objective (costs that differ), the rank of a trial is one plus the number of trials that are at least as
    good and at least as cheap, and better in one of the two. A trial on the rung's Pareto front is therefore
    never stopped there.
    """

    rungs: tuple[int, ...]
    """The rungs, from :func:`asha_rungs`. With a single rung, no trial is judged."""
    reduction_factor: int
    maximize: bool
    pauses: bool = False
    """True for ``variant: promote``, which pauses trials and promotes them later."""
    minimum: int | None = None
    """Number of values that a rung needs before it stops a trial. None for ``reduction_factor``."""
    _by_epoch: dict[tuple[int, Hashable], _Rung] = field(default_factory=dict)
    _place: dict[int, _Rung] = field(default_factory=dict)

    def judge(self, seen: Observation) -> Verdict:
        """Record the value if its epoch is a rung, and return the decision about its trial."""
        if not math.isfinite(seen.value):
            return Verdict(decision=Decision.DIVERGED)
        if seen.epoch >= self.rungs[-1]:
            return Verdict(decision=Decision.FINISH)
        if seen.epoch not in self.rungs:
            return Verdict(decision=Decision.CONTINUE)
        self.replay(seen)
        rung = self._place[seen.number]
        rank, compared = rung.rank(seen.number), len(rung)
        decision = Decision.CONTINUE
        is_in_top = rank <= compared // self.reduction_factor
        if self.pauses and not is_in_top:
            rung.paused.add(seen.number)
            decision = Decision.PAUSE
        elif not is_in_top and compared >= self._minimum:
            decision = Decision.STOP
        return Verdict(decision=decision, rung=seen.epoch, rank=rank, compared=compared)

    def replay(self, seen: Observation) -> None:
        """Record a value without judging the trial. A resumed search rebuilds its rungs this way."""
        if seen.epoch in self.rungs[:-1] and math.isfinite(seen.value):
            rung = self._by_epoch.setdefault((seen.epoch, seen.group), _Rung(seen.number))
            rung.add(seen, -seen.value if self.maximize else seen.value)
            self._place[seen.number] = rung

    def pause_again(self, number: int) -> bool:
        """Pause a replayed trial at the highest rung where it has a value. Return False if it has none."""
        if number not in self._place:
            return False
        self._place[number].paused.add(number)
        return True

    def promote(self, *, force: bool = False) -> int | None:
        """Return the best paused trial of the highest rung whose best paused trial is in the top fraction.

        The trial is no longer paused. With ``force``, the trial need not be in the top fraction. This is
        algorithm 2 of the paper. Return None if there is no such trial.
        """
        # The groups at an epoch are in the order of their oldest trials, which a resumed search knows too.
        for _, rung in sorted(self._by_epoch.items(), key=lambda item: (-item[0][0], item[1].oldest)):
            best = rung.best_paused()
            if best is not None and (force or rung.rank(best) <= len(rung) // self.reduction_factor):
                rung.paused.remove(best)
                return best
        return None

    def ended(self, number: int) -> None:
        """Note that a trial has ended. Its values stay in the rungs, but it can no longer be promoted."""
        if number in self._place:
            self._place[number].paused.discard(number)

    def paused(self) -> tuple[int, ...]:
        """Return the numbers of the paused trials in ascending order."""
        return tuple(sorted(number for rung in self._by_epoch.values() for number in rung.paused))

    @property
    def _minimum(self) -> int:
        return self.reduction_factor if self.minimum is None else self.minimum


class _Rung:
    """The values at one rung of one group.

    ``loss`` is the metric with its sign chosen such that smaller is better. ``oldest`` is the lowest number.
    """

    def __init__(self, oldest: int) -> None:
        self.oldest = oldest
        self._points: dict[int, tuple[float, float]] = {}
        self._places: dict[int, tuple[float, float, int]] = {}
        self._order: list[tuple[float, float, int]] = []
        self._costs_differ = False
        self.paused: set[int] = set()

    def __len__(self) -> int:
        return len(self._points)

    def add(self, seen: Observation, loss: float) -> None:
        self.oldest = min(self.oldest, seen.number)
        self._costs_differ |= any(seen.cost != other for _, other in list(self._points.values())[:1])
        self._points[seen.number] = (loss, seen.cost)
        self._places[seen.number] = (loss, seen.tie_breaker, seen.number)
        insort(self._order, self._places[seen.number])

    def rank(self, number: int) -> int:
        """Return the rank of a trial. The best trial has rank 1.

        Among equal trials, the one with the smaller validation loss ranks higher, and then the older one.
        With a second objective, trials that do not dominate each other share their rank.
        """
        if not self._costs_differ:
            # Use a binary search: a rung may contain thousands of values, and is queried whenever a slot is
            # free.
            return 1 + bisect_left(self._order, self._places[number])
        loss, cost = self._points[number]
        return 1 + sum(
            other != (loss, cost) and other[0] <= loss and other[1] <= cost for other in self._points.values()
        )

    def best_paused(self) -> int | None:
        """Return the paused trial with the lowest rank, and the oldest of equal trials."""
        if self._costs_differ:
            return min(self.paused, key=lambda number: (self.rank(number), number), default=None)
        return min(self.paused, key=lambda number: self._places[number], default=None)
