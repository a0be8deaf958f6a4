"""Batches depend only on (seed, epoch), and do not change the global random state."""

from __future__ import annotations

import dataclasses
import random
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.data.conftest import MakeFolder, OpenFolder
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataModule, ImageDataset, Split
from tune_rescon.data.batch_sources import MemmapSource, Shard
from tune_rescon.data.datamodule import (
    Batches,
    ShuffledBatches,
    augmentation_rng,
    balanced_order,
    epoch_order,
)

PADDED_CROP: dict[str, Any] = {
    "crop_padding": 2,
    "flip": True,
    "augment": "randaugment",
    "mixup": 0.2,
    "cutmix": 1.0,
}
RESIZED_CROP: dict[str, Any] = {
    "crop_scale": 0.3,
    "rotation": 20.0,
    "color_jitter": 0.4,
    "augment": "augmix",
    "random_erasing": 0.5,
    "cutmix": 1.0,
}
NO_AUGMENTATION: dict[str, Any] = {"crop_padding": 0, "flip": False}


def numbered_images(images: int) -> MemmapSource:
    """Return images of which image i is filled with the value i."""
    pixels = np.arange(images, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), dtype=np.uint8)
    rows = np.arange(images)
    return MemmapSource(split=Split(images_NHWC=pixels, rows_N=rows, labels_N=rows % 3))


def image_numbers(loader: Batches) -> list[list[int]]:
    return [batch.images_BHWC[:, 0, 0, 0].tolist() for batch in loader]


def shuffled(images: int, batch_size: int, epoch: int = 0, seed: int = 0) -> ShuffledBatches:
    return ShuffledBatches(
        images=numbered_images(images), batch_size=batch_size, seed=seed, epoch=lambda: epoch
    )


@given(st.integers(1, 100), st.integers(2, 40))
def test_validation_visits_every_image_in_order(images: int, batch_size: int) -> None:
    loader = Batches(images=numbered_images(images), batch_size=batch_size)
    found = image_numbers(loader)
    assert list(chain(*found)) == list(range(images))
    assert len(found) == len(loader)
    assert all(len(batch) == batch_size for batch in found[:-1])


@given(st.integers(2, 100), st.integers(2, 40))
def test_training_drops_a_short_last_batch_only_if_there_is_another(images: int, batch_size: int) -> None:
    loader = shuffled(images, batch_size)
    found = image_numbers(loader)
    assert len(found) == len(loader)
    assert [len(batch) for batch in found] == [batch_size] * (images // batch_size) or [len(found[0])] == [
        images
    ]
    assert len(set(chain(*found))) == sum(map(len, found))


def test_each_epoch_and_seed_has_its_own_order() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert np.array_equal(epoch_order(50, seed=1, epoch=2), epoch_order(50, seed=1, epoch=2))


LABELS = st.lists(st.integers(1, 30), min_size=1, max_size=6).map(
    lambda counts: np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
)


@given(LABELS, st.integers(0, 9), st.integers(0, 9))
def test_a_balanced_epoch_shows_classes_and_their_images_equally_often(
    labels: np.ndarray[tuple[int], np.dtype[np.int64]], seed: int, epoch: int
) -> None:
    order = balanced_order(labels, seed=seed, epoch=epoch)
    assert len(order) == len(labels)
    assert np.ptp(np.bincount(labels[order])) <= 1
    counts = np.bincount(order, minlength=len(labels))
    for label in np.unique(labels):
        assert np.ptp(counts[labels == label]) <= 1
    assert np.array_equal(balanced_order(labels, seed=seed, epoch=epoch), order)


