"""Augment whole batches on the device, with separate random draws for each image.

A numpy generator on the host makes the draws, which are then copied to the device. Therefore every device
returns the same images, torch's random state is never changed, and the host never waits for the device.

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
#: A function that changes uint8 images B x C x H x W, each by its strength.
Operation = Callable[[Tensor, Tensor], Tensor]

_BINS: Final = 31


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Ranges of a published policy.

    Attributes:
        layers: Number of operations applied to each image in sequence.
        bin: Strength of every operation, 0 to 30; None: drawn for each image.
        shear: Largest shear, as a slope.
        translate: Largest translation, as the sum of (share of the side, pixels).
        rotate: Largest rotation, degrees.
        colour: Largest change of a colour factor from 1.
        bits: Largest number of bits that posterize removes.
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
    """Apply a policy to a batch.

    Args:
        images_BCHW: Square uint8 images of 1 or 3 channels.
        rng: Source of all random draws.
        policy: The policy to apply.

    Returns:
        New images of the same shape and dtype.
    """
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
            by = strengths(name, bins_B[group], signs_B[group], policy, side=side)
            group_B = torch.from_numpy(group).to(images_BCHW.device, non_blocking=True)
            by_B = torch.from_numpy(by).float().to(images_BCHW.device, non_blocking=True)
            changed_BCHW[group_B] = OPERATIONS[name](images_BCHW[group_B], by_B)
        images_BCHW = changed_BCHW
    return images_BCHW


def strengths(
    name: str, bins_B: npt.NDArray[np.int64], signs_B: FloatArray, policy: Policy, *, side: int
) -> FloatArray:
    """Return the strength of an operation at each bin, in the unit of the operation.

    Shear: slope; translate: pixels; rotate: degrees; posterize: bits kept; solarize: level; others: factor.

    Args:
        name: Name of the operation.
        bins_B: Bin of each image, 0 to 30.
        signs_B: Direction of each operation, -1 or 1.
        policy: Ranges of the operations.
        side: Side of the images, pixels.

    >>> strengths("rotate", np.array([30]), np.array([-1.0]), POLICIES["randaugment"], side=32)
    array([-30.])
    >>> strengths("posterize", np.array([0, 30]), np.array([1.0, 1.0]), POLICIES["randaugment"], side=32)
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
    """Sample the nearest pixel at ``rows @ (x, y, 1)``, measured from the image centre; outside is black."""
    height, width = images_BCHW.shape[-2:]
    # affine_grid uses half sides as units. These are Python numbers, because copying a tensor of them would
    # wait for a GPU.
    half = (width / 2, height / 2, 1.0)
    cells_B = [
        [(by_B * 0 + cell) * half[j] / half[i] for j, cell in enumerate(row)] for i, row in enumerate(rows)
    ]
    matrices_B23 = torch.stack([torch.stack(row, -1) for row in cells_B], 1)
    grid_BHW2 = F.affine_grid(matrices_B23, list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(images_BCHW.float(), grid_BHW2, mode="nearest", align_corners=False).byte()


def _shear_x(images_BCHW: Tensor, slope_B: Tensor) -> Tensor:
    # As in the reference code of the policies, the top row does not move.
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
    # The smoothing kernel of the reference code, which does not change the outermost pixels.
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
    # The import takes seconds, so only trials that use these operations pay for it.
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


def one_hot(labels_B: Tensor, classes: int) -> Tensor:
    """Return the labels as float32 targets, B x K."""
    return F.one_hot(labels_B, classes).float()


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
    return (
        images_BCHW.roll(1, 0).lerp(images_BCHW, weight),
        targets_BK.roll(1, 0).lerp(targets_BK, weight),
    )


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
