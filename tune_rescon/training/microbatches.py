"""Micro-batches: the parts of a batch, which make the same training step in less memory.

Batches, augmentation, mixing, optimiser steps and schedule do not depend on micro-batches: a batch is built
whole and split just before the network. The gradient of a step is the sum of its micro-batches' gradients,
each weighted by its share of the images. Without batch norm that is the whole batch's gradient, up to
rounding. Batch norm normalises every micro-batch by its own statistics and updates its running statistics
once for each. So a network with batch norm trains slightly differently in micro-batches ("ghost batches",
Hoffer et al. 2017). So does one with dropped paths, which are drawn for each micro-batch in turn.

Shapes: B images, C channels, H x W pixels; targets are labels (B) or soft targets (B, K classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SMALLEST_MICRO_BATCH", "MicroBatch", "next_micro_batches", "smallest_micro_batch", "split_batch"]

#: Images. The batch-norm statistics of fewer than 8 are too rough to train with (Wu & He 2018, figure 1).
SMALLEST_MICRO_BATCH: Final = 8


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A part of a batch."""

    images_BCHW: Tensor
    targets: Tensor
    share: float
    """Its share of the whole batch's images."""


def split_batch(images_BCHW: Tensor, targets: Tensor, count: int) -> list[MicroBatch]:
    """Split a batch into micro-batches whose sizes differ by one image at most; none of them is empty.

    Args:
        images_BCHW: the batch's images.
        targets: the batch's targets.
        count: number of micro-batches; at most one for each image is made.

    Returns:
        The micro-batches, as views of the batch.
    """
    images = len(images_BCHW)
    count = min(count, images)
    pairs = zip(images_BCHW.tensor_split(count), targets.tensor_split(count), strict=True)
    return [MicroBatch(images_BCHW=part, targets=aims, share=len(part) / images) for part, aims in pairs]


def next_micro_batches(count: int, *, images: int) -> int | None:
    """Return the number to try after ``count`` micro-batches of ``images`` were too large for the memory.

    It is twice ``count``; None if the micro-batches would then be too small.

    >>> next_micro_batches(1, images=32), next_micro_batches(2, images=32), next_micro_batches(4, images=32)
    (2, 4, None)
    """
    return 2 * count if images // (2 * count) >= SMALLEST_MICRO_BATCH else None


def smallest_micro_batch(images: int) -> int:
    """Return the number of images in the smallest micro-batch that is tried for a batch of ``images``.

    >>> [smallest_micro_batch(images) for images in (8, 15, 128, 100)]
    [8, 15, 8, 12]
    """
    count = 1
    while (more := next_micro_batches(count, images=images)) is not None:
        count = more
    return images // count
