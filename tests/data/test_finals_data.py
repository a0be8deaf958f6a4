"""The images of finals, which are all but the test images; and label noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tune_rescon.config import DatasetConfig
from tune_rescon.data import ImageDataset, describe, open_dataset
from tune_rescon.data.splits import with_label_noise

MakeFolder = Callable[..., Path]
OpenFolder = Callable[..., ImageDataset]


def digits(tmp_path: Path, **settings: Any) -> ImageDataset:
    config = DatasetConfig(name="digits", **settings)
    dataset = open_dataset(config, data_root=tmp_path, cache_root=tmp_path)
    info = describe(config, data_root=tmp_path)
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [
        info.train_images,
        info.val_images,
        info.test_images,
    ]
    return dataset


@pytest.mark.parametrize("limit", [None, 100])
def test_finals_train_on_all_but_the_test_images(tmp_path: Path, limit: int | None) -> None:
    held, whole = (digits(tmp_path, limit=limit, hold_out=hold_out) for hold_out in (True, False))
    together = np.union1d(held.train.rows_N, held.val.rows_N)
    assert np.array_equal(whole.train.rows_N, together)
    assert len(whole.val) == 0
    assert np.array_equal(whole.test.rows_N, held.test.rows_N)
    assert whole.digest != held.digest


def test_finals_train_on_folder_validation_images(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    path = make_folder({"train/a": 4, "train/b": 5, "val/a": 2, "val/b": 3, "test/a": 1, "test/b": 1})
    held, whole = open_folder(path), open_folder(path, hold_out=False)
    assert (len(held.train), len(held.val)) == (9, 5)
    assert (len(whole.train), len(whole.val), len(whole.test)) == (14, 0, 2)
    info = describe(DatasetConfig(name="folder", path=str(path), hold_out=False), data_root=path)
    assert (info.train_images, info.val_images, info.test_images) == (14, 0, 2)


def test_label_noise_changes_the_given_share(tmp_path: Path) -> None:
    clean, noisy = digits(tmp_path), digits(tmp_path, label_noise=0.3)
    wrong = clean.train.labels_N != noisy.train.labels_N
    assert wrong.sum() == round(0.3 * len(wrong))
    assert np.array_equal(clean.train.rows_N, noisy.train.rows_N)
    for part in ("val", "test"):
        assert np.array_equal(getattr(clean, part).labels_N, getattr(noisy, part).labels_N)
    assert clean.digest != noisy.digest
    assert noisy.digest != digits(tmp_path, label_noise=0.3, split_seed=1).digest


def test_label_noise_is_spread_over_all_other_classes() -> None:
    labels_N = np.zeros(9_000, dtype=np.int64)
    counts = np.bincount(with_label_noise(labels_N, 10, 0.5, seed=1), minlength=10)
    assert counts[0] == 4_500
    assert counts[1:].min() > 400