def test_a_balanced_epoch_has_its_own_order_and_images() -> None:
    labels = np.repeat([0, 1], [400, 20])
    orders = [balanced_order(labels, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert len({tuple(np.unique(order[order < 400])) for order in orders}) == 9
    # The classes are mixed.
    assert all(60 < np.count_nonzero(labels[order[:210]]) < 150 for order in orders)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_add_up_to_the_balanced_batches(count: int) -> None:
    labels = np.repeat([0, 1, 2], [30, 5, 2])
    source = MemmapSource(split=dataclasses.replace(numbered_images(37).split, labels_N=labels))
    settings: dict[str, Any] = {"images": source, "batch_size": 9, "seed": 1, "epoch": lambda: 2}
    whole = image_numbers(ShuffledBatches(**settings, balanced_N=labels))
    shards = [
        image_numbers(
            ShuffledBatches(**settings, balanced_N=labels, shard=Shard(rank=rank, world_size=count))
        )
        for rank in range(count)
    ]
    assert [list(chain(*parts)) for parts in zip(*shards, strict=True)] == whole
    assert max(np.bincount(list(chain(*whole)))) >= 5


def test_augmentation_streams_differ_by_epoch_batch_and_seed() -> None:
    positions = [(0, 0), (0, 1), (1, 0), (1, 1)]
    draws = {
        float(augmentation_rng(position, seed=seed).random()) for position in positions for seed in (0, 1)
    }
    assert len(draws) == 8


@pytest.fixture
def dataset(make_folder: MakeFolder, open_folder: OpenFolder) -> ImageDataset:
    return open_folder(make_folder({"train/a": 16, "train/b": 16, "val/a": 3, "test/b": 5}))


def module_of(
    dataset: ImageDataset, *, seed: int = 0, image_size: int = 16, **settings: Any
) -> ImageDataModule:
    config = TrialConfig(**{"batch_size": 8, **NO_AUGMENTATION, **settings})
    return ImageDataModule(dataset, config, image_size=image_size, seed=seed)


def batches_equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("settings", [PADDED_CROP, RESIZED_CROP])
def test_an_epoch_does_not_depend_on_earlier_ones(dataset: ImageDataset, settings: dict[str, Any]) -> None:
    module = module_of(dataset, **settings)
    expected = list(module.train_batches(epoch=3))
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    list(module.train_batches(epoch=0))
    assert batches_equal(list(module_of(dataset, **settings).train_batches(epoch=3)), expected)


@pytest.mark.parametrize(
    "settings",
    [{"crop_padding": 1, "mixup": 0.2}, {"crop_padding": 1, "class_sampling": "balanced"}, RESIZED_CROP],
)
def test_an_epoch_resumes_from_any_batch(dataset: ImageDataset, settings: dict[str, Any]) -> None:
    whole = list(module_of(dataset, **settings).train_batches(epoch=3))
    rest = list(module_of(dataset, **settings).train_batches(epoch=3, first=1))
    assert len(rest) == len(whole) - 1 > 0
    assert batches_equal(rest, whole[1:])


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_epoch_and_seed_change_the_batches(dataset: ImageDataset, other: dict[str, int]) -> None:
    seed, epoch = other.get("seed", 0), other.get("epoch", 0)
    first = list(module_of(dataset, **PADDED_CROP).train_batches(epoch=0))
    assert not batches_equal(
        list(module_of(dataset, seed=seed, **PADDED_CROP).train_batches(epoch=epoch)), first
    )


def test_balanced_sampling_shows_a_rare_class_equally_often(
    make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    images = open_folder(make_folder({"train/a": 28, "train/b": 4, "val/a": 3, "val/b": 3}))
    plain, balanced = (
        torch.cat([labels for _, labels in module_of(images, class_sampling=how).train_batches(epoch=0)])
        for how in ("none", "balanced")
    )
    assert plain.bincount().tolist() == [28, 4]
    assert balanced.bincount().tolist() == [16, 16]


def test_global_random_states_are_left_alone(dataset: ImageDataset) -> None:
    before = torch.get_rng_state(), np.random.get_state(legacy=True), random.getstate()
    list(module_of(dataset, image_size=24, **PADDED_CROP).train_batches(epoch=0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert str(before[1]) == str(np.random.get_state(legacy=True))
    assert before[2] == random.getstate()


def test_no_augmentation_without_request(dataset: ImageDataset) -> None:
    module = module_of(dataset, normalize=False)
    order = epoch_order(len(dataset.train), seed=0, epoch=0)
    stored, labels = dataset.train.gather(order)
    batches = list(module.train_batches(epoch=0))
    expected = torch.from_numpy(stored).permute(0, 3, 1, 2) / 255
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)
    assert torch.equal(torch.cat([found for _, found in batches]), torch.from_numpy(labels))


def test_validation_batches_are_larger_and_on_a_gpu_larger_still(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: the batch source is replaced."""
    monkeypatch.setattr("tune_rescon.data.datamodule.choose_source", lambda *_: numbered_images(9))
    data = ImageDataModule(dataset, TrialConfig(batch_size=2), image_size=16, seed=0)
    sizes = {device: data._in_order("val", torch.device(device)).batch_size for device in ("cpu", "cuda")}
    assert sizes == {"cpu": 4, "cuda": 16}


@pytest.mark.parametrize(
    "field", [{"crop_scale": 0.3}, {"rotation": 20.0}, {"color_jitter": 0.4}, {"random_erasing": 0.5}]
)
def test_each_augmentation_changes_images_not_labels(dataset: ImageDataset, field: dict[str, Any]) -> None:
    plain = list(module_of(dataset).train_batches(epoch=0))
    changed = list(module_of(dataset, **field).train_batches(epoch=0))
    for (before, labels), (after, same_labels) in zip(plain, changed, strict=True):
        assert torch.equal(labels, same_labels)
        assert (before != after).flatten(1).any(1).float().mean() > 0.2


def test_a_small_crop_is_not_padded(dataset: ImageDataset) -> None:
    batches = [
        list(module_of(dataset, crop_scale=0.3, crop_padding=padding).train_batches(epoch=0))
        for padding in (0, 8)
    ]
    assert batches_equal(*batches)


def test_a_box_is_erased_to_the_mean_colour(dataset: ImageDataset) -> None:
    images = torch.cat(
        [images for images, _ in module_of(dataset, random_erasing=1.0).train_batches(epoch=0)]
    )
    erased = (images == 0).all(1).flatten(1).float().mean(1)
    assert (erased > 0).float().mean() > 0.9
    assert 0.1 < erased.mean() < 0.25


def test_validation_is_not_augmented(dataset: ImageDataset) -> None:
    ((plain, _),) = module_of(dataset).val_batches()
    for settings in (PADDED_CROP, RESIZED_CROP):
        ((found, labels),) = module_of(dataset, **settings).val_batches()
        assert torch.equal(found, plain)
        assert torch.equal(labels, torch.from_numpy(dataset.val.labels_N))


def test_the_evaluated_split_is_the_chosen_one(dataset: ImageDataset) -> None:
    config = TrialConfig(batch_size=8)
    module = ImageDataModule(dataset, config, image_size=16, seed=0, eval_split="test")
    ((_, labels),) = module.val_batches()
    assert torch.equal(labels, torch.from_numpy(dataset.test.labels_N))


def test_normalised_training_images_have_mean_0_and_deviation_1(dataset: ImageDataset) -> None:
    images = torch.cat([images for images, _ in module_of(dataset).train_batches(epoch=0)])
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("image_size", [8, 16, 33])
@pytest.mark.parametrize("settings", [{}, PADDED_CROP, RESIZED_CROP])
def test_batches_have_the_networks_shape_dtype_and_memory_format(
    dataset: ImageDataset, image_size: int, settings: dict[str, Any]
) -> None:
    images, targets = next(module_of(dataset, image_size=image_size, **settings).train_batches(epoch=0))
    assert images.shape == (8, 3, image_size, image_size)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (targets.shape, targets.dtype) == (((8, 2), torch.float32) if settings else ((8,), torch.int64))


def test_resizing_agrees_with_the_decoder(dataset: ImageDataset) -> None:
    from PIL import Image

    ((found, _),) = module_of(dataset, image_size=8, normalize=False).val_batches()
    stored, _ = dataset.val.gather(np.arange(3))
    expected = [Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR) for image in stored]
    exact = torch.from_numpy(np.stack([np.asarray(image) for image in expected])).permute(0, 3, 1, 2)
    assert (found * 255 - exact).abs().max() <= 1


@pytest.mark.parametrize(
    ("settings", "mixes"),
    [
        ({"mixup": 0.2}, {"mixup"}),
        ({"cutmix": 1.0}, {"cutmix"}),
        ({"mixup": 1.0, "cutmix": 1.0}, {"mixup", "cutmix"}),
    ],
)
def test_each_batch_uses_one_of_the_requested_mixes(
    dataset: ImageDataset, settings: dict[str, Any], mixes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name in ("mixup", "cutmix"):

        def spy(
            images: Tensor, targets: Tensor, *_: object, name: str = name, **__: object
        ) -> tuple[Tensor, Tensor]:
            used.append(name)
            return images, targets

        monkeypatch.setattr(f"tune_rescon.data.datamodule.{name}", spy)
    for epoch in range(5):
        list(module_of(dataset, **settings).train_batches(epoch=epoch))
    assert set(used) == mixes
    assert len(used) == 20


def test_images_of_one_colour_can_be_normalised(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    from PIL import Image

    root = make_folder({"a": 4, "b": 4})
    for path in root.glob("*/*.png"):
        Image.new("RGB", (16, 16), (9, 9, 9)).save(path)
    images, _ = next(module_of(open_folder(root)).train_batches(epoch=0))
    assert not images.any()


class OneParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))


def train_and_record(
    module: ImageDataModule, folder: Path, *, epochs: int, resume: Path | None = None
) -> list[float]:
    """Train with Lightning and return the sum of each training batch."""
    import pytorch_lightning as pl

    sums: list[float] = []

    class RecordingModule(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = OneParameter()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            sums.append(float(batch[0].double().sum()))
            return self.net.bias.square()

        def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
            assert batch[0].shape[0] == len(module.dataset.val)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(RecordingModule(), datamodule=module, ckpt_path=resume, weights_only=False)
    trainer.save_checkpoint(folder / "last.ckpt")
    return sums


# Lightning 2.6 uses torch's tree utilities in a way that torch 2.15 deprecates.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning")
@pytest.mark.torch
def test_lightning_trains_every_epoch_and_resumes_at_the_right_one(
    dataset: ImageDataset, tmp_path: Path
) -> None:
    module = module_of(dataset, **PADDED_CROP)
    whole = train_and_record(module, tmp_path, epochs=4)
    first = train_and_record(module_of(dataset, **PADDED_CROP), tmp_path, epochs=2)
    rest = train_and_record(
        module_of(dataset, **PADDED_CROP), tmp_path, epochs=4, resume=tmp_path / "last.ckpt"
    )
    expected = [
        float(images.double().sum()) for epoch in range(4) for images, _ in module.train_batches(epoch=epoch)
    ]
    assert whole == expected
    assert first + rest == expected
    assert all(a != b for a, b in pairwise(whole))
