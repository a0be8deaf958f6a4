"""A dataset's description equals the opened dataset, and every mistake has an error message."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from tune_rescon.config import DatasetConfig
from tune_rescon.data import ImageDataset, describe, list_datasets, open_dataset
from tune_rescon.data.catalog import BUILTIN
from tune_rescon.errors import DataError

MakeFolder = Callable[..., Path]

TORCHVISION = sorted(set(BUILTIN) - {"digits"})


def facts_match(config: DatasetConfig, dataset: ImageDataset, tmp_path: Path) -> bool:
    info = describe(config, data_root=tmp_path)
    said = (info.classes, info.channels, info.image_size, info.class_names)
    found = (dataset.classes, dataset.channels, dataset.train.images_NHWC.shape[1], dataset.class_names)
    said_images = (info.train_images, info.val_images, info.test_images)
    return (said, said_images) == (found, tuple(map(len, (dataset.train, dataset.val, dataset.test))))


@pytest.mark.parametrize("settings", [{}, {"limit": 100}, {"val_fraction": 0.5, "limit": 21}])
def test_digits_description_matches_the_dataset(settings: dict[str, Any], tmp_path: Path) -> None:
    config = DatasetConfig(**settings)
    dataset = open_dataset(config, data_root=tmp_path, cache_root=tmp_path)
    assert facts_match(config, dataset, tmp_path)
    levels = np.rint(dataset.train.images_NHWC[..., 0].astype(float) * 16 / 255)
    assert sorted(levels.reshape(-1, 64).tolist()) == sorted(load_digits().data.tolist())
    for split in (dataset.train, dataset.val, dataset.test):
        assert np.bincount(split.labels_N, minlength=10).min() > 0


def test_digits_test_part_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    opened = [
        open_dataset(DatasetConfig(split_seed=seed), data_root=tmp_path, cache_root=tmp_path)
        for seed in (0, 1)
    ]
    assert np.array_equal(opened[0].test.rows_N, opened[1].test.rows_N)
    assert not np.array_equal(opened[0].val.rows_N, opened[1].val.rows_N)


@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        ({"a": 9, "b": 11}, {}),
        ({"train/a": 9, "train/b": 11, "test/a": 3}, {"val_fraction": 0.3}),
        ({"train/a": 9, "train/b": 11, "val/a": 3, "val/b": 3, "test/a": 9}, {"limit": 5}),
        ({"a": 9, "b": 11}, {"store_size": 24, "limit": 7, "val_fraction": 0.5}),
    ],
)
@pytest.mark.parametrize("name", ["images", "images.zip"])
def test_folder_description_matches_the_dataset(
    counts: dict[str, int], settings: dict[str, Any], name: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    config = DatasetConfig(name="folder", path=str(make_folder(counts, name)), **settings)
    dataset = open_dataset(config, data_root=tmp_path, cache_root=tmp_path / "cache")
    assert facts_match(config, dataset, tmp_path)


def test_images_of_many_sizes_have_no_native_size(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 2, "b": 2})
    (root / "a/0001.png").write_bytes((make_folder({"a": 1}, "other", (20, 24)) / "a/0000.png").read_bytes())
    assert describe(DatasetConfig(name="folder", path=str(root)), data_root=tmp_path).image_size is None


@pytest.mark.parametrize("name", list_datasets()[:-1])
def test_builtin_dataset_info_is_consistent(name: str, tmp_path: Path) -> None:
    info = describe(DatasetConfig(name=name), data_root=tmp_path)
    assert info.classes == len(set(info.class_names))
    assert info.train_images + info.val_images == BUILTIN[name].train_images
    assert info.val_images == round(0.1 * BUILTIN[name].train_images)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"name": "cifar"}, r"unknown dataset 'cifar' \(did you mean 'cifar1"),
    "no path": ({"name": "folder"}, "needs a path"),
    "a path for digits": ({"name": "digits", "path": "x"}, "only the dataset `folder` takes a path"),
    "a path to nothing": (
        {"name": "folder", "path": "/nowhere/at/all"},
        "must be an existing directory or .zip",
    ),
    "a limit below two a class": ({"name": "cifar100", "limit": 150}, "at least 200 training images"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_config_mistake_is_reported(mistake: str, tmp_path: Path) -> None:
    settings, words = MISTAKES[mistake]
    with pytest.raises(DataError, match=words):
        describe(DatasetConfig(**settings), data_root=tmp_path)


@pytest.mark.parametrize("counts", [{"a": 5, "b": 1}, {"train/a": 5, "train/b": 1, "test/b": 4}])
def test_one_image_cannot_train_and_validate(
    counts: dict[str, int], make_folder: MakeFolder, tmp_path: Path
) -> None:
    config = DatasetConfig(name="folder", path=str(make_folder(counts)))
    for ask in (
        lambda: describe(config, data_root=tmp_path),
        lambda: open_dataset(config, data_root=tmp_path, cache_root=tmp_path / "cache"),
    ):
        with pytest.raises(DataError, match=r"at least 2 training images.*1 of 'b'"):
            ask()


@pytest.mark.parametrize("name", TORCHVISION)
def test_offline_error_names_the_missing_file_and_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DataError, match="could not be downloaded") as raised:
        open_dataset(DatasetConfig(name=name), data_root=tmp_path / "data", cache_root=tmp_path / "cache")
    message = str(raised.value)
    assert all(archive in message for archive in BUILTIN[name].archives)
    assert str(tmp_path / "data" / BUILTIN[name].folder) in message
    assert "http" not in message
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def _as_torchvision_gives_it(
    name: str, images_NHWC: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> Any:
    if name == "svhn":
        return SimpleNamespace(data=images_NHWC.transpose(0, 3, 1, 2), labels=labels)
    if name == "stl10":
        return SimpleNamespace(data=images_NHWC.transpose(0, 3, 1, 2), labels=labels.astype(np.uint8))
    if name == "fashion_mnist":
        return SimpleNamespace(data=torch.from_numpy(images_NHWC[..., 0]), targets=torch.from_numpy(labels))
    return SimpleNamespace(data=images_NHWC, targets=labels.tolist())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_data_is_converted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = BUILTIN[name]
    classes = len(known.class_names)
    labels = np.tile(np.arange(classes), 3)
    shape = (len(labels), known.image_size, known.image_size, known.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN", "stl10": "STL10"}.get(
        name, "FashionMNIST"
    )
    given = _as_torchvision_gives_it(name, images, labels)
    monkeypatch.setattr(datasets, kind, lambda *_, **__: given)
    dataset = open_dataset(DatasetConfig(name=name), data_root=tmp_path, cache_root=tmp_path / "cache")
    stored = dataset.test.gather(np.arange(len(dataset.test)))
    assert np.array_equal(stored[0], images)
    assert np.array_equal(stored[1], labels)
    assert stored[1].dtype == np.int64


@pytest.mark.timeout(30)  # making it
def test_a_zip_of_60_000_images_is_listed_quickly(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(60_000):
            archive.writestr(zipfile.ZipInfo(f"class{number % 10}/{number:05}.jpg"), b"")
    started = time.process_time()  # which a busy machine does not change
    info = describe(DatasetConfig(name="folder", path=str(path)), data_root=tmp_path)
    assert time.process_time() - started < 1.5
    assert info.train_images + info.val_images == 60_000


def test_describe_and_open_import_no_heavy_library(make_folder: MakeFolder, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe, open_dataset
config = DatasetConfig(name="folder", path=sys.argv[1])
describe(config, data_root=Path())
describe(DatasetConfig(), data_root=Path())
open_dataset(config, data_root=Path(), cache_root=Path(sys.argv[2]))
open_dataset(DatasetConfig(name="digits"), data_root=Path(), cache_root=Path(sys.argv[2]))
assert not {"torch", "torchvision", "sklearn", "pytorch_lightning", "ray"} & set(sys.modules)
"""
    root = make_folder({"a": 3, "b": 3})
    subprocess.run([sys.executable, "-c", script, str(root), str(tmp_path / "cache")], check=True)
