"""The source of the test images: their folder, a share of the training images, or the validation images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.data.conftest import MakeFolder, OpenFolder
from tune_rescon.config import DatasetConfig
from tune_rescon.data import ImageDataset, describe
from tune_rescon.errors import DataError

CLASSES = {"a": 20, "b": 10}
WITH_VAL = {"train/a": 20, "train/b": 10, "val/a": 4, "val/b": 2}


def rows(found: ImageDataset) -> dict[str, set[int]]:
    return {part: set(getattr(found, part).rows_N.tolist()) for part in ("train", "val", "test")}


def counts(found: ImageDataset) -> tuple[int, int, int]:
    return len(found.train), len(found.val), len(found.test)


@pytest.mark.parametrize(
    ("folders", "settings", "expected"),
    [
        (CLASSES, {}, (22, 8, 0)),
        (CLASSES, {"test_fraction": 0.2}, (18, 6, 6)),
        (CLASSES, {"test_fraction": 0.2, "hold_out": False}, (24, 0, 6)),
        (CLASSES, {"hold_out": False}, (30, 0, 0)),
        (CLASSES, {"hold_out": False, "without_test": "val"}, (22, 0, 8)),
        (WITH_VAL, {"hold_out": False, "without_test": "val"}, (30, 0, 6)),
        (WITH_VAL, {"test_fraction": 0.2}, (24, 6, 6)),
        (WITH_VAL, {"test_fraction": 0.2, "hold_out": False, "without_test": "val"}, (30, 0, 6)),
        (WITH_VAL | {"test/a": 1, "test/b": 1}, {"test_fraction": 0.5}, (30, 6, 2)),
        (CLASSES, {"test_fraction": 0.2, "limit": 12}, (9, 3, 6)),
    ],
)
def test_splits_are_disjoint_and_match_the_description(
    folders: dict[str, int],
    settings: dict[str, Any],
    expected: tuple[int, int, int],
    make_folder: MakeFolder,
    open_folder: OpenFolder,
) -> None:
    root = make_folder(folders)
    found = open_folder(root, **settings)
    assert counts(found) == expected
    parts = rows(found)
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))
    config = DatasetConfig(**{"name": "folder", "path": str(root), "val_fraction": 0.25, **settings})
    info = describe(config, data_root=root)
    assert (info.train_images, info.val_images, info.test_images) == expected
    assert info.validation_tests == (
        settings.get("without_test") == "val" and "test_fraction" not in settings
    )


def test_test_images_are_the_same_for_the_search_and_for_train(
    make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    root = make_folder(CLASSES)
    search = rows(open_folder(root, test_fraction=0.2))
    final = rows(open_folder(root, test_fraction=0.2, hold_out=False, without_test="val"))
    assert search["test"] == final["test"]
    assert search["train"] | search["val"] == final["train"]


def test_the_test_split_contains_every_class(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    found = open_folder(make_folder(CLASSES), test_fraction=0.1)
    assert np.bincount(found.test.labels_N).tolist() == [2, 1]


def test_a_class_of_one_image_cannot_be_split(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    root = make_folder({"a": 5, "b": 1})
    with pytest.raises(DataError, match="at least 2 training images"):
        open_folder(root, test_fraction=0.2, hold_out=False)


def test_test_fraction_changes_the_digest_and_without_test_does_not(
    make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    root = make_folder(CLASSES)
    assert open_folder(root).digest == open_folder(root, without_test="val").digest
    assert open_folder(root).digest != open_folder(root, test_fraction=0.2).digest


@pytest.mark.parametrize(
    ("rare", "settings", "parts"),
    [
        (2, {}, ("train", "val")),
        (3, {"test_fraction": 0.1}, ("train", "val", "test")),
        (2, {"test_fraction": 0.1, "hold_out": False}, ("train", "test")),
    ],
)
def test_a_rare_class_has_one_image_in_every_split(
    rare: int,
    settings: dict[str, Any],
    parts: tuple[str, ...],
    make_folder: MakeFolder,
    open_folder: OpenFolder,
) -> None:
    found = open_folder(make_folder({"a": 60, "b": rare}), **settings)
    for part in parts:
        assert np.bincount(getattr(found, part).labels_N, minlength=2)[1] == 1


def test_a_class_too_small_for_three_splits_is_reported(
    make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    root = make_folder({"a": 60, "b": 2})
    config = DatasetConfig(name="folder", path=str(root), test_fraction=0.1)
    words = "besides those that `dataset.test_fraction` holds out, but got 1 of 'b'"
    with pytest.raises(DataError, match=words):
        describe(config, data_root=root)
    with pytest.raises(DataError, match=words):
        open_folder(root, test_fraction=0.1)
