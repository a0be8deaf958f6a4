"""The choice of the first rung: how early the ranks of trials predict which of them will be best.

Small learning rates, deep networks and large images start slowly. Where a space searches them, the ranks
after the first epochs may be the reverse of the later ones, and a rule that judges there discards the best
trials. Elsewhere the first epoch ranks as well as the ninth, and judging later wastes epochs. The choice is
therefore made from the values of trials that no rung has selected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PILOTS",
    "Agreement",
    "Unjudged",
    "choose_first_rung",
    "first_rungs",
    "latest_candidate",
    "never_changes",
    "rank_correlation",
    "rungs_from",
]

#: Prior of a rank correlation, and its weight as a number of trials. With eight trials, the standard error of
#: a rank correlation is 0.35: without a prior, the choice would follow the noise.
PRIOR: Final = 0.5
PRIOR_TRIALS: Final = 3
#: The weight of the latest candidate, in place of a correlation: no later ranks are known.
TRUST: Final = 0.85
#: Number of trials that must be compared before their ranks can show that no rung should judge.
MIN_COMPARED: Final = 5
#: The latest candidate judges only if the ranks of the epochs before it agree by this much.
MIN_AGREEMENT: Final = 0.45
#: A trial whose value is the same in all of at least this number of epochs has learned nothing yet.
MIN_UNCHANGED: Final = 3
#: Number of first trials that reach the latest candidate for the first rung without being judged.
PILOTS: Final = 8
#: After the first trials, one trial in PROBE_EVERY also reaches the latest candidate without being judged,
#: until these probes have used PROBE_SHARE of the budget.
PROBE_EVERY: Final = 6
PROBE_SHARE: Final = 0.03
#: Number of good trials that a screening is to find. Its score is their mean.
FINDS: Final = 4
#: Ratio of neighbouring candidates, and the largest candidate as a share of the last epoch.
STEP: Final = 4 / 3
LATEST: Final = 1 / 4
#: Largest ratio of neighbouring rungs.
RUNG_RATIO: Final = 6
#: Share of the budget that the first trials may use. It sets the latest candidate.
PILOT_SHARE: Final = 0.05
#: With a small budget, the first trials may use more: until the latest candidate is at this share of the last
#: epoch, or until they use this share of the budget.
EARLIEST_LATEST: Final = 0.05
MAX_PILOT_SHARE: Final = 0.13
#: The first trials reach the latest candidate within this share of the hours.
PILOT_TIME: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The choice of a first rung, and the evidence for it."""

    first: int
    """The chosen first rung, in epochs."""
    latest: int
    """The epoch with whose ranks the earlier ones were compared."""
    trials: int
    """Number of trials that were compared. 0: there was no evidence."""
    correlations: Mapping[int, float]
    """Spearman's rank correlation with the values at ``latest``, for each earlier candidate."""
    steadiness: float
    """The mean rank correlation of every two epochs from half of ``latest`` on. Nan if it is one epoch."""

    @property
    def ranks_are_unstable(self) -> bool:
        """True if the ranks change from epoch to epoch, as if no trial had learned anything yet.

        Then no candidate may judge.
        """
        return self.trials >= MIN_COMPARED and self.steadiness < MIN_AGREEMENT

    @property
    def is_confirmed(self) -> bool:
        """True if later ranks agree with those at the first rung; False if it is the latest candidate."""
        return self.first < self.latest


@dataclass(frozen=True, kw_only=True)
class Unjudged:
    """The trials that reach the latest candidate without being judged: the first ones, and probes later.

    Whether a trial is one of them depends only on its number, so a resumed search has the same ones.
    """

    pilots: int
    """Number of first trials."""
    probes: int
    """Number of trials after them."""

    def __contains__(self, number: int) -> bool:
        """Return whether a trial is one of them."""
        return bool(self.marks(number + 1)[number])

    def marks(self, trials: int) -> NDArray[np.bool_]:
        """Return for each of a number of trials whether it is one of them."""
        marks = np.zeros(trials, bool)
        marks[: self.pilots] = True
        first = self.pilots + PROBE_EVERY - 1
        marks[first : first + PROBE_EVERY * self.probes : PROBE_EVERY] = True
        return marks


def first_rungs(low: int, last: int) -> tuple[int, ...]:
    """Return the candidates for the first rung, in epochs.

    Args:
        low: The earliest candidate (``fidelity.min``).
        last: The last epoch of a trial (``fidelity.max``).

    >>> first_rungs(1, 81)
    (1, 2, 3, 4, 5, 7, 9, 12, 16)
    >>> first_rungs(5, 9)
    (5,)
    """
    candidates = [low]
    while (candidate := max(candidates[-1] + 1, round(candidates[-1] * STEP))) <= last * LATEST:
        candidates.append(candidate)
    return tuple(candidates)


def latest_candidate(
    low: int, last: int, *, pilots: int, epochs: float, epochs_of_slot: float | None = None
) -> int:
    """Return the epoch to which the first trials run without being judged.

    Args:
        low: The earliest candidate (``fidelity.min``).
        last: The last epoch of a trial (``fidelity.max``).
        pilots: Number of first trials.
        epochs: The budget in epochs.
        epochs_of_slot: Number of epochs that one slot can run in the hours of the budget. None without hours.

    >>> latest_candidate(1, 140, pilots=8, epochs=1400), latest_candidate(1, 140, pilots=8, epochs=560)
    (7, 7)
    >>> latest_candidate(1, 140, pilots=8, epochs=1400, epochs_of_slot=44.0)
    4
    """
    small = min(EARLIEST_LATEST * last * pilots, MAX_PILOT_SHARE * epochs)
    limit = max(PILOT_SHARE * epochs, small) / pilots
    if epochs_of_slot is not None:
        limit = min(limit, PILOT_TIME * epochs_of_slot)
    return max((epoch for epoch in first_rungs(low, last) if epoch <= limit), default=low)


