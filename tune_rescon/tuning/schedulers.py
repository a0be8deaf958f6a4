"""What a rule that ends trials early sees and says: shared by ASHA (:mod:`.rungs`) and the median rule."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Final, Protocol

from tune_rescon.spaces import Space

__all__ = [
    "Decision",
    "MedianRule",
    "Observation",
    "StoppingRule",
    "SuccessiveHalving",
    "Verdict",
    "make_rule",
    "rung_levels",
    "rungs",
]


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
class SuccessiveHalving:
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


def rung_levels(space: Space) -> tuple[int, ...]:
    """The rungs of a space, epochs; only the last one where there are none."""
    if space.scheduler.type != "asha":
        return (space.fidelity.max,)
    return rungs(space.fidelity.min, space.fidelity.max, space.scheduler.reduction_factor)


def make_rule(space: Space) -> StoppingRule:
    """A rule that has seen nothing yet, for a search of ``space``."""
    maximize = space.metric.mode == "max"
    if space.scheduler.type == "median":
        return MedianRule(first=space.fidelity.min, last=space.fidelity.max, maximize=maximize)
    return SuccessiveHalving(
        levels=rung_levels(space),
        reduction_factor=space.scheduler.reduction_factor,
        maximize=maximize,
        pauses=space.scheduler.variant == "promote",
    )
