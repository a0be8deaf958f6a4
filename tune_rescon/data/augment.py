"""Augmentation of whole batches on the device, each image by its own draw.

Draws are made with a numpy generator on the host and sent along: the same images come out on every device,
torch's own random state is never touched, and nothing waits for the device.

Shape legend: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "OPERATIONS",
    "POLICIES",
    "Policy",
    "augment",
    "crop_and_flip",
    "cutmix",
    "cutmix_box",
    "mixup",
    "one_hot",
    "strengths",
]


FloatArray = npt.NDArray[np.float64]
#: Changes uint8 images B x C x H x W, each by its strength.
Operation = Callable[[Tensor, Tensor], Tensor]

_BINS: Final = 31


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Ranges of a published policy.

    Attributes:
        layers: operations applied to each image, one after another.
        bin: strength of every operation, 0 to 30; None: drawn for each image.
        shear: largest, as a slope.
        translate: largest, as (share of the side, pixels): their sum.
        rotate: largest, degrees.
        colour: largest change of a colour factor from 1.
        bits: largest number of bits posterize takes away.
    """

    layers: int
    bin: int | None
    shear: float
    translate: tuple[float, float]
    rotate: float
    colour: float
    bits: int


POLICIES: Final[Mapping[str, Policy]] = {
    # Cubuk et al., 2020: N = 2, M = 9 of 30.
    "randaugment": Policy(
        layers=2, bin=9, shear=0.3, translate=(150 / 331, 0), rotate=30, colour=0.9, bits=4
    ),
    # Müller and Hutter, 2021: the wide space.
    "trivialaugment": Policy(
        layers=1, bin=None, shear=0.99, translate=(0, 32), rotate=135, colour=0.99, bits=6
    ),
}


def augment(images_BCHW: Tensor, rng: np.random.Generator, policy: Policy) -> Tensor:
    """Apply a policy to square uint8 images of 1 or 3 channels; returns new ones."""
    batch, side = len(images_BCHW), images_BCHW.shape[-1]
    names = list(OPERATIONS)
    for _ in range(policy.layers):
        drawn_B = rng.integers(len(names), size=batch)
        bins_B = rng.integers(_BINS, size=batch) if policy.bin is None else np.full(batch, policy.bin)
        signs_B = rng.choice((-1.0, 1.0), size=batch)
        changed_BCHW = images_BCHW.clone()
        for number, name in enumerate(names):
            group = np.flatnonzero(drawn_B == number)
            if len(group) == 0:
                continue
            by = strengths(name, bins_B[group], signs_B[group], policy, side)
            group_B = torch.from_numpy(group).to(images_BCHW.device, non_blocking=True)
            by_B = torch.from_numpy(by).float().to(images_BCHW.device, non_blocking=True)
            changed_BCHW[group_B] = OPERATIONS[name](images_BCHW[group_B], by_B)
        images_BCHW = changed_BCHW
    return images_BCHW


def strengths(
    name: str, bins_B: npt.NDArray[np.int64], signs_B: FloatArray, policy: Policy, side: int
) -> FloatArray:
    """Strength of an operation at each bin (0 to 30), in its own unit.

    Shear: slope; translate: pixels; rotate: degrees; posterize: bits kept; solarize: level; else: factor.

    >>> strengths("rotate", np.array([30]), np.array([-1.0]), POLICIES["randaugment"], 32)
    array([-30.])
    >>> strengths("posterize", np.array([0, 30]), np.array([1.0, 1.0]), POLICIES["randaugment"], 32)
    array([8., 4.])
    """
    part_B = bins_B / (_BINS - 1)
    share, pixels = policy.translate
    if name in ("shear_x", "shear_y"):
        return signs_B * part_B * policy.shear
    if name in ("translate_x", "translate_y"):
        return np.trunc(signs_B * part_B * (share * side + pixels))
    if name == "rotate":
        return signs_B * part_B * policy.rotate
    if name == "posterize":
        return 8 - np.rint(part_B * policy.bits)
    if name == "solarize":
        return 255 * (1 - part_B)
    return 1 + signs_B * part_B * policy.colour


