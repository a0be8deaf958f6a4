"""How long a search will still take, from how far its trials have come.

Trials that end early end soon: a mean over those that have ended forgets those that still run. So the chance
to end is taken epoch by epoch, among all who came that far (Kaplan and Meier, 1958), and what lies ahead of a
trial is summed over these chances.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["Survival", "seconds_left"]

#: From simulated searches of 120 and of 400 trials on eight slots: 1 says too much at first, 8 too little.
BELIEF: Final = 3


class Survival:
    """Counts of how far trials came and where they ended; to count costs the same, however many there are."""

    def __init__(self, levels: Sequence[int], *, reduction_factor: int) -> None:
        """Nothing is known yet; ``levels`` are the rungs, epochs, of which the last is the last epoch."""
        self._rungs = frozenset(levels[:-1])
        self._factor = reduction_factor
        self._came = [0] * (levels[-1] + 1)
        self._ended = [0] * (levels[-1] + 1)

    def came(self, epoch: int) -> None:
        """A trial has reported ``epoch``; 0: it has begun."""
        self._came[epoch] += 1

    def ended(self, epoch: int) -> None:
        """A trial has ended, or pauses, after its ``epoch``."""
        self._ended[epoch] += 1

    def went_on(self, epoch: int) -> None:
        """A trial that paused after ``epoch`` was promoted."""
        self._ended[epoch] -= 1

    def at(self, epoch: int) -> tuple[int, int]:
        """Trials that came to ``epoch``, and those of them that went on after it."""
        return self._came[epoch], self._came[epoch] - self._ended[epoch]

    def epochs_ahead(self) -> list[float]:
        """The epochs that a trial, going on after epoch 0, 1, ..., is expected to train yet.

        One of ``reduction_factor`` is expected to pass a rung, and that belief counts as much as
        :data:`BELIEF` such rounds of trials: the first ones that come to a rung pass it too easily.

        >>> [round(epochs, 2) for epochs in Survival((1, 3, 9), reduction_factor=3).epochs_ahead()[:4]]
        [2.33, 4.0, 3.0, 6.0]
        """
        ahead = [0.0] * len(self._came)
        for epoch in range(len(ahead) - 2, -1, -1):
            ahead[epoch] = 1 + self._passes(epoch + 1) * ahead[epoch + 1]
        return ahead

    def _passes(self, epoch: int) -> float:
        came, passed = self.at(epoch)
        if epoch in self._rungs:
            return (passed + BELIEF) / (came + BELIEF * self._factor)
        return passed / came if came else 1.0


def seconds_left(
    ahead: Sequence[float],
    *,
    running: Iterable[int],
    unstarted: int,
    slots: int,
    seconds_per_epoch: float,
) -> float:
    """Seconds until the last trial has ended.

    The slots share the work evenly, but no trial is split: the longest of those that run is waited for.

    Args:
        ahead: see :meth:`Survival.epochs_ahead`.
        running: the epochs that each unfinished trial has behind it.
        unstarted: trials to come.
        slots: trials at once.
        seconds_per_epoch: of a slot's time, pauses between epochs included.

    >>> seconds_left([3.0, 2.0, 1.0, 0.0], running=[1, 2], unstarted=3, slots=2, seconds_per_epoch=10.0)
    60.0
    >>> seconds_left([3.0, 2.0, 1.0, 0.0], running=[0, 2], unstarted=0, slots=2, seconds_per_epoch=10.0)
    30.0
    """
    begun = [ahead[epochs] for epochs in running]
    work = sum(begun) + unstarted * ahead[0]
    return seconds_per_epoch * max(work / slots, max(begun, default=0.0))
