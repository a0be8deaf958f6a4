"""Augment whole batches on the device, with separate random draws for each image.

A numpy generator on the host makes the draws, which are then copied to the device. Therefore every device
returns the same images, torch's random state is never changed, and the host never waits for the device.

Shape legend: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tune_rescon.data.policies import OPERATIONS, apply_each

__all__ = [
    "crop_and_flip",
    "cutmix",
    "cutmix_box",
    "draw_boxes",
    "erase",
    "jitter_colors",
    "mixup",
    "resized_crop_and_flip",
    "rotate",
]

IntArray = npt.NDArray[np.int64]


def crop_and_flip(images_BHWC: Tensor, rng: np.random.Generator, *, padding: int, flip: bool) -> Tensor:
    """Pad with zeros, crop each image at a random position, and mirror it with probability one half.

    One gather does both.

    Args:
        images_BHWC: Images of any dtype.
        rng: Source of all random draws.
        padding: Pixels on each side; 0: do not crop.
        flip: Mirror left to right.

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
    # Only three numbers per image are copied; the device computes the positions of all pixels from them. CUDA
    # copies up to 64 KiB from memory that is not page-locked without waiting for the queued work.
    top_B, left_B, mirrored_B = torch.from_numpy(draws_B3).to(device, non_blocking=True).unbind(1)
    columns_W = torch.arange(width, device=device)
    columns_BW = left_B[:, None] + torch.where(mirrored_B[:, None].bool(), width - 1 - columns_W, columns_W)
    rows_BH = top_B[:, None] + torch.arange(height, device=device)
    padded_BHWC = F.pad(images_BHWC, (0, 0, padding, padding, padding, padding))
    return padded_BHWC[
        torch.arange(batch, device=device)[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]
    ]


#: A box whose sides do not fit in the image is drawn again, so many times.
_TRIES: Final = 10

#: Area of an erased box as a share of the image, and its width divided by its height (Zhong et al., 2020).
_ERASED_AREA: Final = (0.02, 0.33)
_ERASED_RATIO: Final = (1 / 3.3, 1 / 0.3)

#: The operations of colour jitter.
_COLOURS: Final = ("brightness", "contrast", "color")


def draw_boxes(
    batch: int,
    rng: np.random.Generator,
    *,
    side: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    largest: int,
    otherwise: int,
) -> IntArray:
    """Draw a box in each image: a uniform area, a log-uniform ratio of its sides, and a uniform position.

    Args:
        batch: Number of boxes.
        rng: Source of all random draws.
        side: Side of the images, pixels.
        area: Range of the box's area, as a share of the image's area.
        ratio: Range of the box's width divided by its height.
        largest: Largest side of a box, pixels.
        otherwise: Side of the box if none of ten draws fits, pixels.

    Returns:
        Top, left, height and width of each box, B x 4, pixels.
    """
    areas_BT = side * side * rng.uniform(*area, size=(batch, _TRIES))
    ratios_BT = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), size=(batch, _TRIES)))
    sides_B2T = np.rint(np.sqrt(np.stack([areas_BT / ratios_BT, areas_BT * ratios_BT], axis=1)))
    fits_BT = ((sides_B2T > 0) & (sides_B2T <= largest)).all(axis=1)
    sides_B2 = sides_B2T[np.arange(batch), :, fits_BT.argmax(axis=1)].astype(np.int64)
    sides_B2[~np.any(fits_BT, axis=1)] = otherwise
    return np.hstack([rng.integers(0, side - sides_B2 + 1), sides_B2])


def resized_crop_and_flip(
    images_BCHW: Tensor, rng: np.random.Generator, *, smallest: float, ratio: float, flip: bool, side: int
) -> Tensor:
    """Scale a random box of each image to a square, and mirror it with probability one half.

    As torchvision's ``RandomResizedCrop``, bilinear with antialiasing. Two matrix products do it for the
    whole batch, although the boxes differ in size.

    Args:
        images_BCHW: Square uint8 images.
        rng: Source of all random draws.
        smallest: Smallest area of a box, as a share of the image's area; the largest is 1.
        ratio: Largest width of a box divided by its height; the smallest is its inverse.
        flip: Mirror left to right.
        side: Side of the result, pixels.

    Returns:
        New uint8 images, ``side`` square.
    """
    batch, stored = len(images_BCHW), images_BCHW.shape[-1]
    boxes_B4 = draw_boxes(
        batch,
        rng,
        side=stored,
        area=(smallest, 1),
        ratio=(1 / ratio, ratio),
        largest=stored,
        otherwise=stored,
    )
    mirrored_B1 = rng.random((batch, 1)) < 0.5 if flip else np.zeros((batch, 1))
    draws_B5 = torch.from_numpy(np.hstack([boxes_B4, mirrored_B1]).astype(np.float32))
    top_B, left_B, height_B, width_B, mirrored_B = draws_B5.to(images_BCHW.device, non_blocking=True).unbind(
        1
    )
    rows_BLH = _bilinear(top_B, height_B, torch.zeros_like(mirrored_B), stored=stored, side=side)
    columns_BLW = _bilinear(left_B, width_B, mirrored_B, stored=stored, side=side)
    scaled_BCLL = rows_BLH[:, None] @ images_BCHW.float() @ columns_BLW[:, None].mT
    return scaled_BCLL.round_().clamp_(0, 255).byte()


