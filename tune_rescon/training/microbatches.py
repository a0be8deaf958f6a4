"""A batch in pieces: the same step of training in less memory.

Batches, augmentation, mixing, optimiser steps and schedule know nothing of it: a batch is made whole and cut
on its way into the network. The gradient of a step is the sum over its micro-batches, each one's mean loss
weighted by its share of the images: without batch norm that is the whole batch's, up to rounding. Batch norm
normalises every micro-batch by that one's own statistics and moves its running ones once for each, so a
network that has it trains a little differently in pieces (Hoffer et al. 2017's "ghost batches"), and so does
one with dropped paths, which are drawn for one micro-batch after the other.

Shapes: B images, C channels, H x W pixels; targets are labels (B) or soft targets (B, K classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SMALLEST_MICRO_BATCH", "MicroBatch", "smallest_piece", "split_batch", "twice_as_many"]

#: Images. Of fewer than 8, batch norm's statistics are too rough to train with (Wu & He 2018, figure 1).
SMALLEST_MICRO_BATCH: Final = 8


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A micro-batch."""

    images_BCHW: Tensor
    targets: Tensor
    share: float
    """Of the whole batch's images."""


def split_batch(images_BCHW: Tensor, targets: Tensor, count: int) -> list[MicroBatch]:
    """Cut a batch into ``count`` pieces whose sizes differ by one image at most; none is empty. Views."""
    images = len(images_BCHW)
    count = min(count, images)
    cuts = zip(images_BCHW.tensor_split(count), targets.tensor_split(count), strict=True)
    return [MicroBatch(images_BCHW=cut, targets=aims, share=len(cut) / images) for cut, aims in cuts]


def twice_as_many(count: int, *, images: int) -> int | None:
    """The micro-batches to try after ``count`` were too large for the memory; None: they are too small then.

    ``images``: of a whole training batch.

    >>> twice_as_many(1, images=32), twice_as_many(2, images=32), twice_as_many(4, images=32)
    (2, 4, None)
    """
    return 2 * count if images // (2 * count) >= SMALLEST_MICRO_BATCH else None


def smallest_piece(images: int) -> int:
    """Images of the smallest micro-batch that a batch is cut into before it is given up.

    >>> smallest_piece(8), smallest_piece(15), smallest_piece(128), smallest_piece(100)
    (8, 15, 8, 12)
    """
    count = 1
    while (finer := twice_as_many(count, images=images)) is not None:
        count = finer
    return images // count
