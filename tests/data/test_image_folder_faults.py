"""Unusual files and layouts of folders and zips: which files are read, left out or refused."""

from __future__ import annotations

import os
import shlex
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tune_rescon.data.image_folder import fingerprint, index_images, list_folder
from tune_rescon.data.opening import SUFFIXES
from tune_rescon.data.selection import Account, Kind, Selection
from tune_rescon.errors import DataError
from tune_rescon.inference import find_pictures

from .conftest import MakeFolder, left_out_files, write_zip

PAIR = ["train/a/1.png", "train/b/1.png"]
CLASSES = ["a/1.png", "b/1.png"]


def write_files(root: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(os.fsencode(path))
    return root


#: The paths, the images that are read, and the files that are left out by kind.
LAYOUTS = {
    "a stray picture in val": (
        [*PAIR, "val/a/2.png", "val/x.png", "test/b/3.png", "test/y.png"],
        [*PAIR, "val/a/2.png", "test/b/3.png"],
        {Kind.NO_CLASS: (2, ("test/y.png", "val/x.png"))},
    ),
    "a stray picture in train": (
        [*PAIR, "train/x.png", "test/a/1.png"],
        [*PAIR, "test/a/1.png"],
        {Kind.NO_CLASS: (1, ("train/x.png",))},
    ),
    "test images without classes": (
        [*PAIR, "test/1.png", "test/2.png", "test/3.png", "test/4.png"],
        PAIR,
        {Kind.NO_CLASS: (4, ("test/1.png", "test/2.png", "test/3.png"))},
    ),
    "dev is val": ([*PAIR, "dev/a/1.png"], [*PAIR, "dev/a/1.png"], {}),
    "eval is val": ([*PAIR, "Eval/a/1.png"], [*PAIR, "Eval/a/1.png"], {}),
    "a folder beside the splits": (
        [*PAIR, "unlabelled/1.png"],
        PAIR,
        {Kind.OUTSIDE: (1, ("unlabelled/1.png",))},
    ),
    "folders without images": (
        [*CLASSES, "docs/readme.txt", "c/"],
        CLASSES,
        {Kind.OTHER: (1, ("docs/readme.txt",)), Kind.EMPTY: (2, ("c", "docs"))},
    ),
    "a split without images": ([*PAIR, "test/a/"], PAIR, {Kind.EMPTY: (1, ("test",))}),
    "an empty folder beside the dataset": (
        ["photos/a/1.png", "photos/b/1.png", "docs/"],
        ["photos/a/1.png", "photos/b/1.png"],
        {Kind.EMPTY: (1, ("docs",))},
    ),
    "files of other programs": (
        [
            *CLASSES,
            "a/@eaDir/1.png",
            "__MACOSX/a/1.png",
            "b/.ipynb_checkpoints/1.png",
            "$RECYCLE.BIN/c/1.png",
        ],
        CLASSES,
        {Kind.TOOLS: (4, ("$RECYCLE.BIN", "__MACOSX", "a/@eaDir"))},
    ),
    "a hidden class": (
        [".net/1.png", "java/1.png", "java/._1.png", "java/.thumbs/1.png"],
        [".net/1.png", "java/1.png"],
        {Kind.IN_HIDDEN: (1, ("java/.thumbs/1.png",)), Kind.HIDDEN: (1, ("java/._1.png",))},
    ),
    "unsupported formats": (
        [*CLASSES, "a/2.heic", "Thumbs.db", ".DS_Store"],
        CLASSES,
        {Kind.FORMAT: (1, ("a/2.heic",))},
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_read_or_skipped_by_name(case: str, zipped: bool, tmp_path: Path) -> None:
    paths, names, skipped = LAYOUTS[case]
    if zipped:
        root = write_zip(tmp_path / "x.zip", paths)
    else:
        root = write_files(tmp_path / "x", [path for path in paths if not path.endswith("/")])
        for path in paths:
            (root / path.rpartition("/")[0]).mkdir(parents=True, exist_ok=True)
    listing = list_folder(root)
    assert sorted(listing.names) == sorted(names)
    assert left_out_files(listing) == skipped


#: The paths, a part of the error, the settings that it suggests, and the images that are read with them.
AMBIGUOUS = {
    "Kaggle's layout": (
        ["train/1.png", "test/2.png"],
        "images directly in test/ and train/, which are in no class's folder",
        {"train": "."},
        ["test/2.png", "train/1.png"],
    ),
    "splits with longer names": (
        [f"{part}_set/{part}_set/{name}/1.png" for part in ("training", "test") for name in "ab"],
        "test_set/ and training_set/ must be parts of the data set or classes",
        {"train": "training_set/training_set", "test": "test_set/test_set"},
        [f"{part}_set/{part}_set/{name}/1.png" for part in ("training", "test") for name in "ab"],
    ),
    "three splits with longer names": (
        [*(f"seg_{part}/{name}/1.png" for part in ("train", "test") for name in "ab"), "seg_pred/1.png"],
        "names that suggest parts",
        {"train": "seg_train", "test": "seg_test"},
        [f"seg_{part}/{name}/1.png" for part in ("train", "test") for name in "ab"],
    ),
    "classes with names like splits": (
        ["train station/1.png", "test tube/1.png", "bus/1.png"],
        "must be parts of the data set or classes",
        {"train": "."},
        ["train station/1.png", "test tube/1.png", "bus/1.png"],
    ),
    "val beside a longer name": (
        ["train_images/a/1.png", "train_images/b/1.png", "val/a/2.png"],
        "needs train/ beside them",
        {"train": "train_images", "val": "val"},
        ["train_images/a/1.png", "train_images/b/1.png", "val/a/2.png"],
    ),
    "a flat val": (
        [*PAIR, "val/1.png"],
        "val/ must hold class folders to be the validation part",
        {"ignore": "/val"},
        PAIR,
    ),
    "a flat test beside classes": (
        [*CLASSES, "test/1.png"],
        "test/ must be a part of the data set or a class",
        {"ignore": "/test"},
        CLASSES,
    ),
    "a class called test": (
        [*CLASSES, "test/1.png"],
        "If it is a class",
        {"train": "."},
        [*CLASSES, "test/1.png"],
    ),
    "train, or a class called train": (
        ["bus/1.png", "train/1.png", "train/a/1.png", "train/b/1.png"],
        "train/ must be the training part or a class",
        {"train": "train"},
        ["train/a/1.png", "train/b/1.png"],
    ),
    "two validation splits": (
        [*PAIR, "dev/a/2.png", "val/b/3.png"],
        "one folder may hold the val part, but got dev and val",
        {"val": "dev"},
        [*PAIR, "dev/a/2.png"],
    ),
    "a class in val only": (
        [*PAIR, "val/c/1.png", "val/a/1.png"],
        "also be in the training part, but got 'c'",
        {"ignore": "val/c"},
        [*PAIR, "val/a/1.png"],
    ),
    "classes beside val": (
        [*CLASSES, "val/a/2.png"],
        "needs train/ beside them",
        {"train": ".", "val": "val"},
        [*CLASSES, "val/a/2.png"],
    ),
    "an empty class of train": (
        [*PAIR, "train/c/", "val/c/1.png"],
        "train/c.*none of 'c' to train, and some in val",
        {"ignore": "c"},
        PAIR,
    ),
    "parts inside class folders": (
        [f"x/{name}/{part}/1.png" for name in "ab" for part in ("Test", "training")],
        "x: a/Test/ and a/training/ must be parts of the data set, or folders of one class",
        {"train": "."},
        [f"x/{name}/{part}/1.png" for name in "ab" for part in ("Test", "training")],
    ),
    "parts inside other folders": (
        [f"{city}/{part}/{name}/1.png" for city in "xy" for part in ("test", "train") for name in "ab"],
        "If they are parts, each with class folders",
        {"train": "*/train", "test": "*/test"},
        [f"{city}/{part}/{name}/1.png" for city in "xy" for part in ("test", "train") for name in "ab"],
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_an_ambiguous_layout_is_refused_with_the_setting_that_decides_it(case: str) -> None:
    paths, message, settings, names = AMBIGUOUS[case]
    with pytest.raises(DataError, match=message) as caught:
        index_images(paths, where="x")
    for field, value in settings.items():
        assert f"`--set {shlex.quote(f'dataset.{field}={value}')}`" in str(caught.value)
    assert sorted(index_images(paths, where="x", selection=Selection(**settings)).names) == sorted(names)


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test1"), ("train_images", "test_images"), ("train2017", "val2017")]
)
def test_unsorted_images_are_refused(train: str, test: str) -> None:
    """As on Kaggle, where classes are in the file names or in a table."""
    paths = [f"{train}/cat.1.png", f"{train}/dog.2.png", f"{test}/1.png"]
    with pytest.raises(DataError, match=rf"sort the training images into {train}/CLASS/"):
        index_images(paths, where="x")


def test_names_that_contain_a_split_name_are_classes() -> None:
    paths = ["bullet train/1.png", "strain/1.png", "contest/1.png"]
    assert index_images(paths, where="x").class_names == ("bullet train", "contest", "strain")


def test_a_proposed_setting_escapes_glob_characters() -> None:
    paths = ["x/train [1]/a/1.png", "x/train [1]/b/1.png", "x/test_1/a/1.png", "x/test_1/b/1.png"]
    with pytest.raises(DataError, match=r"`--set 'dataset.train=x/train \[\[\]1\]'`"):
        index_images(paths, where="y")
    found = index_images(paths, where="y", selection=Selection(train="x/train [[]1]"))
    assert found.train.names == tuple(paths[:2])


def test_splits_are_selected_by_folders_and_globs() -> None:
    paths = [f"top/fold{fold}/{name}/1.png" for fold in (1, 2, 3) for name in "ab"]
    found = index_images(paths, where="x", selection=Selection(train="fold[12]", val="top/fold3"))
    assert (len(found.train.names), found.val.names) == (4, ("top/fold3/a/1.png", "top/fold3/b/1.png"))
    assert found.class_names == ("a", "b")


def test_images_of_a_nested_split_are_not_read_twice() -> None:
    paths = ["train/a/1.png", "train/b/1.png", "train/held/a/2.png", "train/held/b/2.png"]
    found = index_images(paths, where="x", selection=Selection(train="train", val="train/held"))
    assert set(found.train.names).isdisjoint(found.val.names)
    assert found.class_names == ("a", "b")


@pytest.mark.parametrize("part", ["train", "val"])
def test_nested_folders_of_the_same_split_are_refused(part: str) -> None:
    """Each image of the inner folder would have two classes."""
    paths = ["x/train/a/1.png", "x/train/b/1.png", "x/train/train/a/2.png", "x/train/train/b/2.png"]
    selection = Selection(**{part: "**/train"})
    with pytest.raises(DataError, match=rf"dataset\.{part} must match no folder inside.*and x/train/train"):
        index_images(paths, where="y", selection=selection)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(val="holdout"), r"dataset.val must name a folder.*Folders there: a, b, c"),
        (Selection(val="c"), r"a folder that holds class folders, but got c, .*dataset.val=\.`"),
        (Selection(train="c", val="c"), "holds class folders"),
        (Selection(train=".", val="."), "different folders"),
    ],
)
def test_a_missing_split_is_refused(selection: Selection, message: str) -> None:
    with pytest.raises(DataError, match=message):
        index_images(["a/1.png", "b/1.png", "c/1.png"], where="x", selection=selection)


def test_ignored_files_are_counted() -> None:
    paths = [*CLASSES, "a/1_mask.png", "b/1_mask.png", "raw/c/1.png"]
    found = index_images(paths, where="x", selection=Selection(ignore="*_mask.png, /raw"))
    assert sorted(found.names) == CLASSES
    assert left_out_files(found) == {Kind.IGNORED: (3, ("a/1_mask.png", "b/1_mask.png", "raw"))}


def test_patterns_that_match_nothing_are_reported() -> None:
    found = index_images(CLASSES, where="x", selection=Selection(ignore="*_msk.png"))
    assert found.account.lines()[1:] == ["left out, ignored by dataset.ignore: 0"]
    assert Account.from_json(found.account.to_json()) == found.account


def test_every_supported_suffix_is_listed(tmp_path: Path) -> None:
    names = [f"a/1{suffix}" for suffix in SUFFIXES] + [f"b/1{suffix.upper()}" for suffix in SUFFIXES]
    root = write_files(tmp_path / "x", names)
    assert sorted(list_folder(root).names) == sorted(names)
    assert find_pictures([root]) == sorted(root / name for name in names)


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    """Class names are written to files and databases, so they must be valid text."""
    name = os.fsdecode(b"caf\xe9")
    root = write_files(
        tmp_path / "x", [f"train/{name}/1.png", "train/b/2.png", f"val/{name}/{name}.png", f"{name}.txt"]
    )
    found = list_folder(root)
    assert found.class_names == ("b", r"caf\xe9")
    assert found.val.names == (f"val/{name}/{name}.png",)
    "\n".join(found.account.lines()).encode()
    assert found.account.lines()[-1] == r"left out, files that are no images: 1 (caf\xe9.txt)"
    assert list_folder(root, Selection(ignore=f"val/{name}")).val.names == ()


@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_settings_match_names_in_any_unicode_form(typed: Any, stored: Any) -> None:
    folder, name = unicodedata.normalize(stored, "été"), unicodedata.normalize(typed, "été")
    paths = [f"{folder}/a/1.png", f"{folder}/b/1.png", f"{folder}/b/{folder}.png", "z/c/1.png"]
    found = index_images(paths, where="x", selection=Selection(train=name, ignore=f"{name}.png"))
    assert found.train.names == tuple(paths[:2])


def test_the_account_is_printed_and_round_trips_through_json() -> None:
    found = index_images([*PAIR, "train/a/2.png", "val/a/x.png", "notes.txt"], where="x").account
    assert found.lines() == [
        "found 2 classes; images: train 3 (a 2, b 1), val 1, test 0",
        "val has no images of b: no value says how well a network does there",
        "left out, files that are no images: 1 (notes.txt)",
    ]
    assert Account.from_json(found.to_json()) == found


def test_linked_folders_are_followed_and_loops_skipped(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere", ["1.png", "deep/2.png"])
    root = write_files(tmp_path / "x", ["a/1.png"])
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a/back").symlink_to(root)
    (root / "a/self.png").symlink_to("self.png")
    names = ("a/1.png", "b/1.png", "b/deep/2.png")
    listing = list_folder(root)
    assert listing.names == names
    assert left_out_files(listing) == {Kind.DANGLING: (1, ("a/self.png",)), Kind.LOOP: (1, ("a/back",))}
    assert find_pictures([root]) == [root / name for name in names]


def test_dangling_links_and_pipes_are_skipped(tmp_path: Path) -> None:
    root = write_files(tmp_path / "x", CLASSES)
    before = fingerprint(root)
    (root / "notes").symlink_to("none")
    (root / ".#lock").symlink_to("user@host.1234")
    assert fingerprint(root) == before
    (root / "a/gone.png").symlink_to("none.png")
    os.mkfifo(root / "a/pipe.png")
    listing = list_folder(root)
    assert listing.names == tuple(CLASSES)
    found = left_out_files(listing)
    assert found[Kind.DANGLING] == (1, ("a/gone.png",))
    assert found[Kind.SPECIAL] == (1, ("a/pipe.png",))
    assert found[Kind.OTHER] == (1, ("notes",))
    assert fingerprint(root) == before


def exchange(one: Path, other: Path) -> None:
    temporary = one.with_name("between")
    one.rename(temporary)
    other.rename(one)
    temporary.rename(other)


def rewrite(one: Path, _other: Path) -> None:
    before = one.stat()
    one.write_bytes(bytes(before.st_size))
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "images exchanged": lambda root: exchange(root / "a/1.png", root / "b/1.png"),
    "classes exchanged": lambda root: exchange(root / "a", root / "b"),
    "rewritten": lambda root: rewrite(root / "a/1.png", root),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_equal_size_and_time_changes_the_fingerprint(change: str, tmp_path: Path) -> None:
    root = tmp_path / "x"
    for path in CLASSES:
        write_files(root, [path])
        os.utime(root / path, ns=(0, 0))
        # Without inode numbers the change time must differ: the kernel's clock ticks every 4 ms.
        time.sleep(0.02)
    before = fingerprint(root)
    CHANGES[change](root)
    assert fingerprint(root) != before


def test_other_files_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    root = write_files(tmp_path / "x", CLASSES)
    before = fingerprint(root)
    write_files(root, [".DS_Store", "a/notes.txt", "a/@eaDir/1.png", "__MACOSX/a/._1.png"])
    assert fingerprint(root) == before
    assert fingerprint(root, Selection(ignore="*.gif")) != before, "another selection lists other images"


def test_moved_zip_entries_change_the_fingerprint(tmp_path: Path) -> None:
    def write_archive(moved: bool) -> Path:
        path = tmp_path / "x.zip"
        names = [f"{'ab'[number % 2]}/{number:05}-{'x' * 100}.png" for number in range(12_000)]
        if moved:
            names[:2] = [f"b/{names[0][2:]}", f"a/{names[1][2:]}"]
        write_zip(path, dict.fromkeys(names, b""))
        os.utime(path, ns=(0, 0))
        return path

    before, size = fingerprint(write_archive(False)), (tmp_path / "x.zip").stat().st_size
    after = fingerprint(write_archive(True))
    assert (tmp_path / "x.zip").stat().st_size == size
    assert after != before


def test_predict_and_training_list_same_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [*CLASSES, "a/@eaDir/1.png", "b/.ipynb_checkpoints/1.png", "__MACOSX/a/1.png", "a/._1.png"]
    root = write_files(tmp_path / "x", [*paths, ".net/1.png", "a/.thumbs/1.png", "a/1.txt"])
    found = find_pictures([root])
    assert [str(path.relative_to(root)) for path in found] == sorted(list_folder(root).names)
    assert capsys.readouterr().err.splitlines() == [
        "left out, images in hidden folders beside images: 1 (a/.thumbs/1.png)",
        "left out, hidden files: 1 (a/._1.png)",
        "left out, files that are no images: 1 (a/1.txt)",
        "left out, folders of other programs: 3 (__MACOSX, a/@eaDir, b/.ipynb_checkpoints)",
    ]


def test_a_path_with_a_too_long_name_is_reported_as_missing(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    for read in (list_folder, fingerprint):
        with pytest.raises(DataError, match=r"existing directory or .zip, but got .*xxx"):
            read(path)
    with pytest.raises(DataError, match="a picture or a folder of them must exist"):
        find_pictures([path])


def test_classes_missing_from_a_split_are_reported(make_folder: MakeFolder) -> None:
    """Such a class is trained, but not measured."""
    counts = {"train/cat": 2, "train/dog": 2, "train/eel": 2, "val/cat": 1, "val/dog": 1, "test/eel": 1}
    found, *unseen = list_folder(make_folder(counts)).account.lines()
    assert found.startswith("found 3 classes; images: train 6")
    assert unseen == [
        "val has no images of eel: no value says how well a network does there",
        "test has no images of cat, dog: no value says how well a network does there",
    ]
