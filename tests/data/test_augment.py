"""Augmentation: what each operation may and may not change, and agreement with torchvision's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from tune_rescon.data.augment import crop_and_flip, cutmix, mixup
from tune_rescon.data.policies import OPERATIONS, POLICIES, augment, strengths
from tune_rescon.data.preprocessing import resized


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(batch: int = 6, channels: int = 3, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8, generator=generator)


def crops_of(image_HWC: Tensor, padding: int) -> list[Tensor]:
    """Every crop and mirrored crop there is of one image."""
    side = image_HWC.shape[0]
    padded = torch.nn.functional.pad(image_HWC, (0, 0, padding, padding, padding, padding))
    places = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    cuts = [padded[y : y + side, x : x + side] for y, x in places]
    return cuts + [cut.flip(1) for cut in cuts]


def test_crop_and_flip_draws_a_crop_for_each_image() -> None:
    images = noise(40, side=6).permute(0, 2, 3, 1)
    found = crop_and_flip(images, rng(), padding=2, flip=True)
    chosen = [
        next(i for i, crop in enumerate(crops_of(image, 2)) if torch.equal(crop, result))
        for image, result in zip(images, found, strict=True)
    ]
    assert len(set(chosen)) > 15
    assert any(i >= 25 for i in chosen)
    assert any(i < 25 for i in chosen)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (2, False), (0, True)])
def test_only_requested_transforms_are_applied(padding: int, flip: bool) -> None:
    images = noise(30, side=6).permute(0, 2, 3, 1)
    found = crop_and_flip(images, rng(), padding=padding, flip=flip)
    for image, result in zip(images, found, strict=True):
        crops = crops_of(image, padding)
        allowed = crops if flip else crops[: len(crops) // 2]
        assert any(torch.equal(crop, result) for crop in allowed)
    assert torch.equal(found, images) == (not padding and not flip)


def test_half_of_the_images_are_mirrored() -> None:
    images = noise(400, side=4).permute(0, 2, 3, 1)
    mirrored = (crop_and_flip(images, rng(), padding=0, flip=True) != images).flatten(1).any(1)
    assert 160 < int(mirrored.sum()) < 240


def test_mixup_blends_images_and_targets_alike() -> None:
    images, targets = noise().float(), F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).float()
    weight = float(rng().beta(0.4, 0.4))
    mixed, soft = mixup(images, targets, rng(), alpha=0.4)
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * images.roll(1, 0))
    torch.testing.assert_close(soft, weight * targets + (1 - weight) * targets.roll(1, 0))


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_targets_match_the_pasted_area(seed: int) -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 20, 20)
    targets = F.one_hot(torch.arange(4), 4).float()
    mixed, soft = cutmix(images, targets, rng(seed), alpha=1.0)
    for image in range(4):
        shares = [(mixed[image] == value).float().mean() for value in range(4)]
        torch.testing.assert_close(soft[image], torch.stack(shares))


def torchvision_result(name: str, image: Tensor, strength: float) -> Tensor:
    """What torchvision's own policies do, one image at a time."""
    transform_id = "".join(word.capitalize() for word in name.split("_"))
    transform_id = {"Autocontrast": "AutoContrast"}.get(transform_id, transform_id)
    magnitude = strength
    if name in ("brightness", "color", "contrast", "sharpness"):
        magnitude = strength - 1
    if name == "solarize":
        magnitude = strength / 255
    result: Tensor = v2.RandAugment()._apply_image_or_video_transform(
        image, transform_id, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill={}
    )
    return result


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_match_torchvision(name: str, channels: int, policy: str) -> None:
    images = noise(7, channels)
    bins, signs = np.array([0, 4, 9, 15, 20, 29, 30]), np.array([1.0, -1, 1, -1, 1, -1, 1])
    bins = bins * (POLICIES[policy].bins - 1) // 30
    by = strengths(name, bins, signs, POLICIES[policy], side=16)
    found = OPERATIONS[name](images, torch.from_numpy(by).float())
    expected = torch.stack(
        [torchvision_result(name, image, float(value)) for image, value in zip(images, by, strict=True)]
    )
    assert found.dtype == torch.uint8
    # Rounding may put a sampled pixel's place, or a blended value, on the other side of a half.
    off = (found.int() - expected.int()).abs()
    assert (off > 1).float().mean() < 0.02
    assert (off > 0).float().mean() < 0.05


@pytest.mark.parametrize(
    ("policy", "reference"),
    [("randaugment", v2.RandAugment), ("trivialaugment", v2.TrivialAugmentWide), ("augmix", v2.AugMix)],
)
def test_magnitude_ranges_match_torchvision(policy: str, reference: Any) -> None:
    space = reference._AUGMENTATION_SPACE
    ours = {name.replace("_", ""): name for name in OPERATIONS}
    assert {theirs.lower() for theirs in space} | {"identity"} == set(ours)
    count = POLICIES[policy].bins
    bins, signs = np.arange(count), np.ones(count)
    for theirs, (magnitudes, _) in space.items():
        name, expected = ours[theirs.lower()], magnitudes(count, 16, 16)
        if expected is None:
            continue
        found = strengths(name, bins, signs, POLICIES[policy], side=16)
        if name in ("brightness", "color", "contrast", "sharpness"):
            found = found - 1
        if name == "solarize":
            found = found / 255
        if theirs.startswith("Translate"):
            # 32 / 30 * 15 is a hair below 16 in their float32.
            expected = (expected + 1e-4).trunc()
        np.testing.assert_allclose(found, expected.double().numpy(), atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_image_is_augmented_independently(policy: str) -> None:
    images = noise(1).expand(64, -1, -1, -1)
    found = augment(images, rng(), POLICIES[policy])
    assert len({tuple(image.flatten().tolist()) for image in found}) > 20


def test_a_policy_does_not_modify_its_input() -> None:
    images = noise()
    before = images.clone()
    augment(images, rng(), POLICIES["randaugment"])
    assert torch.equal(images, before)


def test_rotation_is_counterclockwise_like_torchvision() -> None:
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., :8, :] = 255
    found = OPERATIONS["rotate"](image, torch.tensor([90.0]))
    assert torch.equal(found, VF.rotate(image, 90))
    assert math.isclose(float(found[..., :8].float().mean()), 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("stored", "side"), [(8, 16), (32, 24), (17, 16), (5, 64)])
def test_uint8_images_are_resized_like_torchvision(channels: int, stored: int, side: int) -> None:
    images = torch.randint(0, 256, (6, stored, stored, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert torch.equal(resized(images, side), VF.resize(images, [side, side], antialias=True))
    bicubic = VF.resize(images, [side, side], v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(resized(images, side, interpolation="bicubic"), bicubic)


def test_uint8_resize_is_the_same_without_a_native_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(resized(images, 16), VF.resize(images, [16, 16], antialias=True))
    bicubic = VF.resize(images, [16, 16], v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(resized(images, 16, interpolation="bicubic"), bicubic)
