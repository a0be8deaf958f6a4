"""Which images of a batch are whose, where several processes train one trial together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["WHOLE", "Share"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """One process's part of every batch. The parts are disjoint, and together they are the batch."""

    rank: int = 0
    """Of the process, counted from 0."""
    count: int = 1
    """Processes of the trial."""

    def __post_init__(self) -> None:
        """Whoever makes a share knows both."""
        assert 0 <= self.rank < self.count, f"rank {self.rank} of {self.count}"

    def of(self, images: int) -> int:
        """How many of ``images`` are this share's: the parts differ by one at most, the first are the larger.

        >>> [Share(rank=rank, count=3).of(8) for rank in range(3)]
        [3, 3, 2]
        """
        return images // self.count + (self.rank < images % self.count)

    def cut(self, order: IntArray, batch_size: int) -> tuple[IntArray, int]:
        """This share of each batch of ``order``, one after the other, and how many images one of them has.

        A last, shorter batch leaves a share that is shorter, or none.

        >>> Share(rank=1, count=2).cut(np.arange(8), 3)
        (array([2, 5, 7]), 1)
        """
        if self.count == 1:
            return order, batch_size
        batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        mine = [np.array_split(batch, self.count)[self.rank] for batch in batches]
        return np.concatenate([order[:0], *mine]), max(1, self.of(min(batch_size, len(order))))


#: Of the only process.
WHOLE: Final = Share()
