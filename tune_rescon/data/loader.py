"""Which images make which batch: a function of (seed, epoch) alone, so a resumed trial sees the same ones.

Shape legend: B images of a batch, H = W stored side, C channels, N images of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tune_rescon.data.batch_sources import BatchSource

__all__ = ["WHOLE", "Batches", "RawBatch", "Shard", "ShuffledBatches", "augmentation_rng", "epoch_order"]


IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Shard:
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

        >>> [Shard(rank=rank, count=3).of(8) for rank in range(3)]
        [3, 3, 2]
        """
        return images // self.count + (self.rank < images % self.count)

    def cut(self, order: IntArray, batch_size: int) -> tuple[IntArray, int]:
        """This share of each batch of ``order``, one after the other, and how many images one of them has.

        A last, shorter batch leaves a share that is shorter, or none.

        >>> Shard(rank=1, count=2).cut(np.arange(8), 3)
        (array([2, 5, 7]), 1)
        """
        if self.count == 1:
            return order, batch_size
        batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        mine = [np.array_split(batch, self.count)[self.rank] for batch in batches]
        return np.concatenate([order[:0], *mine]), max(1, self.of(min(batch_size, len(order))))


#: Of the only process.
WHOLE: Final = Shard()


# numpy seeds (s, e) and (s, e, 0) alike: each use of a seed begins with a number of its own.
_ORDER_STREAM = 2
_AUGMENTATION_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Stored images, before anything is done to them. Lightning moves its tensors to the device.

    Attributes:
        images_BHWC: uint8.
        labels_B: int64.
        place: (epoch, number of the batch) of a training batch, and the rank of a share that is not the
            first; it seeds the augmentation. None: as it is.
    """

    images_BHWC: Tensor
    labels_B: Tensor
    place: tuple[int, ...] | None = None

    def to(self, device: torch.device | str) -> RawBatch:
        """The batch on a device."""
        return replace(
            self,
            images_BHWC=self.images_BHWC.to(device, non_blocking=True),
            labels_B=self.labels_B.to(device, non_blocking=True),
        )


def epoch_order(images: int, *, seed: int, epoch: int) -> IntArray:
    """The order in which an epoch (counted from 0) visits the images."""
    return np.random.default_rng((_ORDER_STREAM, seed, epoch)).permutation(images)


def augmentation_rng(place: tuple[int, ...], *, seed: int) -> np.random.Generator:
    """Randomness of one training batch's augmentation, or that of a share of it."""
    return np.random.default_rng((_AUGMENTATION_STREAM, seed, *place))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A split in its own order, the last batch as short as it falls. An iterable Lightning takes as a loader.

    Not a ``DataLoader``: a batch is one indexing of an array, for which workers and collation only cost.

    Attributes:
        images: of the split, from wherever they are.
        batch_size: images of a batch.
        share: of each batch, which is what comes of it.
    """

    images: BatchSource
    batch_size: int
    share: Shard = WHOLE

    def __len__(self) -> int:
        """Batches of one pass."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[RawBatch]:
        """One pass."""
        order, size = self.share.cut(np.arange(len(self.images)), self.batch_size)
        for images_BHWC, labels_B in self.images.walk(order, size):
            yield RawBatch(images_BHWC=images_BHWC, labels_B=labels_B)


@dataclass(frozen=True, kw_only=True)
class ShuffledBatches(Batches):
    """A split in each epoch's own order. A last short batch is dropped unless it is the only one.

    Attributes:
        seed: of the order.
        epoch: asked at the start of each pass, counted from 0.
        first: the number of the batch a pass of an epoch begins with.
    """

    seed: int
    epoch: Callable[[], int]
    first: Callable[[int], int] = lambda _: 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        # Batch norm cannot train on the single image that a short batch may hold.
        return max(1, len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[RawBatch]:
        """One pass."""
        epoch, rank = self.epoch(), self.share.rank
        first = self.first(epoch)
        order = epoch_order(len(self.images), seed=self.seed, epoch=epoch)[: len(self) * self.batch_size]
        order, size = self.share.cut(order[first * self.batch_size :], self.batch_size)
        for number, (images_BHWC, labels_B) in enumerate(self.images.walk(order, size), start=first):
            place = (epoch, number, rank) if rank else (epoch, number)
            yield RawBatch(images_BHWC=images_BHWC, labels_B=labels_B, place=place)
