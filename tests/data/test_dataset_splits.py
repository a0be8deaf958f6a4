"""The images of each split: in a search, in final trainings, with label noise, and copies in two splits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import MakeFolder, OpenFolder
from tune_rescon.config import DatasetConfig
from tune_rescon.data import ImageDataset, describe, open_dataset
from tune_rescon.data.opening import zero_end_message
from tune_rescon.data.splits import with_label_noise
from tune_rescon.errors import DataError

CLASSES = {"a": 20, "b": 10}
WITH_VAL = {"train/a": 20, "train/b": 10, "val/a": 4, "val/b": 2}


def rows_by_split(found: ImageDataset) -> dict[str, set[int]]:
    return {part: set(getattr(found, part).rows_N.tolist()) for part in ("train", "val", "test")}


def split_sizes(found: ImageDataset) -> tuple[int, int, int]:
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
    assert split_sizes(found) == expected
    parts = rows_by_split(found)
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
    search = rows_by_split(open_folder(root, test_fraction=0.2))
    final = rows_by_split(open_folder(root, test_fraction=0.2, hold_out=False, without_test="val"))
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
    message = "besides those that `dataset.test_fraction` holds out, but got 1 of 'b'"
    with pytest.raises(DataError, match=message):
        describe(config, data_root=root)
    with pytest.raises(DataError, match=message):
        open_folder(root, test_fraction=0.1)


def open_digits(tmp_path: Path, **settings: Any) -> ImageDataset:
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
    search, final = (open_digits(tmp_path, limit=limit, hold_out=hold_out) for hold_out in (True, False))
    together = np.union1d(search.train.rows_N, search.val.rows_N)
    assert np.array_equal(final.train.rows_N, together)
    assert len(final.val) == 0
    assert np.array_equal(final.test.rows_N, search.test.rows_N)
    assert final.digest != search.digest


def test_finals_train_on_folder_validation_images(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    path = make_folder({"train/a": 4, "train/b": 5, "val/a": 2, "val/b": 3, "test/a": 1, "test/b": 1})
    search, final = open_folder(path), open_folder(path, hold_out=False)
    assert (len(search.train), len(search.val)) == (9, 5)
    assert (len(final.train), len(final.val), len(final.test)) == (14, 0, 2)
    info = describe(DatasetConfig(name="folder", path=str(path), hold_out=False), data_root=path)
    assert (info.train_images, info.val_images, info.test_images) == (14, 0, 2)


def test_label_noise_changes_the_given_share(tmp_path: Path) -> None:
    clean, noisy = open_digits(tmp_path), open_digits(tmp_path, label_noise=0.3)
    wrong = clean.train.labels_N != noisy.train.labels_N
    assert wrong.sum() == round(0.3 * len(wrong))
    assert np.array_equal(clean.train.rows_N, noisy.train.rows_N)
    for part in ("val", "test"):
        assert np.array_equal(getattr(clean, part).labels_N, getattr(noisy, part).labels_N)
    assert clean.digest != noisy.digest
    assert noisy.digest != open_digits(tmp_path, label_noise=0.3, split_seed=1).digest


def test_label_noise_is_spread_over_all_other_classes() -> None:
    labels_N = np.zeros(9_000, dtype=np.int64)
    counts = np.bincount(with_label_noise(labels_N, 10, 0.5, seed=1), minlength=10)
    assert counts[0] == 4_500
    assert counts[1:].min() > 400


def test_copies_of_training_images_are_reported(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    """The accuracy on copies of training images is meaningless."""
    counts = {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2, "test/cat": 2, "test/dog": 2}
    root = make_folder(counts)
    assert open_folder(root).repeats == ()
    shutil.copy(root / "train/cat/0001.png", root / "val/cat/0000.png")
    # The same pixels in another file.
    Image.open(root / "train/dog/0002.png").save(root / "test/dog/copy.bmp")
    shutil.copy(root / "train/cat/0003.png", root / "train/dog/0003.png")
    val, test, classes = open_folder(root).repeats
    assert val.startswith("1 of the 4 validation images are copies of training images")
    assert "(val/cat/0000.png is train/cat/0001.png)" in val
    assert test.startswith("1 of the 5 test images are copies of training images")
    assert "(test/dog/copy.bmp is train/dog/0002.png)" in test
    assert classes.startswith("1 picture in more than one class (train/cat/0003.png is train/dog/0003.png)")


def test_large_pictures_that_differ_in_one_pixel_are_no_copies(
    make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    root = make_folder({"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 1}, size=(256, 256))
    image = Image.open(root / "train/cat/0000.png")
    image.putpixel((131, 131), (0, 0, 0))
    image.save(root / "val/cat/0000.png")
    assert open_folder(root).repeats == ()
    shutil.copy(root / "train/cat/0000.png", root / "val/cat/0000.png")
    assert len(open_folder(root).repeats) == 1


def test_a_copy_of_the_second_of_two_similar_images_is_reported(
    make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    root = make_folder({"train/cat": 2, "train/dog": 1, "val/cat": 1, "val/dog": 1}, size=(256, 256))
    image = Image.open(root / "train/cat/0000.png")
    image.putpixel((131, 131), (0, 0, 0))
    image.save(root / "train/cat/0001.png")
    shutil.copy(root / "train/cat/0001.png", root / "val/cat/0000.png")
    (line,) = open_folder(root).repeats
    assert "(val/cat/0000.png is train/cat/0001.png)" in line


def test_files_that_end_as_after_an_interrupted_copy_are_reported(
    make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    root = make_folder({"cat": 2, "dog": 2}, size=(64, 64))
    assert open_folder(root).zero_ends == ()
    for name in ("cat/0000", "dog/0001"):
        picture = root / f"{name}.bmp"
        Image.open(root / f"{name}.png").save(picture)
        os.truncate(picture, 8192)
        os.truncate(picture, 64 * 64 * 3 + 54)
    names = open_folder(root).zero_ends
    assert names == ("cat/0000.bmp", "dog/0001.bmp")
    message = zero_end_message(names)
    assert message is not None
    start = "the files of 2 pictures end in zeros, as after an interrupted copy (cat/0000.bmp)"
    assert message.startswith(start)


@pytest.mark.parametrize(("part", "title"), [("val", "validation"), ("test", "test")])
def test_no_other_images_take_the_place_of_a_broken_part(
    part: str, title: str, make_folder: MakeFolder, open_folder: OpenFolder
) -> None:
    root = make_folder({"train/a": 8, "train/b": 8, f"{part}/a": 1, f"{part}/b": 1})
    (root / part / "a/0000.png").write_bytes(b"broken")
    assert len(getattr(open_folder(root, on_bad_image="skip"), part)) == 1
    (root / part / "b/0000.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=f"at least one {title} image must be whole, but got 2 broken ones"):
        open_folder(root, on_bad_image="skip", test_fraction=0.25)


def test_copies_separated_by_a_split_are_reported(make_folder: MakeFolder, open_folder: OpenFolder) -> None:
    root = make_folder({"cat": 8, "dog": 8})
    for kind in ("cat", "dog"):
        for number in range(8):
            shutil.copy(root / kind / f"{number:04}.png", root / kind / f"again{number}.png")
    images = open_folder(root)
    (line,) = images.repeats
    pixels = {images.train.images_NHWC[row].tobytes() for row in images.train.rows_N}
    copies = sum(images.val.images_NHWC[row].tobytes() in pixels for row in images.val.rows_N)
    assert copies > 0
    assert line.startswith(f"{copies} of the {len(images.val)} validation images are copies")
