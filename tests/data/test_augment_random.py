"""The results of random crops, rotation, colour jitter, erasing and AugMix are distributed as torchvision's.

Each test transforms the same image many times, with this package as a batch and with torchvision one by one,
and compares the distributions of a few statistics by the Kolmogorov-Smirnov test. Seeds are fixed, so the
tests are deterministic. ``test_a_wrong_range_is_noticed`` shows their sensitivity.
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

from tests.data.conftest import rng
from tune_rescon.data.augment import draw_boxes, erase, jitter_colors, resized_crop_and_flip, rotate
from tune_rescon.data.policies import POLICIES, augment

COUNT = 1500
SIDE = 32

#: A smaller p-value means that two samples of COUNT images are differently distributed.
P_VALUE_LIMIT = 1e-4


def gradient_image() -> Tensor:
    """Return an image whose channels are a pixel's column, row, and their product."""
    columns = torch.linspace(0, 255, SIDE).expand(SIDE, SIDE)
    return torch.stack([columns, columns.T, columns * columns.T / 255]).byte()


def photograph(channels: int = 3) -> Tensor:
    """Return an image of smooth colours with noise, which every operation changes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-30, 30, (channels, SIDE, SIDE), generator=generator)
    return (
        (
            0.7 * gradient_image()[:channels]
            + 60 * torch.tensor([0.2, 0.9, 0.5])[:channels, None, None]
            + noise
        )
        .clamp(0, 255)
        .byte()
    )


def statistics(images_BCHW: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return the compared statistics: extent, means and deviations of the channels, and a few pixels."""
    images = images_BCHW.double()
    found = {"extent": images.amax((1, 2, 3)) - images.amin((1, 2, 3))}
    for channel in range(images.shape[1]):
        found[f"mean {channel}"] = images[:, channel].mean((1, 2))
        found[f"deviation {channel}"] = images[:, channel].std((1, 2))
        for row, column in ((16, 27), (5, 16), (9, 22)):
            found[f"pixel {channel} {row} {column}"] = images[:, channel, row, column]
    return {name: values.numpy() for name, values in found.items()}


def transform_repeatedly(transform: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    torch.manual_seed(0)
    return torch.stack([transform(image) for _ in range(COUNT)])


def smallest_p_value(ours: Tensor, theirs: Tensor) -> tuple[float, str]:
    """Return the smallest p-value of all statistics, and the name of that statistic."""
    mine, other = statistics(ours), statistics(theirs)
    return min((float(ks_2samp(mine[name], other[name]).pvalue), name) for name in mine)


def repeat_image(image: Tensor) -> Tensor:
    return image.expand(COUNT, -1, -1, -1)


def cropped(smallest: float = 0.2, ratio: float = 1.5, *, flip: bool = False, side: int = SIDE) -> Tensor:
    return resized_crop_and_flip(
        repeat_image(gradient_image()), rng(), smallest=smallest, ratio=ratio, flip=flip, side=side
    )


CROP = v2.RandomResizedCrop(SIDE, scale=(0.2, 1), ratio=(1 / 1.5, 1.5))
JITTER = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)


def erased(probability: float = 0.6) -> Tensor:
    return erase(repeat_image(gradient_image() + 1).float(), rng(), probability=probability)


@pytest.fixture(scope="module")
def torchvision_images() -> dict[str, Tensor]:
    return {
        "crop": transform_repeatedly(CROP, gradient_image()),
        "crop and flip": transform_repeatedly(
            v2.Compose([CROP, v2.RandomHorizontalFlip()]), gradient_image()
        ),
        "rotation": transform_repeatedly(v2.RandomRotation(25), photograph()),
        "jitter": transform_repeatedly(JITTER, photograph()),
        "erasing": transform_repeatedly(v2.RandomErasing(0.6), (gradient_image() + 1).float()),
    }


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("crop", cropped),
        ("crop and flip", lambda: cropped(flip=True)),
        ("rotation", lambda: rotate(repeat_image(photograph()), rng(), degrees=25)),
        ("jitter", lambda: jitter_colors(repeat_image(photograph()), rng(), strength=0.4)),
        ("erasing", erased),
    ],
)
def test_result_distribution_matches_torchvision(
    name: str, ours: Callable[[], Tensor], torchvision_images: dict[str, Tensor]
) -> None:
    p, statistic = smallest_p_value(ours(), torchvision_images[name])
    assert p > P_VALUE_LIMIT, statistic


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("crop", lambda: cropped(0.25)),
        ("crop", lambda: cropped(ratio=1.8)),
        ("crop", lambda: cropped(flip=True)),
        ("crop and flip", cropped),
        ("rotation", lambda: rotate(repeat_image(photograph()), rng(), degrees=29)),
        ("jitter", lambda: jitter_colors(repeat_image(photograph()), rng(), strength=0.46)),
        ("erasing", lambda: erased(0.68)),
    ],
)
def test_a_wrong_range_is_noticed(
    name: str, changed: Callable[[], Tensor], torchvision_images: dict[str, Tensor]
) -> None:
    p, _ = smallest_p_value(changed(), torchvision_images[name])
    assert p < P_VALUE_LIMIT


@pytest.mark.torch
@pytest.mark.parametrize("channels", [1, 3])
def test_augmix_distribution_matches_torchvision(channels: int) -> None:
    image = photograph(channels)
    theirs = transform_repeatedly(v2.AugMix(interpolation=v2.InterpolationMode.NEAREST), image)
    p, statistic = smallest_p_value(augment(repeat_image(image), rng(), POLICIES["augmix"]), theirs)
    assert p > P_VALUE_LIMIT, statistic
    other = {
        name: augment(repeat_image(image), rng(), POLICIES[name])
        for name in ("randaugment", "trivialaugment")
    }
    assert all(smallest_p_value(found, theirs)[0] < P_VALUE_LIMIT for found in other.values())


@pytest.mark.parametrize("side", [8, 32, 50])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_matches_torchvision_within_one_level(side: int, flip: bool) -> None:
    """Boxes are larger, smaller and equal to the result; pixels outside the box have no effect."""
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
