"""Augmentation of whole batches on the device, each image by its own draw.

Draws are made with a numpy generator on the host and sent along: the same images come out on every device,
torch's own random state is never touched, and nothing waits for the device.

Shape legend: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["crop_and_flip", "cutmix", "cutmix_box", "mixup", "one_hot"]


def crop_and_flip(images_BHWC: Tensor, rng: np.random.Generator, *, padding: int, flip: bool) -> Tensor:
    """Pad with zeros, cut each image out at its own place, mirror each with probability one half.

    One gather does both.

    Args:
        images_BHWC: any dtype.
        rng: is drawn from.
        padding: pixels on each side; 0: no crop.
        flip: mirror left to right.

    Returns:
        Images of the same shape.
    """
    batch, height, width, _ = images_BHWC.shape
    if not padding and not flip:
        return images_BHWC
    device = images_BHWC.device
    draws_B3 = np.zeros((batch, 3), dtype=np.int64)
    draws_B3[:, 0], draws_B3[:, 1] = rng.integers(0, 2 * padding + 1, size=(2, batch))
    if flip:
        draws_B3[:, 2] = rng.random(batch) < 0.5
    # Three numbers an image travel; the places of all its pixels are made of them on the device. From memory
    # that is not page-locked, CUDA takes a copy of up to 64 KiB without waiting for what is queued.
    top_B, left_B, mirrored_B = torch.from_numpy(draws_B3).to(device, non_blocking=True).unbind(1)
    columns_W = torch.arange(width, device=device)
    columns_BW = left_B[:, None] + torch.where(mirrored_B[:, None].bool(), width - 1 - columns_W, columns_W)
    rows_BH = top_B[:, None] + torch.arange(height, device=device)
    padded_BHWC = F.pad(images_BHWC, (0, 0, padding, padding, padding, padding))
    return padded_BHWC[
        torch.arange(batch, device=device)[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]
    ]


def one_hot(labels_B: Tensor, classes: int) -> Tensor:
    """Labels as float32 targets, B x K."""
    return F.one_hot(labels_B, classes).float()


def mixup(
    images_BCHW: Tensor, targets_BK: Tensor, rng: np.random.Generator, *, alpha: float
) -> tuple[Tensor, Tensor]:
    """Blend each image with its neighbour in the batch, targets alike (Zhang et al., 2018).

    ``lambda ~ Beta(alpha, alpha)`` is drawn once for the batch, as the authors do.
    """
    weight = float(rng.beta(alpha, alpha))
    return (
        images_BCHW.roll(1, 0).lerp(images_BCHW, weight),
        targets_BK.roll(1, 0).lerp(targets_BK, weight),
    )


def cutmix(
    images_BCHW: Tensor, targets_BK: Tensor, rng: np.random.Generator, *, alpha: float
) -> tuple[Tensor, Tensor]:
    """Paste a box of each image's neighbour into it; targets are mixed by area (Yun et al., 2019)."""
    height, width = images_BCHW.shape[-2:]
    centre = (int(rng.integers(height)), int(rng.integers(width)))
    top, bottom, left, right = cutmix_box(
        height, width, share=1 - float(rng.beta(alpha, alpha)), centre=centre
    )
    mixed_BCHW = images_BCHW.clone()
    mixed_BCHW[..., top:bottom, left:right] = images_BCHW.roll(1, 0)[..., top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed_BCHW, targets_BK.roll(1, 0).lerp(targets_BK, kept)


def cutmix_box(
    height: int, width: int, *, share: float, centre: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of ``share`` of the area, clipped at the image's edges.

    >>> cutmix_box(32, 32, share=0.25, centre=(16, 16)), cutmix_box(32, 32, share=0.25, centre=(0, 31))
    ((8, 24, 8, 24), (0, 8, 23, 32))
    """
    y, x = centre
    up, aside = (int(0.5 * math.sqrt(share) * side) for side in (height, width))
    return max(y - up, 0), min(y + up, height), max(x - aside, 0), min(x + aside, width)
