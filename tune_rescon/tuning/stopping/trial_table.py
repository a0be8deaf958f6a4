"""The values, epochs, costs and states of all trials of a search, in arrays by trial number."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tune_rescon.tuning.stopping.rule import Observation

__all__ = ["DIVERGED", "ENDED", "PAUSED", "RUNNING", "UNKNOWN", "TrialTable"]

#: The states of a trial. UNKNOWN: it was replayed, and is neither running nor paused.
RUNNING: Final = 0
PAUSED: Final = 1
ENDED: Final = 2
DIVERGED: Final = 3
UNKNOWN: Final = 4


class TrialTable:
    """The values, epochs, costs and states of all trials, by number."""

    def __init__(self, last: int) -> None:
        """Start without a trial. ``last`` is the last epoch."""
        self._size = 0
        self._known: set[int] = set()
        self._values = np.full((64, last + 1), np.nan)
        self._ties = np.full((64, last + 1), np.inf)
        self._epochs = np.zeros(64)
        self._costs = np.zeros(64)
        self._first_costs = np.zeros(64)
        self._states = np.full(64, ENDED)
        self._second_objectives = np.zeros((64, last + 1))
        self._groups: dict[int, Hashable] = {}
        self._compares_values = True

    def __len__(self) -> int:
        """Return one more than the highest number."""
        return self._size

    def add(self, seen: Observation, *, maximize: bool, timed: bool, epochs: int = 1) -> None:
        """Record a value. A value that is not finite ends the trial.

        Args:
            seen: The value.
            maximize: Whether larger values are better.
            timed: Whether the cost of an epoch is its seconds, instead of 1.
            epochs: Number of epochs that have the value; the epoch of ``seen`` is the last of them.
        """
        self._grow(seen.number)
        number, first = seen.number, seen.epoch - epochs + 1
        self._epochs[number] = max(self._epochs[number], seen.epoch)
        cost = seen.seconds if timed else 1.0
        self._costs[number] += cost * epochs
        if first == 1:
            self._first_costs[number] = cost
        if not math.isfinite(seen.value):
            self._states[number] = DIVERGED
            return
        having = slice(first, seen.epoch + 1)
        self._values[number, having] = seen.value if maximize else -seen.value
        self._ties[number, having] = seen.tie_breaker
        self._second_objectives[number, having] = seen.cost
        self._groups[number] = seen.group
        other = next(iter(self._groups))
        if seen.group != self._groups[other] or seen.cost != self._second_objectives[other, 1]:
            self._compares_values = False

    def _grow(self, number: int) -> None:
        while number >= len(self._epochs):
            more = len(self._epochs)
            self._values = np.pad(self._values, ((0, more), (0, 0)), constant_values=np.nan)
            self._ties = np.pad(self._ties, ((0, more), (0, 0)), constant_values=np.inf)
            self._epochs = np.pad(self._epochs, (0, more))
            self._costs = np.pad(self._costs, (0, more))
            self._first_costs = np.pad(self._first_costs, (0, more))
            self._states = np.pad(self._states, (0, more), constant_values=ENDED)
            self._second_objectives = np.pad(self._second_objectives, ((0, more), (0, 0)))
        self._size = max(self._size, number + 1)
        self._known.add(number)

    @property
    def trials(self) -> int:
        """The number of trials. Numbers that another program's trials have are not counted."""
        return len(self._known)

    def set_state(self, number: int, state: int) -> None:
        """Set the state of a trial."""
        self._grow(number)
        self._states[number] = state

    def state(self, number: int) -> int:
        """Return the state of a trial.

        A number above all others is UNKNOWN: its trial may still start. A number that was left out counts as
        ENDED: another program has taken it.
        """
        return int(self._states[number]) if number < self._size else UNKNOWN

    def has_begun(self, number: int) -> bool:
        """Return whether a trial has an epoch, finite or not."""
        return self.epochs_of(number) >= 1

    def may_progress(self, number: int) -> bool:
        """Return whether a trial may still report an epoch: it has neither diverged nor ended."""
        return self.state(number) not in (DIVERGED, ENDED)

    def first_cost(self, number: int) -> float:
        """Return the cost of the first epoch of a trial."""
        return float(self._first_costs[number])

    def epochs_of(self, number: int) -> int:
        """Return the number of epochs that a trial has reported."""
        return int(self._epochs[number]) if number < self._size else 0

    @property
    def values(self) -> NDArray[np.float64]:
        """The values by trial and epoch; larger is better. Nan if the trial has not reached the epoch."""
        return self._values[: self._size]

    @property
    def epochs(self) -> NDArray[np.float64]:
        """The number of epochs of each trial."""
        return self._epochs[: self._size]

    @property
    def states(self) -> NDArray[np.int64]:
        """The state of each trial."""
        return self._states[: self._size]

    @property
    def epochs_used(self) -> float:
        """The epochs of all trials together."""
        return float(self.epochs.sum())

    @property
    def mean_cost(self) -> float:
        """The mean over the trials of the cost of an epoch. 1 before the first epoch."""
        known = self.epochs >= 1
        return float((self._costs[: self._size][known] / self.epochs[known]).mean()) if known.any() else 1.0

    def costs(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean cost of an epoch of each trial; of a trial without an epoch, the mean of all."""
        epochs = self._epochs[numbers]
        return np.where(epochs >= 1, self._costs[numbers] / np.maximum(epochs, 1), self.mean_cost)

    def curve(self, number: int, epochs: int) -> list[float]:
        """Return the first values of a trial. A trial that diverged has -inf from then on."""
        return [float(v) if math.isfinite(v) else -math.inf for v in self._values[number, 1 : epochs + 1]]

    def curves(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the values of trials by epoch, from epoch 1 to the furthest epoch of any of them."""
        epochs = int(self._epochs[numbers].max(initial=1))
        return self._values[numbers, 1 : epochs + 1]

    def count(self, epoch: int) -> int:
        """Return the number of values at an epoch."""
        return int(np.isfinite(self.values[:, epoch]).sum())

    def merits(self, epoch: int) -> NDArray[np.float64]:
        """Return the merit of each trial at an epoch; larger is better, and nan if it has no value there.

        The merit is the value. With groups or a second objective, it is the share of the trials of the same
        group that do not dominate the trial: none is as good and as cheap, and better in one of the two.
        """
        values, costs = self.values[:, epoch], self._second_objectives[: self._size, epoch]
        if self._compares_values:
            return values
        there = np.flatnonzero(np.isfinite(values))
        groups = {number: self._groups[int(number)] for number in there}
        merits = np.full(self._size, np.nan)
        for group in set(groups.values()):
            members = np.array([number for number in there if groups[number] == group])
            value, cost = values[members], costs[members]
            as_good = (value[:, None] >= value) & (cost[:, None] <= cost)
            better = (value[:, None] > value) | (cost[:, None] < cost)
            merits[members] = 1 - (as_good & better).mean(axis=0)
        return merits

    def threshold(self, epoch: int, one_in: int) -> float:
        """Return the merit that one in ``one_in`` trials has reached at an epoch; -inf without values."""
        merits = self.merits(epoch)
        merits = np.sort(merits[np.isfinite(merits)])[::-1]
        return float(merits[max(0, len(merits) // one_in - 1)]) if len(merits) else -math.inf

    def best(self, numbers: NDArray[np.int64], epoch: int) -> int:
        """Return the trial with the best merit at an epoch. Ties are broken by loss, then by age."""
        order = np.lexsort((numbers, self._ties[numbers, epoch], -self.merits(epoch)[numbers]))
        return int(numbers[order[0]])

    def rank(self, number: int, epoch: int) -> tuple[int, int]:
        """Return the rank of a trial at an epoch, counted from 1, and the number of trials compared."""
        merits, ties = self.merits(epoch), self._ties[: self._size, epoch]
        same: NDArray[np.bool_] = np.ones(self._size, bool)
        if not self._compares_values:
            same = np.array([self._groups.get(n) == self._groups[number] for n in range(self._size)])
        older = np.arange(self._size) < number
        equal = merits == merits[number]
        ahead = (
            (merits > merits[number])
            | (equal & (ties < ties[number]))
            | (equal & (ties == ties[number]) & older)
        )
        return 1 + int((ahead & same).sum()), int((np.isfinite(merits) & same).sum())
