"""Images in a device's memory; the device is the CPU, which gets a simulated memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataModule, ImageDataset, batch_sources
from tune_rescon.data.batch_sources import (
    DeviceSource,
    MemmapSource,
    PrefetchSource,
    choose_source,
    fits,
    release,
)

MakeFolder = Callable[..., Path]
OpenFolder = Callable[..., ImageDataset]

DEVICE = torch.device("cpu")
#: 24 training images of 16 x 16 x 3.
TRAIN_BYTES = 24 * 16 * 16 * 3


@pytest.fixture
def dataset(make_folder: MakeFolder, open_folder: OpenFolder) -> ImageDataset:
    return open_folder(make_folder({"train/a": 12, "train/b": 12, "val/a": 3, "test/b": 5}))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """``device["free"]`` is its memory."""
    memory = {"free": 8 * TRAIN_BYTES}
    monkeypatch.setattr(batch_sources, "has_own_memory", lambda _: True)
    monkeypatch.setattr(batch_sources, "free_memory", lambda _: memory["free"])
    monkeypatch.setattr(batch_sources, "_held", {})
    return memory


def test_a_cpu_reads_the_mapped_cache(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert choose_source(dataset, "train", DEVICE) == MemmapSource(split=dataset.train)
    assert batch_sources._held == {}


def test_images_that_fit_are_on_the_device_and_others_are_prefetched(
    dataset: ImageDataset, device: dict[str, int]
) -> None:
    assert isinstance(choose_source(dataset, "train", DEVICE), DeviceSource)
    device["free"] -= 1
    batch_sources._held.clear()
    assert choose_source(dataset, "train", DEVICE) == PrefetchSource(split=dataset.train, device=DEVICE)
    assert isinstance(choose_source(dataset, "val", DEVICE), DeviceSource)  # smaller


@pytest.mark.parametrize("needed", [1, 1000, 10**12])
def test_images_may_fill_an_eighth_of_the_free_memory(needed: int) -> None:
    assert fits(needed, 8 * needed)
    assert not fits(needed, 8 * needed - 1)


def test_the_next_trial_reuses_the_copy_on_the_device(dataset: ImageDataset, device: dict[str, int]) -> None:
    first = choose_source(dataset, "train", DEVICE)
    device["free"] = 0
    assert choose_source(dataset, "train", DEVICE) is first


def test_reopened_images_share_the_copy_on_the_device(
    dataset: ImageDataset, open_folder: OpenFolder, tmp_path: Path
) -> None:
    again = open_folder(tmp_path / "images")
    assert again is not dataset
    assert choose_source(again, "train", DEVICE) is choose_source(dataset, "train", DEVICE)


def test_another_dataset_replaces_the_copy_on_the_device(
    dataset: ImageDataset, open_folder: OpenFolder, tmp_path: Path
) -> None:
    first = choose_source(dataset, "train", DEVICE)
    other = open_folder(tmp_path / "images", limit=8)
    choose_source(other, "train", DEVICE)
    assert [held.digest for held in batch_sources._held.values()] == [other.digest]
    assert choose_source(dataset, "train", DEVICE) is not first


def test_released_images_stay_off_the_device_until_another_dataset(
    dataset: ImageDataset, open_folder: OpenFolder, tmp_path: Path
) -> None:
    assert release(DEVICE) is False
    choose_source(dataset, "train", DEVICE)
    assert release(DEVICE) is True
    assert release(DEVICE) is False
    for part in ("train", "val"):
        assert isinstance(choose_source(dataset, part, DEVICE), PrefetchSource)
    assert isinstance(choose_source(open_folder(tmp_path / "images", limit=8), "train", DEVICE), DeviceSource)
    assert isinstance(choose_source(dataset, "train", DEVICE), DeviceSource)


def test_an_upload_that_ran_out_of_memory_is_not_retried(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    tried: list[int] = []
    monkeypatch.setattr(batch_sources, "_upload", full)
    for _ in range(2):
        assert isinstance(choose_source(dataset, "train", DEVICE), PrefetchSource)
    assert tried == [1]


def test_a_large_split_is_uploaded_in_chunks(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_sources, "_CHUNK_BYTES", 5 * 16 * 16 * 3)
    held = choose_source(dataset, "train", DEVICE)
    assert isinstance(held, DeviceSource)
    assert torch.equal(held.images_NHWC, torch.from_numpy(dataset.train.images_NHWC[dataset.train.rows_N]))
    assert torch.equal(held.labels_N, torch.from_numpy(dataset.train.labels_N))


@pytest.mark.parametrize("free", [8 * TRAIN_BYTES, 0], ids=["resident", "ahead"])
def test_batches_match_those_of_the_cpu_bit_for_bit(
    dataset: ImageDataset, device: dict[str, int], monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    settings: dict[str, Any] = {"crop_padding": 2, "augment": "randaugment", "mixup": 0.2, "cutmix": 1.0}
    config = TrialConfig(batch_size=8, **settings)

    def batches() -> list[torch.Tensor]:
        module = ImageDataModule(dataset, config, image_size=24, seed=3)
        pairs = [*module.train_batches(epoch=2), *module.val_batches()]
        return [tensor for pair in pairs for tensor in pair]

    device["free"] = free
    found = batches()
    assert bool(batch_sources._held[DEVICE].splits) is bool(free)
    monkeypatch.undo()
    for mine, expected in zip(found, batches(), strict=True):
        assert torch.equal(mine, expected)
