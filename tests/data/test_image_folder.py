"""Directories and zips: supported layouts, detected changes, and errors."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.conftest import MakeFolder
from tune_rescon.data.image_folder import fingerprint, index_images, list_folder
from tune_rescon.data.selection import Account, Selection
from tune_rescon.errors import DataError


def test_folder_and_zip_give_the_same_listing(make_folder: MakeFolder) -> None:
    counts = {"train/a": 2, "train/b": 3, "test/a": 1}
    assert list_folder(make_folder(counts)) == list_folder(make_folder(counts, "images.zip"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "existing directory or .zip"),
        (b"PK no", "readable zip archive"),
        (b"\x1f\x8b" + bytes(500), "archive of another kind: unpack it"),
        (b"a/1.png".ljust(257, b"\0") + b"ustar\0" + bytes(500), "archive of another kind: unpack it"),
    ],
)
def test_an_invalid_zip_is_reported(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list_folder(path)


def test_a_truncated_zip_is_reported(make_folder: MakeFolder) -> None:
    path = make_folder({"a": 2, "b": 2}, "x.zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cut short"):
        list_folder(path)


def test_an_encrypted_zip_is_reported(make_folder: MakeFolder) -> None:
    path = make_folder({"a": 1, "b": 1}, "x.zip")
    data = bytearray(path.read_bytes())
    # The flags of the first entry in the central directory.
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"encrypted a/0000.png"):
        list_folder(path)


def _touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: (root / "a/new.png").write_bytes(b"x"),
    "removed": lambda root: (root / "a/0000.png").unlink(),
    "renamed": lambda root: (root / "a/0000.png").rename(root / "a/9.png"),
    "resized": lambda root: (root / "a/0000.png").write_bytes(b"x"),
    "touched": lambda root: _touch(root / "a/0000.png"),
    "class added": lambda root: (root / "c").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_changes_its_fingerprint(make_folder: MakeFolder, change: str) -> None:
    root = make_folder({"a": 2, "b": 2})
    before = fingerprint(root)
    assert fingerprint(root) == before
    CHANGES[change](root)
    assert fingerprint(root) != before


def test_zip_fingerprint_detects_other_content_of_equal_size_and_time(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1, "b": 1}, "x.zip")
    before, status = fingerprint(root), root.stat()
    with zipfile.ZipFile(root) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(root, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(root, ns=(0, status.st_mtime_ns))
    assert root.stat().st_size == status.st_size
    assert fingerprint(root) != before


def test_fingerprint_of_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"existing directory or .zip"):
        fingerprint(tmp_path / "none")


def test_a_folder_that_cannot_be_read_is_an_error(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder({"a": 1, "b": 1})
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"readable.*Permission denied"):
        list_folder(root)


#: The entries, and the expected names of train, val and test images and of the classes.
LAYOUTS = {
    "classes only": (["cat/1.jpg", "dog/1.png"], "cat/1.jpg dog/1.png", "", "", "cat dog"),
    "unsorted": (["dog/1.png", "cat/2.jpg", "cat/1.jpg"], "cat/1.jpg cat/2.jpg dog/1.png", "", "", "cat dog"),
    "three splits": (
        ["train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "test/b/3.jpg"],
        "train/a/1.jpg train/b/1.jpg",
        "val/a/2.jpg",
        "test/b/3.jpg",
        "a b",
    ),
    "other common names": (
        ["Training/a/1.JPEG", "Training/b/1.webp", "valid/b/2.jpg", "TESTING/a/3.jpg"],
        "Training/a/1.JPEG Training/b/1.webp",
        "valid/b/2.jpg",
        "TESTING/a/3.jpg",
        "a b",
    ),
    "one top folder": (["x/a/1.jpg", "x/b/1.jpg"], "x/a/1.jpg x/b/1.jpg", "", "", "a b"),
    "splits below one folder": (
        ["x/train/a/1.jpg", "x/train/b/1.jpg", "x/validation/a/2.jpg"],
        "x/train/a/1.jpg x/train/b/1.jpg",
        "x/validation/a/2.jpg",
        "",
        "a b",
    ),
    "only train": (["train/a/1.jpg", "train/b/1.jpg"], "train/a/1.jpg train/b/1.jpg", "", "", "a b"),
    "a class called train": (["train/1.jpg", "bus/1.jpg"], "bus/1.jpg train/1.jpg", "", "", "bus train"),
    "folders in classes": (["a/x/1.jpg", "a/2.jpg", "b/3.jpg"], "a/2.jpg a/x/1.jpg b/3.jpg", "", "", "a b"),
    "files of tools": (
        ["__MACOSX/a/1.jpg", "a/.DS_Store", "a/._1.jpg", "a/1.jpg", ".git/c/1.jpg", "b/1.jpg", "b/Thumbs.db"],
        "a/1.jpg b/1.jpg",
        "",
        "",
        "a b",
    ),
    "other files": (
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
    "a class of another case in val": (
        ["train/Cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg"],
        "got 'cat'. If it is the class 'Cat', give it this name. To leave it out",
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
    entries, message = MISTAKES[mistake]
    with pytest.raises(DataError, match=message):
        index_images(entries, where="x")


def test_file_names_that_are_not_utf8_keep_their_place() -> None:
    """The split of a search that an earlier version began depends on the order."""
    paths = ["a/cafz.png", os.fsdecode(b"a/caf\xe9.png"), "b/1.png"]
    assert index_images(paths[::-1], where="x").train.names == tuple(paths)


def test_a_single_class_may_have_folders_with_the_names_of_parts() -> None:
    paths = ["a/test/1.png", "a/train/1.png", "b/train/1.png", "c/1.png"]
    assert index_images(paths, where="x").train.names == tuple(paths)


def test_classes_whose_names_are_alike_are_named() -> None:
    paths = ["Cat/1.png", "cat/1.png", "dog/1.png", "dog /1.png", "eel/1.png"]
    listing = index_images(paths, where="x")
    assert len(listing.class_names) == 5
    [line] = [line for line in listing.account.lines() if "only in case or spaces" in line]
    assert "'Cat' and 'cat', 'dog' and 'dog ';" in line


def test_a_class_in_two_unicode_forms_is_one_class() -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    found = index_images([f"train/{composed}/1.png", "train/tea/1.png", f"val/{decomposed}/2.png"], where="x")
    assert (found.class_names, found.val.labels) == ((composed, "tea"), (0,))
    merged = index_images([f"{composed}/1.png", f"{decomposed}/2.png", "tea/1.png"], where="x")
    assert (len(merged.class_names), merged.train.labels) == (2, (0, 0, 1))


def test_a_copy_in_another_unicode_form_has_the_same_classes_and_order() -> None:
    """By the bytes on the disk, the decomposed names would come before those without accents."""
    names = ["ça/1.png", "ça/é.png", "ça/f.png", "cz/1.png", "eau/1.png", "été/1.png"]
    composed = index_images([unicodedata.normalize("NFC", name) for name in names], where="x")
    decomposed = index_images([unicodedata.normalize("NFD", name) for name in names], where="x")
    assert composed.class_names == decomposed.class_names == ("cz", "eau", "ça", "été")
    in_composed_form = [unicodedata.normalize("NFC", name) for name in decomposed.train.names]
    assert in_composed_form == [*composed.train.names]
    assert decomposed.train.labels == composed.train.labels


@pytest.mark.parametrize(
    ("top", "parts", "options"),
    [
        ("", [""], ["*"]),
        ("x/", ["train/", "val/"], ["x/train/*", "x/val/*"]),
    ],
)
def test_folders_that_every_class_folder_holds_may_be_the_classes(
    top: str, parts: list[str], options: list[str]
) -> None:
    paths = [f"{top}{part}{fold}/{name}/1.png" for part in parts for fold in (2019, 2020) for name in "ab"]
    listing = index_images(paths, where="x")
    assert listing.class_names == ("2019", "2020")
    chosen = dict(zip(("train", "val"), options, strict=False))
    suggested = " ".join(f"`--set 'dataset.{part}={option}'`" for part, option in chosen.items())
    [_, remark] = listing.account.lines()
    assert remark == (
        "every class folder holds folders of the same names (a, b); if these are the classes: " + suggested
    )
    assert Account.from_json(listing.account.to_json()) == listing.account
    merged = index_images(paths, where="x", selection=Selection(**chosen))
    assert (merged.class_names, merged.account.remarks) == (("a", "b"), ())


def test_one_of_several_patterns_that_matches_nothing_is_named() -> None:
    """Its files are read; only that no pattern matches was said."""
    paths = ["a/1.png", "b/1.png", "a/1_mask.png", "extra/1.png", "@eaDir/1.png"]
    found = index_images(paths, where="x", selection=Selection(ignore="*_mask.png, /extar, @eaDir"))
    assert found.class_names == ("a", "b", "extra")
    assert found.account.remarks == ("globs of dataset.ignore that match nothing: /extar",)
    found = index_images(paths, where="x", selection=Selection(ignore="*_mask.png, /extra"))
    assert found.account.remarks == ()


def test_a_class_that_one_year_lacks_may_be_a_class_all_the_same() -> None:
    paths = [f"2019/{name}/1.png" for name in "ab"] + [f"2020/{name}/1.png" for name in "abc"]
    (remark,) = index_images(paths, where="x").account.remarks
    assert remark.startswith("every class folder holds folders of the same names (a, b); if these are the")
    assert index_images([*paths, "2020/1.png"], where="x").account.remarks == (), "images of no folder"


def test_a_class_folder_that_holds_folders_of_other_classes_is_named() -> None:
    """A part was unpacked into another one."""
    paths = [*(f"train/{name}/1.png" for name in ("ant", "bee", "val/ant", "val/bee")), "test/ant/1.png"]
    listing = index_images(paths, where="x")
    assert listing.class_names == ("ant", "bee", "val")
    (remark,) = listing.account.remarks
    assert remark == (
        "train/val is read as a class and holds folders with the names of others (ant, bee);"
        " if it is no class: `--set dataset.ignore=train/val`"
    )
    rest = index_images(paths, where="x", selection=Selection(ignore="train/val"))
    assert (rest.class_names, rest.account.remarks) == (("ant", "bee"), ())