def _affine(images_BCHW: Tensor, rows: Sequence[Sequence[Tensor | float]], by_B: Tensor) -> Tensor:
    """Sample the nearest pixel at ``rows @ (x, y, 1)``, counted from the image's centre; outside is black."""
    height, width = images_BCHW.shape[-2:]
    # affine_grid counts in half sides. Python's numbers: to copy a tensor of them would wait for a GPU.
    half = (width / 2, height / 2, 1.0)
    cells_B = [
        [(by_B * 0 + cell) * half[j] / half[i] for j, cell in enumerate(row)] for i, row in enumerate(rows)
    ]
    matrices_B23 = torch.stack([torch.stack(row, -1) for row in cells_B], 1)
    grid_BHW2 = F.affine_grid(matrices_B23, list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(images_BCHW.float(), grid_BHW2, mode="nearest", align_corners=False).byte()


def _shear_x(images_BCHW: Tensor, slope_B: Tensor) -> Tensor:
    # As in the policies' reference code, the top row stays where it is.
    height = images_BCHW.shape[-2]
    return _affine(images_BCHW, [[1, slope_B, slope_B * height / 2], [0, 1, 0]], slope_B)


def _shear_y(images_BCHW: Tensor, slope_B: Tensor) -> Tensor:
    width = images_BCHW.shape[-1]
    return _affine(images_BCHW, [[1, 0, 0], [slope_B, 1, slope_B * width / 2]], slope_B)


def _translate_x(images_BCHW: Tensor, pixels_B: Tensor) -> Tensor:
    return _affine(images_BCHW, [[1, 0, -pixels_B], [0, 1, 0]], pixels_B)


def _translate_y(images_BCHW: Tensor, pixels_B: Tensor) -> Tensor:
    return _affine(images_BCHW, [[1, 0, 0], [0, 1, -pixels_B]], pixels_B)


def _rotate(images_BCHW: Tensor, degrees_B: Tensor) -> Tensor:
    angle_B = degrees_B.deg2rad()
    sine_B, cosine_B = angle_B.sin(), angle_B.cos()
    return _affine(images_BCHW, [[cosine_B, -sine_B, 0], [sine_B, cosine_B, 0]], angle_B)


def _brightness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    return _blend(images_BCHW, torch.zeros_like(images_BCHW), factor_B)


def _color(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    return _blend(images_BCHW, _grey(images_BCHW), factor_B)


def _contrast(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    return _blend(images_BCHW, _grey(images_BCHW).float().mean((1, 2, 3), keepdim=True), factor_B)


def _sharpness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    # The reference's smoothing kernel; it leaves the outermost pixels alone.
    channels = images_BCHW.shape[1]
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, device=images_BCHW.device)
    kernel[:, :, 1, 1] = 5 / 13
    smooth_BCHW = images_BCHW.float()
    smooth_BCHW[..., 1:-1, 1:-1] = F.conv2d(images_BCHW.float(), kernel, groups=channels).round()
    return _blend(images_BCHW, smooth_BCHW, factor_B)


def _posterize(images_BCHW: Tensor, bits_B: Tensor) -> Tensor:
    return images_BCHW & (256 - 2 ** (8 - _per_image(bits_B))).byte()


def _solarize(images_BCHW: Tensor, level_B: Tensor) -> Tensor:
    return torch.where(images_BCHW >= _per_image(level_B), 255 - images_BCHW, images_BCHW)


def _grey(images_BCHW: Tensor) -> Tensor:
    grey: Tensor = images_BCHW if images_BCHW.shape[1] == 1 else _torchvision().rgb_to_grayscale(images_BCHW)
    return grey


def _torchvision() -> ModuleType:
    # Imported by a trial that augments so, not by every one: it takes seconds.
    from torchvision.transforms.v2 import functional

    module: ModuleType = functional
    return module


def _blend(images_BCHW: Tensor, other_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    factor_B111 = _per_image(factor_B)
    return (images_BCHW * factor_B111 + other_BCHW * (1 - factor_B111)).clamp(0, 255).byte()


def _per_image(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]


OPERATIONS: Final[Mapping[str, Operation]] = {
    "identity": lambda images_BCHW, _: images_BCHW,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda images_BCHW, _: _torchvision().autocontrast(images_BCHW),
    "equalize": lambda images_BCHW, _: _torchvision().equalize(images_BCHW),
}


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
