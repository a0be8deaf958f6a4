"""Random crops, rotation, colour jitter, erasing and AugMix are distributed as torchvision's.

Each test takes the same image through a transform many times, here in one batch and there one by one, and
compares the distributions of a few numbers of the results by the Kolmogorov-Smirnov test. The seeds are
fixed, so that a test passes always or never. ``test_a_wrong_range_is_noticed`` shows how fine the tests are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from tune_rescon.data.augment import draw_boxes, erase, jitter_colors, resized_crop_and_flip, rotate
from tune_rescon.data.policies import POLICIES, augment

COUNT = 1500
SIDE = 32

#: Below this, two samples of COUNT count as differently distributed.
LEAST_P = 1e-4


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramps() -> Tensor:
    """An image whose channels tell a pixel's column, row, and their product."""
    columns = torch.linspace(0, 255, SIDE).expand(SIDE, SIDE)
    return torch.stack([columns, columns.T, columns * columns.T / 255]).byte()


def photograph(channels: int = 3) -> Tensor:
    """Smooth colours with some noise, so that every operation changes it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-30, 30, (channels, SIDE, SIDE), generator=generator)
    return (
        (0.7 * ramps()[:channels] + 60 * torch.tensor([0.2, 0.9, 0.5])[:channels, None, None] + noise)
        .clamp(0, 255)
        .byte()
    )


def numbers(images_BCHW: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """What is compared: the colours' means and spreads, and single pixels off the centre."""
    images = images_BCHW.double()
    found = {"extent": images.amax((1, 2, 3)) - images.amin((1, 2, 3))}
    for channel in range(images.shape[1]):
        found[f"mean {channel}"] = images[:, channel].mean((1, 2))
        found[f"deviation {channel}"] = images[:, channel].std((1, 2))
        for row, column in ((16, 27), (5, 16), (9, 22)):
            found[f"pixel {channel} {row} {column}"] = images[:, channel, row, column]
    return {name: values.numpy() for name, values in found.items()}


def one_by_one(transform: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    torch.manual_seed(0)
    return torch.stack([transform(image) for _ in range(COUNT)])


def least_p(ours: Tensor, theirs: Tensor) -> tuple[float, str]:
    """The smallest p-value of all numbers, and the number."""
    mine, other = numbers(ours), numbers(theirs)
    return min((float(ks_2samp(mine[name], other[name]).pvalue), name) for name in mine)


def batch(image: Tensor) -> Tensor:
    return image.expand(COUNT, -1, -1, -1)


def ours_cropped(
    smallest: float = 0.2, ratio: float = 1.5, *, flip: bool = False, side: int = SIDE
) -> Tensor:
    return resized_crop_and_flip(batch(ramps()), rng(), smallest=smallest, ratio=ratio, flip=flip, side=side)


CROP = v2.RandomResizedCrop(SIDE, scale=(0.2, 1), ratio=(1 / 1.5, 1.5))
JITTER = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)


def ours_erased(probability: float = 0.6) -> Tensor:
    return erase(batch(ramps() + 1).float(), rng(), probability=probability)


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return {
        "crop": one_by_one(CROP, ramps()),
        "crop and flip": one_by_one(v2.Compose([CROP, v2.RandomHorizontalFlip()]), ramps()),
        "rotation": one_by_one(v2.RandomRotation(25), photograph()),
        "jitter": one_by_one(JITTER, photograph()),
        "erasing": one_by_one(v2.RandomErasing(0.6), (ramps() + 1).float()),
    }


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("crop", ours_cropped),
        ("crop and flip", lambda: ours_cropped(flip=True)),
        ("rotation", lambda: rotate(batch(photograph()), rng(), degrees=25)),
        ("jitter", lambda: jitter_colors(batch(photograph()), rng(), strength=0.4)),
        ("erasing", ours_erased),
    ],
)
def test_result_distribution_matches_torchvision(
    name: str, ours: Callable[[], Tensor], theirs: dict[str, Tensor]
) -> None:
    p, number = least_p(ours(), theirs[name])
    assert p > LEAST_P, number


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("crop", lambda: ours_cropped(0.25)),
        ("crop", lambda: ours_cropped(ratio=1.8)),
        ("crop", lambda: ours_cropped(flip=True)),
        ("crop and flip", ours_cropped),
        ("rotation", lambda: rotate(batch(photograph()), rng(), degrees=29)),
        ("jitter", lambda: jitter_colors(batch(photograph()), rng(), strength=0.46)),
        ("erasing", lambda: ours_erased(0.68)),
    ],
)
def test_a_wrong_range_is_noticed(name: str, wrong: Callable[[], Tensor], theirs: dict[str, Tensor]) -> None:
    p, _ = least_p(wrong(), theirs[name])
    assert p < LEAST_P


@pytest.mark.torch
@pytest.mark.parametrize("channels", [1, 3])
def test_augmix_distribution_matches_torchvision(channels: int) -> None:
    image = photograph(channels)
    theirs = one_by_one(v2.AugMix(interpolation=v2.InterpolationMode.NEAREST), image)
    p, number = least_p(augment(batch(image), rng(), POLICIES["augmix"]), theirs)
    assert p > LEAST_P, number
    other = {name: augment(batch(image), rng(), POLICIES[name]) for name in ("randaugment", "trivialaugment")}
    assert all(least_p(found, theirs)[0] < LEAST_P for found in other.values())


@pytest.mark.parametrize("side", [8, 32, 50])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_matches_torchvision_within_one_level(side: int, flip: bool) -> None:
    """Larger, smaller and equal boxes; pixels of noise outside the box do not show."""
    images = torch.randint(0, 256, (40, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).byte()
    found = resized_crop_and_flip(images, rng(4), smallest=0.05, ratio=2, flip=flip, side=side)
    draws = rng(4)
    boxes = draw_boxes(
        40, draws, side=SIDE, area=(0.05, 1), ratio=(0.5, 2), largest=SIDE, otherwise=SIDE
    ).tolist()
    mirrored = (draws.random((40, 1)) < 0.5)[:, 0] if flip else np.zeros(40, dtype=bool)
    assert np.unique(mirrored).tolist() == [False, True][: 1 + flip]
    for image, result, box, mirror in zip(images, found, boxes, mirrored, strict=True):
        expected = VF.resized_crop(image, *box, size=[side, side], antialias=True)
        expected = expected.flip(-1) if mirror else expected
        assert (result.int() - expected.int()).abs().max() <= 1


def test_boxes_fit_the_image_or_are_replaced() -> None:
    whole = draw_boxes(200, rng(), side=16, area=(0.9, 1), ratio=(0.01, 0.02), largest=16, otherwise=16)
    assert (whole == [0, 0, 16, 16]).all()
    boxes = draw_boxes(500, rng(), side=16, area=(0.05, 1), ratio=(0.25, 4), largest=16, otherwise=16)
    assert (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 16).all()
    assert (boxes[:, :2] >= 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_inputs_are_not_modified(channels: int) -> None:
    images = photograph(channels)[None].repeat(5, 1, 1, 1)
    before = images.clone()
    resized_crop_and_flip(images, rng(), smallest=0.1, ratio=1.3, flip=True, side=8)
    rotate(images, rng(), degrees=90)
    assert jitter_colors(images, rng(), strength=1).shape == images.shape
    augment(images, rng(), POLICIES["augmix"])
    assert torch.equal(images, before)
    floats = images.float()
    erase(floats, rng(), probability=1)
    assert torch.equal(floats, before.float())
