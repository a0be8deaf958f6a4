"""Directories and zips: read equally, with changes detected and mistakes reported."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.data.image_folder import fingerprint, list_folder
from tune_rescon.errors import DataError

MakeFolder = Callable[..., Path]


def test_folder_and_zip_give_the_same_listing(make_folder: MakeFolder) -> None:
    counts = {"train/a": 2, "train/b": 3, "test/a": 1}
    assert list_folder(make_folder(counts)) == list_folder(make_folder(counts, "images.zip"))


@pytest.mark.parametrize(
    ("content", "words"), [(None, "existing directory or .zip"), (b"PK no", "readable zip archive")]
)
def test_an_invalid_zip_is_reported(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        list_folder(path)


def test_a_truncated_zip_is_reported(make_folder: MakeFolder) -> None:
    path = make_folder({"a": 2, "b": 2}, "x.zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cut short"):
        list_folder(path)


def test_an_encrypted_zip_is_reported(make_folder: MakeFolder) -> None:
    path = make_folder({"a": 1, "b": 1}, "x.zip")
    data = bytearray(path.read_bytes())
    # The flags of the first entry of the archive's directory.
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