def rungs_from(first: int, last: int, *, reach: int) -> tuple[int, ...]:
    """Return the rungs: equal ratios of at most :data:`RUNG_RATIO` from the first rung to ``reach``.

    Args:
        first: The first rung, in epochs.
        last: The last epoch of a trial. It is always the last rung.
        reach: The epoch that a trial can reach in the budget, at most ``last``.

    >>> rungs_from(9, 140, reach=140), rungs_from(1, 50, reach=50), rungs_from(2, 140, reach=44)
    ((9, 35, 140), (1, 4, 14, 50), (2, 9, 140))
    """
    top = max(first, reach)
    steps = max(1, math.ceil(math.log(top / first) / math.log(RUNG_RATIO) - 1e-9))
    return tuple(sorted({round(first * (top / first) ** (step / steps)) for step in range(steps)} | {last}))


def choose_first_rung(
    curves: Sequence[Sequence[float]], candidates: Sequence[int], *, epochs: float
) -> Agreement:
    """Choose the rung whose screening finds the best trials for a given number of epochs.

    The worth of a rung is its rank correlation with the latest candidate, times the expected score of the
    best of those trials that the epochs allow to reach it. A rung's correlation counts for no more than those
    of the rungs between it and the latest candidate: with few trials, one high correlation is often chance.

    Args:
        curves: The values of trials that no rung selected, by epoch; larger is better. A trial that diverged
            has -inf from then on. Each has at least as many values as the latest candidate.
        candidates: The candidate rungs, in ascending order.
        epochs: Number of epochs that screening may use.
    """
    latest = candidates[-1]
    half = math.ceil(latest / 2)
    worth = {latest: TRUST * expected_score(epochs / latest)}
    lowest, correlations = 1.0, {}
    for rung in reversed(candidates[:-1]):
        found = rank_correlation([c[rung - 1] for c in curves], [c[latest - 1] for c in curves])
        correlations[rung] = found
        shrunk = (len(curves) * found + PRIOR_TRIALS * PRIOR) / (len(curves) + PRIOR_TRIALS)
        lowest = min(lowest, shrunk)
        worth[rung] = lowest * expected_score(epochs / rung)
    first = max(worth, key=lambda rung: (worth[rung], rung))
    return Agreement(
        first=first,
        latest=latest,
        trials=len(curves),
        correlations=correlations,
        steadiness=_steadiness([curve[half - 1 : latest] for curve in _comparable(curves, latest)]),
    )


def _comparable(curves: Sequence[Sequence[float]], latest: int) -> list[Sequence[float]]:
    """Leave out curves that never change and equal each other, unless they have the lowest values.

    Networks that predict one class for every image always keep their ranks, even if no network has learned
    anything. Their ranks are evidence only once all other networks are above them.
    """
    values = np.array([curve[:latest] for curve in curves], float).reshape(-1, latest)
    ends = values[:, -1]
    unchanged = never_changes(values)
    constants, counts = np.unique(ends[unchanged], return_counts=True)
    is_last = ends <= ends[np.isfinite(ends)].min(initial=math.inf)
    left_out = unchanged & np.isin(ends, constants[counts > 1]) & ~is_last
    return [curve for curve, is_out in zip(curves, left_out, strict=True) if not is_out]


def never_changes(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each trial whether it has reported the same value in each of enough epochs.

    Args:
        values: The values by trial and epoch. Nan if the trial has not reached the epoch.

    >>> never_changes(np.array([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2], [0.1, 0.1, np.nan]]))
    array([ True, False, False])
    """
    known = ~np.isnan(values)
    same = ((values == values[:, :1]) | ~known).all(axis=1)
    unchanged: NDArray[np.bool_] = same & (known.sum(axis=1) >= MIN_UNCHANGED)
    return unchanged


def _steadiness(curves: Sequence[Sequence[float]]) -> float:
    """Return the mean rank correlation of every two epochs; nan if there are fewer than two.

    With eight trials, one correlation has a standard error of 0.35. The mean over many pairs of epochs
    shows much better whether the ranks persist.
    """
    epochs = len(curves[0]) if curves else 0
    if epochs < 2:
        return math.nan
    ranks = np.array([_ranks([curve[epoch] for curve in curves]) for epoch in range(epochs)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
    units = np.divide(ranks, norms, out=np.zeros_like(ranks), where=norms > 0)
    return float(((units.sum(axis=0) ** 2).sum() - (units**2).sum()) / (epochs * (epochs - 1)))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation. Equal values share their mean rank; 0 if all values are equal.

    >>> rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 15.0])
    0.5
    >>> rank_correlation([1.0, 1.0], [2.0, 3.0])
    0.0
    """
    if not first:
        return 0.0
    x, y = _ranks(first), _ranks(second)
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm else 0.0


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], float)


def expected_score(trials: float) -> float:
    """Return the mean standard score of the best :data:`FINDS` of a number of trials.

    The formula is Blom's approximation of normal order statistics (Blom, "Statistical estimates and
    transformed beta-variables", 1958). If there are not more trials than are to be found, screening finds
    nothing, and its worth is small.
    """
    return _expected_score(int(trials)) if trials > FINDS else 0.05


@lru_cache(maxsize=4096)
def _expected_score(trials: int) -> float:
    normal = NormalDist()
    return sum(normal.inv_cdf(1 - (k - 0.375) / (trials + 0.25)) for k in range(1, FINDS + 1)) / FINDS
