"""Augmentation policies: published sets of operations on bytes, from which each image draws some at random.

A numpy generator on the host makes the draws, as in :mod:`tune_rescon.data.augment`.

Shape legend: B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPERATIONS", "POLICIES", "Policy", "apply_each", "augment", "strengths"]


FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: A function that changes uint8 images B x C x H x W, each by its strength.
Operation = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The ranges of a published policy.

    Attributes:
        layers: Number of operations applied to each image in sequence; with chains, the largest number.
        bins: Number of strengths of an operation.
        bin: Strength of every operation, counted from 0; a range: drawn from it for each image.
        shear: Largest shear, as a slope.
        translate: Largest translation, as the sum of (share of the side, pixels).
        rotate: Largest rotation, degrees.
        colour: Largest change of a colour factor from 1.
        bits: Number of bits that posterize keeps at the weakest strength, and the number of these that it
            removes at the strongest.
        chains: Number of chains of operations whose results are mixed with the image; 0: do not mix.
    """

    layers: int
    bins: int
    bin: int | range
    shear: float
    translate: tuple[float, float]
    rotate: float
    colour: float
    bits: tuple[int, int]
    chains: int = 0


POLICIES: Final[Mapping[str, Policy]] = {
    # Cubuk et al., 2020: N = 2, M = 9 of 30.
    "randaugment": Policy(
        layers=2, bins=31, bin=9, shear=0.3, translate=(150 / 331, 0), rotate=30, colour=0.9, bits=(8, 4)
    ),
    # Müller and Hutter, 2021: the wide space.
    "trivialaugment": Policy(
        layers=1, bins=31, bin=range(31), shear=0.99, translate=(0, 32), rotate=135, colour=0.99, bits=(8, 6)
    ),
    # Hendrycks et al., 2020: three chains of one to three operations, severity 3 of 10.
    "augmix": Policy(
        layers=3,
        bins=10,
        bin=range(3),
        shear=0.3,
        translate=(1 / 3, 0),
        rotate=30,
        colour=0.9,
        bits=(4, 4),
        chains=3,
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
    if policy.chains:
        return _mix_chains(images_BCHW, rng, policy)
    for _ in range(policy.layers):
        drawn_B = rng.integers(len(OPERATIONS), size=len(images_BCHW))
        images_BCHW = _apply_drawn(images_BCHW, drawn_B, rng, policy)
    return images_BCHW


def _mix_chains(images_BCHW: Tensor, rng: np.random.Generator, policy: Policy) -> Tensor:
    """Blend each image with the results of chains of one to ``policy.layers`` operations on it.

    All weights are drawn from Dirichlet distributions with parameters 1. The identity is not among the
    operations.
    """
    batch, device = len(images_BCHW), images_BCHW.device
    first = 1 + list(OPERATIONS).index("identity")
    own_B, mixed_B = rng.dirichlet((1, 1), size=batch).T
    weights_BN = np.column_stack([own_B, mixed_B[:, None] * rng.dirichlet((1,) * policy.chains, size=batch)])
    weights_NB = torch.from_numpy(weights_BN.T).float().to(device, non_blocking=True)
    mix_BCHW = images_BCHW * _per_image(weights_NB[0])
    for weight_B in weights_NB[1:]:
        chain_BCHW = images_BCHW
        depths_B = rng.integers(1, policy.layers + 1, size=batch)
        for depth in range(policy.layers):
            drawn_B = rng.integers(first, len(OPERATIONS), size=batch)
            chain_BCHW = _apply_drawn(chain_BCHW, np.where(depth < depths_B, drawn_B, -1), rng, policy)
        mix_BCHW += chain_BCHW * _per_image(weight_B)
    return mix_BCHW.byte()


def _apply_drawn(images_BCHW: Tensor, drawn_B: IntArray, rng: np.random.Generator, policy: Policy) -> Tensor:
    """Apply operation ``drawn_B`` to each image, with a strength that is drawn here; -1: no operation."""
    batch, side = len(images_BCHW), images_BCHW.shape[-1]
    fixed = isinstance(policy.bin, int)
    bins_B = np.full(batch, policy.bin) if fixed else rng.choice(policy.bin, size=batch)
    signs_B = rng.choice((-1.0, 1.0), size=batch)
    return apply_each(
        images_BCHW,
        drawn_B,
        list(OPERATIONS),
        lambda name, group: strengths(name, bins_B[group], signs_B[group], policy, side=side),
    )


def apply_each(
    images_BCHW: Tensor,
    chosen_B: IntArray,
    names: Sequence[str],
    strengths_of: Callable[[str, IntArray], FloatArray],
) -> Tensor:
    """Apply one operation to each image.

    Args:
        images_BCHW: Uint8 images.
        chosen_B: Position of each image's operation in ``names``; -1: leave the image unchanged.
        names: Names of operations.
        strengths_of: Returns the strengths of an operation for the images at some positions.

    Returns:
        New images of the same shape and dtype.
    """
    changed_BCHW = images_BCHW.clone()
    for number, name in enumerate(names):
        group = np.flatnonzero(chosen_B == number)
        if len(group) == 0:
            continue
        group_B = torch.from_numpy(group).to(images_BCHW.device, non_blocking=True)
        by_B = torch.from_numpy(strengths_of(name, group)).float().to(images_BCHW.device, non_blocking=True)
        changed_BCHW[group_B] = OPERATIONS[name](images_BCHW[group_B], by_B)
    return changed_BCHW


def strengths(
    name: str, bins_B: npt.NDArray[np.int64], signs_B: FloatArray, policy: Policy, *, side: int
) -> FloatArray:
    """Return the strength of an operation at each bin, in the unit of the operation.

    Shear: slope; translate: pixels; rotate: degrees; posterize: bits kept; solarize: level; others: factor.

    Args:
        name: Name of the operation.
        bins_B: Bin of each image, counted from 0.
        signs_B: Direction of each operation, -1 or 1.
        policy: Ranges of the operations.
        side: Side of the images, pixels.

    >>> strengths("rotate", np.array([30]), np.array([-1.0]), POLICIES["randaugment"], side=32)
    array([-30.])
    >>> strengths("posterize", np.array([0, 30]), np.array([1.0, 1.0]), POLICIES["randaugment"], side=32)
    array([8., 4.])
    """
    part_B = bins_B / (policy.bins - 1)
    share, pixels = policy.translate
    if name in ("shear_x", "shear_y"):
        return signs_B * part_B * policy.shear
    if name in ("translate_x", "translate_y"):
        return np.trunc(signs_B * part_B * (share * side + pixels))
    if name == "rotate":
        return signs_B * part_B * policy.rotate
    if name == "posterize":
        kept, removed = policy.bits
        return kept - np.rint(part_B * removed)
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
