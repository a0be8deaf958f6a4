"""The 60,000 jpegs of CIFAR-10 in one zip: decoded once on all cores, then opened at once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe, open_dataset
from tune_rescon.data.catalog import BUILTIN

pytestmark = [pytest.mark.shared, pytest.mark.nightly, pytest.mark.timeout(300)]

#: Published per-channel statistics of CIFAR-10's training images; jpeg moves them a little.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def config(shared: Path) -> DatasetConfig:
    return DatasetConfig(name="folder", path=str(shared / "data" / "cifar10-jpeg.zip"))


@pytest.fixture(scope="module")
def cache_root(config: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    told: list[tuple[int, int]] = []
    open_dataset(config, data_root=root, cache_root=root, progress=lambda *done: told.append(done))
    assert told[-1] == (60_000, 60_000)
    assert len(told) > 50
    return root


def test_the_zip_is_read_as_cifar10(config: DatasetConfig, cache_root: Path) -> None:
    info = describe(config, data_root=cache_root)
    dataset = open_dataset(config, data_root=cache_root, cache_root=cache_root)
    assert info.class_names == dataset.class_names == BUILTIN["cifar10"].class_names
    assert (info.image_size, dataset.train.images_NHWC.shape) == (32, (60_000, 32, 32, 3))
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [45_000, 5_000, 10_000]
    assert np.bincount(dataset.val.labels_N).tolist() == [500] * 10
    assert dataset.mean == pytest.approx(MEAN, abs=2e-3)
    assert dataset.std == pytest.approx(STD, abs=4e-3)


def test_opening_a_built_cache_takes_less_than_half_a_second(config: DatasetConfig, cache_root: Path) -> None:
    # Processor time: a busy machine does not change it.
    started = time.process_time()
    open_dataset(config, data_root=cache_root, cache_root=cache_root)
    assert time.process_time() - started < 0.5


def test_a_limit_is_stratified(config: DatasetConfig, cache_root: Path) -> None:
    small = DatasetConfig(name="folder", path=config.path, limit=1000, val_fraction=0.2)
    dataset = open_dataset(small, data_root=cache_root, cache_root=cache_root)
    assert np.bincount(dataset.train.labels_N).tolist() == [80] * 10
    assert np.bincount(dataset.test.labels_N).tolist() == [100] * 10