def _bilinear(start_B: Tensor, length_B: Tensor, mirrored_B: Tensor, *, stored: int, side: int) -> Tensor:
    """Return the weights (B x L x N) by which N = ``stored`` pixels of a line become L = ``side`` pixels.

    The weights are those of torch's bilinear interpolation with antialiasing. Only the ``length_B`` pixels
    from ``start_B`` on have a weight above 0.
    """
    place_L, place_N = (torch.arange(count, device=start_B.device) + 0.5 for count in (side, stored))
    place_BL = torch.where(mirrored_B[:, None].bool(), side - place_L, place_L)
    scale_B1 = (length_B / side)[:, None]
    centre_BL1 = (start_B[:, None] + scale_B1 * place_BL)[..., None]
    inside_BN = (place_N > start_B[:, None]) & (place_N < (start_B + length_B)[:, None])
    distance_BLN = (place_N - centre_BL1).abs() / scale_B1.clamp(min=1)[..., None]
    weights_BLN = (1 - distance_BLN).clamp(min=0) * inside_BN[:, None]
    return weights_BLN / weights_BLN.sum(-1, keepdim=True)


def rotate(images_BCHW: Tensor, rng: np.random.Generator, *, degrees: float) -> Tensor:
    """Rotate each uint8 image about its centre by an angle between ``-degrees`` and ``degrees``.

    As torchvision's ``RandomRotation``: nearest-neighbour interpolation; pixels from outside are black.
    """
    angles_B = torch.from_numpy(rng.uniform(-degrees, degrees, size=len(images_BCHW)))
    return OPERATIONS["rotate"](images_BCHW, angles_B.float().to(images_BCHW.device, non_blocking=True))


def jitter_colors(images_BCHW: Tensor, rng: np.random.Generator, *, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of each uint8 image, in a random order.

    As torchvision's ``ColorJitter``: each by a factor between ``1 - strength`` and ``1 + strength``.
    """
    batch = len(images_BCHW)
    factors_B3 = rng.uniform(1 - strength, 1 + strength, size=(batch, len(_COLOURS)))
    order_B3 = rng.permuted(np.tile(np.arange(len(_COLOURS)), (batch, 1)), axis=1)
    for chosen_B in order_B3.T:
        images_BCHW = apply_each(
            images_BCHW, chosen_B, _COLOURS, lambda name, group: factors_B3[group, _COLOURS.index(name)]
        )
    return images_BCHW


def erase(images_BCHW: Tensor, rng: np.random.Generator, *, probability: float) -> Tensor:
    """Set a random box of each image to 0, with this probability.

    As torchvision's ``RandomErasing`` with all defaults.

    Args:
        images_BCHW: Square normalised images, in which 0 is the mean colour.
        rng: Source of all random draws.
        probability: Share of the images in which a box is erased.

    Returns:
        New images of the same shape.
    """
    batch, side = len(images_BCHW), images_BCHW.shape[-1]
    boxes_B4 = draw_boxes(
        batch, rng, side=side, area=_ERASED_AREA, ratio=_ERASED_RATIO, largest=side - 1, otherwise=0
    )
    boxes_B4[rng.random(batch) >= probability, 2:] = 0
    boxes_B41 = torch.from_numpy(boxes_B4)[..., None].to(images_BCHW.device, non_blocking=True)
    top_B1, left_B1, height_B1, width_B1 = boxes_B41.unbind(1)
    place_L = torch.arange(side, device=images_BCHW.device)
    rows_BH = (place_L >= top_B1) & (place_L < top_B1 + height_B1)
    columns_BW = (place_L >= left_B1) & (place_L < left_B1 + width_B1)
    erased_BHW = rows_BH[:, :, None] & columns_BW[:, None, :]
    # The copy keeps the memory format, which masked_fill does not.
    return images_BCHW.clone().masked_fill_(erased_BHW[:, None], 0)


def mixup(
    images_BCHW: Tensor, targets_BK: Tensor, rng: np.random.Generator, *, alpha: float
) -> tuple[Tensor, Tensor]:
    """Blend each image with its neighbour in the batch, and the targets likewise (Zhang et al., 2018).

    ``lambda ~ Beta(alpha, alpha)`` is drawn once per batch, as in the authors' code.

    Args:
        images_BCHW: Normalised images.
        targets_BK: Targets as class probabilities.
        rng: Source of the draw.
        alpha: Parameter of the beta distribution.

    Returns:
        Images and targets of the same shapes.
    """
    weight = float(rng.beta(alpha, alpha))
    return (images_BCHW.roll(1, 0).lerp(images_BCHW, weight), targets_BK.roll(1, 0).lerp(targets_BK, weight))


def cutmix(
    images_BCHW: Tensor, targets_BK: Tensor, rng: np.random.Generator, *, alpha: float
) -> tuple[Tensor, Tensor]:
    """Paste a box of its neighbour into each image, and mix the targets by area (Yun et al., 2019).

    Args:
        images_BCHW: Normalised images.
        targets_BK: Targets as class probabilities.
        rng: Source of all random draws.
        alpha: Parameter of the beta distribution of the box's area.

    Returns:
        Images and targets of the same shapes.
    """
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
    """Return (top, bottom, left, right) of a box, clipped at the edges of the image, pixels.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        share: Area of the unclipped box as a share of the image's area.
        centre: Row and column of the box's centre, pixels.

    >>> cutmix_box(32, 32, share=0.25, centre=(16, 16)), cutmix_box(32, 32, share=0.25, centre=(0, 31))
    ((8, 24, 8, 24), (0, 8, 23, 32))
    """
    y, x = centre
    up, aside = (int(0.5 * math.sqrt(share) * side) for side in (height, width))
    return max(y - up, 0), min(y + up, height), max(x - aside, 0), min(x + aside, width)
