"""Layouts of image folders, and the mistakes in them."""

from __future__ import annotations

import pytest

from tune_rescon.data.image_folder import index_images
from tune_rescon.errors import DataError

#: entries -> (train names, val names, test names, class names)
LAYOUTS = {
    "classes only": (["cat/1.jpg", "dog/1.png"], "cat/1.jpg dog/1.png", "", "", "cat dog"),
    "unsorted": (["dog/1.png", "cat/2.jpg", "cat/1.jpg"], "cat/1.jpg cat/2.jpg dog/1.png", "", "", "cat dog"),
    "three parts": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "test/b/3.jpg"],
        "train/a/1.jpg train/b/1.jpg",
        "val/a/2.jpg",
        "test/b/3.jpg",
        "a b",
    ),
    "other usual names": (
        ["Training/a/1.JPEG", "Training/b/1.webp", "valid/b/2.jpg", "TESTING/a/3.jpg"],
        "Training/a/1.JPEG Training/b/1.webp",
        "valid/b/2.jpg",
        "TESTING/a/3.jpg",
        "a b",
    ),
    "one folder on top": (["x/a/1.jpg", "x/b/1.jpg"], "x/a/1.jpg x/b/1.jpg", "", "", "a b"),
    "parts below one folder": (
        ["x/train/a/1.jpg", "x/train/b/1.jpg", "x/validation/a/2.jpg"],
        "x/train/a/1.jpg x/train/b/1.jpg",
        "x/validation/a/2.jpg",
        "",
        "a b",
    ),
    "only train": (["train/a/1.jpg", "train/b/1.jpg"], "train/a/1.jpg train/b/1.jpg", "", "", "a b"),
    "a class called train": (["train/1.jpg", "bus/1.jpg"], "bus/1.jpg train/1.jpg", "", "", "bus train"),
    "folders in classes": (["a/x/1.jpg", "a/2.jpg", "b/3.jpg"], "a/2.jpg a/x/1.jpg b/3.jpg", "", "", "a b"),
    "what tools leave": (
        ["__MACOSX/a/1.jpg", "a/.DS_Store", "a/._1.jpg", "a/1.jpg", ".git/c/1.jpg", "b/1.jpg", "b/Thumbs.db"],
        "a/1.jpg b/1.jpg",
        "",
        "",
        "a b",
    ),
    "other files beside": (
        ["readme.txt", "a/1.jpg", "b/1.jpg", "b/notes.txt"],
        "a/1.jpg b/1.jpg",
        "",
        "",
        "a b",
    ),
    "folder entries": (["a/", "a/1.jpg", "b/", "b/1.jpg"], "a/1.jpg b/1.jpg", "", "", "a b"),
}

MISTAKES = {
    "nothing": ([], "no images found"),
    "no images": (
        ["a/1.txt", "b/1.heic"],
        r"no images found.*1 images of formats that are not read \(b/1.heic\)",
    ),
    "images without classes": (["1.jpg", "2.jpg"], "2 or more classes"),
    "one class": (["cat/1.jpg", "cat/2.jpg"], r"2 or more classes.*1 \(cat\)"),
    "one class in train": (["train/cat/1.jpg", "test/cat/2.jpg"], "train.*2 or more classes"),
    "an empty class in train": (
        ["train/a/1.jpg", "train/b/1.jpg", "train/c/", "val/c/1.jpg"],
        "train/c.*at least one image, but got none of 'c' to train, and some in val.*ignore=c`",
    ),
    "a class only in val": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"],
        "also be in the training part, but got 'c'",
    ),
    "no train": (["val/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg"], "needs train/ beside"),
    "two validation folders": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"],
        "one folder may hold the val part",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_expected_splits_and_classes(layout: str) -> None:
    entries, train, val, test, classes = LAYOUTS[layout]
    found = index_images(entries, where="x")
    parts = (found.train.names, found.val.names, found.test.names, found.class_names)
    assert parts == tuple(tuple(text.split()) for text in (train, val, test, classes))
    for part in (found.train, found.val, found.test):
        pairs = zip(part.names, part.labels, strict=True)
        assert all(found.class_names[label] in name.split("/") for name, label in pairs)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_layout_mistake_is_reported(mistake: str) -> None:
    entries, words = MISTAKES[mistake]
    with pytest.raises(DataError, match=words):
        index_images(entries, where="x")
