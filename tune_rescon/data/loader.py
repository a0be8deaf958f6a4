"""Batches as a function of (seed, epoch) alone, so that a resumed trial gets the same batches.

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

__all__ = [
    "WHOLE",
    "Batches",
    "RawBatch",
    "Shard",
    "ShuffledBatches",
    "augmentation_rng",
    "balanced_order",
    "epoch_order",
]


IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The shard of every batch for one process. The shards are disjoint, and their union is the batch."""

    rank: int = 0
    """Rank of the process, counted from 0."""
    count: int = 1
    """World size: the number of processes of the trial."""

    def __post_init__(self) -> None:
        """Check that the rank is valid."""
        assert 0 <= self.rank < self.count, f"rank {self.rank} of {self.count}"

    def of(self, images: int) -> int:
        """Return how many of ``images`` belong to this shard.

        The sizes of the shards differ by at most one; the first shards are the larger ones.

        >>> [Shard(rank=rank, count=3).of(8) for rank in range(3)]
        [3, 3, 2]
        """
        return images // self.count + (self.rank < images % self.count)

    def cut(self, order: IntArray, batch_size: int) -> tuple[IntArray, int]:
        """Return this shard of each batch of ``order``, concatenated, and the number of images in one shard.

        If the last batch is shorter, its shard is shorter or empty.

        >>> Shard(rank=1, count=2).cut(np.arange(8), 3)
        (array([2, 5, 7]), 1)
        """
        if self.count == 1:
            return order, batch_size
        batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        mine = [np.array_split(batch, self.count)[self.rank] for batch in batches]
        return np.concatenate([order[:0], *mine]), max(1, self.of(min(batch_size, len(order))))


#: The shard of a trial with one process.
WHOLE: Final = Shard()


# numpy treats the seeds (s, e) and (s, e, 0) as equal, so each use of a seed begins with a separate number.
_ORDER_STREAM = 2
_AUGMENTATION_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Stored images without any processing. Lightning moves the tensors to the device.

    Attributes:
        images_BHWC: Images, uint8.
        labels_B: Labels, int64.
        place: Seed of the augmentation: (epoch, number of the batch), followed by the rank unless the rank
            is 0. None: do not augment.
    """

    images_BHWC: Tensor
    labels_B: Tensor
    place: tuple[int, ...] | None = None

    def to(self, device: torch.device | str) -> RawBatch:
        """Return the batch on a device."""
        return replace(
            self,
            images_BHWC=self.images_BHWC.to(device, non_blocking=True),
            labels_B=self.labels_B.to(device, non_blocking=True),
        )


def epoch_order(images: int, *, seed: int, epoch: int) -> IntArray:
    """Return the order of the images in an epoch.

    Args:
        images: Number of images.
        seed: Seed of the trial.
        epoch: The epoch, counted from 0.
    """
    return np.random.default_rng((_ORDER_STREAM, seed, epoch)).permutation(images)


def balanced_order(labels_N: IntArray, *, seed: int, epoch: int) -> IntArray:
    """Return the order of the images in an epoch that shows each class equally often.

    The classes' numbers of images differ by one at most; chance decides which classes have one more. Within a
    class, no image is shown twice more often than another one. The order has as many images as the split.

    Args:
        labels_N: Classes of the images.
        seed: Seed of the trial.
        epoch: The epoch, counted from 0.
    """
    rng = np.random.default_rng((_ORDER_STREAM, seed, epoch))
    present = np.unique(labels_N)
    each, more = divmod(len(labels_N), len(present))
    shown = [
        _repeated(np.flatnonzero(labels_N == label), each + (place < more), rng)
        for place, label in enumerate(rng.permutation(present))
    ]
    return rng.permutation(np.concatenate(shown))


def _repeated(positions: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Return ``count`` of the positions: all of them in a random order, again and again."""
    passes = -(-count // len(positions))
    return np.concatenate([positions[:0], *(rng.permutation(positions) for _ in range(passes))])[:count]


def augmentation_rng(place: tuple[int, ...], *, seed: int) -> np.random.Generator:
    """Return the random generator for the augmentation of one training batch, or of one shard of it."""
    return np.random.default_rng((_AUGMENTATION_STREAM, seed, *place))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Batches of a split in its stored order; the last may be shorter. Lightning accepts it as a loader.

    It is not a ``DataLoader``, because a batch is one indexing operation on an array. Worker processes and
    collation would only add cost.

    Attributes:
        images: Source of the split's images.
        batch_size: Number of images of a batch.
        share: The shard of each batch that is yielded.
    """

    images: BatchSource
    batch_size: int
    share: Shard = WHOLE

    def __len__(self) -> int:
        """Return the number of batches of one pass."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield the batches of one pass."""
        order, size = self.share.cut(np.arange(len(self.images)), self.batch_size)
        for images_BHWC, labels_B in self.images.walk(order, size):
            yield RawBatch(images_BHWC=images_BHWC, labels_B=labels_B)


@dataclass(frozen=True, kw_only=True)
class ShuffledBatches(Batches):
    """Batches of a split in a new order for each epoch.

    A short last batch is dropped unless it is the only batch.

    Attributes:
        seed: Seed of the order.
        epoch: Called at the start of each pass; returns the epoch, counted from 0.
        done: An epoch, and the number of its first batches that are done and not yielded again.
        balanced_N: Classes of the images, if each class is to be shown equally often; None: each image is
            shown once.
    """

    seed: int
    epoch: Callable[[], int]
    done: tuple[int, int] = (0, 0)
    balanced_N: IntArray | None = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        # A short batch may contain a single image, on which batch norm cannot train.
        return max(1, len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield the batches of one pass."""
        epoch, rank = self.epoch(), self.share.rank
        first = self.done[1] if epoch == self.done[0] else 0
        order = self._order(epoch)[: len(self) * self.batch_size]
        order, size = self.share.cut(order[first * self.batch_size :], self.batch_size)
        for number, (images_BHWC, labels_B) in enumerate(self.images.walk(order, size), start=first):
            place = (epoch, number, rank) if rank else (epoch, number)
            yield RawBatch(images_BHWC=images_BHWC, labels_B=labels_B, place=place)

    def _order(self, epoch: int) -> IntArray:
        if self.balanced_N is None:
            return epoch_order(len(self.images), seed=self.seed, epoch=epoch)
        return balanced_order(self.balanced_N, seed=self.seed, epoch=epoch)
