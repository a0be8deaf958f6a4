"""An archive at a URL is downloaded once to a node; a new version becomes a new file."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from PIL import Image

from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe, open_dataset
from tune_rescon.data.catalog import fetch_archive
from tune_rescon.errors import DataError, StorageError

URL = "memory://bucket/photos.zip"


@pytest.fixture(autouse=True)
def _bucket() -> Iterator[None]:
    fetch_archive.cache_clear()
    yield
    fsspec.filesystem("memory").store.clear()
    fetch_archive.cache_clear()


def upload_archive(tmp_path: Path, shade: int) -> None:
    archive = tmp_path / "made.zip"
    with zipfile.ZipFile(archive, "w") as archive_file:
        for name in ("cat", "dog"):
            for number in range(4):
                image_path = tmp_path / "picture.png"
                Image.fromarray(np.full((8, 8, 3), shade + number, np.uint8)).save(image_path)
                archive_file.write(image_path, f"{name}/{number}.png")
    fsspec.filesystem("memory").put_file(str(archive), "/bucket/photos.zip")


def test_an_archive_at_a_url_is_opened_as_a_dataset(tmp_path: Path) -> None:
    upload_archive(tmp_path, 10)
    config = DatasetConfig(name="folder", path=URL, val_fraction=0.25)
    data = tmp_path / "data"
    assert describe(config, data_root=data).class_names == ("cat", "dog")
    dataset = open_dataset(config, data_root=data, cache_root=tmp_path / "cache")
    assert len(dataset.train) + len(dataset.val) == 8
    assert [path.suffix for path in data.iterdir() if not path.name.startswith(".")] == [".zip"]


def test_an_archive_is_fetched_once_per_version(tmp_path: Path) -> None:
    upload_archive(tmp_path, 10)
    first = fetch_archive(URL, tmp_path / "data")
    stamp = first.stat().st_mtime_ns
    fetch_archive.cache_clear()
    assert fetch_archive(URL, tmp_path / "data") == first
    assert first.stat().st_mtime_ns == stamp

    fsspec.filesystem("memory").pipe_file("/bucket/photos.zip", b"another")
    fetch_archive.cache_clear()
    second = fetch_archive(URL, tmp_path / "data")
    assert second != first
    assert second.read_bytes() == b"another"
    assert first.exists(), "a process that reads it can continue"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "memory://bucket/none.zip",
            "dataset.path: dataset.path must be an archive that can be read, but got",
        ),
        ("nosuch://bucket/photos.zip", "Protocol not known: nosuch"),
        ("memory://bucket/photos.tar", "must be that of a .zip of images"),
    ],
)
def test_an_unsupported_or_missing_archive_is_reported(url: str, message: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/photos.tar", b"tar")
    with pytest.raises(DataError) as caught:
        fetch_archive(url, tmp_path / "data")
    assert message in str(caught.value)
    assert not list(tmp_path.rglob("*.zip"))


class FileServer(fsspec.AbstractFileSystem):
    """A web server with one file, whose info has ``info_fields``."""

    protocol = "lender"
    cachable = False
    info_fields: ClassVar[dict[str, object]] = {}

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "type": "file", **self.info_fields}

    def get_file(self, rpath: str, lpath: str, **_: object) -> None:
        if "denied" in rpath:
            raise OSError(f"403, url={rpath}")
        Path(lpath).write_bytes(b"zip")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path


SIGNED = "lender://host/photos.zip?X-Amz-Date={0}&X-Amz-Signature={0}abc&versionId=3"


@pytest.mark.parametrize(
    ("info_fields", "files"), [({"size": 3, "ETag": "e"}, 1), ({"size": 3}, 1), ({"size": None}, 2)]
)
def test_a_url_with_a_new_signature_is_the_same_file(
    info_fields: dict[str, object], files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("lender", FileServer, clobber=True)
    monkeypatch.setattr(FileServer, "info_fields", info_fields)
    found = {fetch_archive(SIGNED.format(day), tmp_path / "data") for day in (1, 2)}
    assert len(found) == files
    assert all(path.suffix == ".zip" and path.name.startswith("photos-") for path in found)
    other = SIGNED.format(1).replace("versionId=3", "versionId=4")
    assert fetch_archive(other, tmp_path / "data") not in found


def test_error_messages_hide_the_signature(tmp_path: Path) -> None:
    fsspec.register_implementation("lender", FileServer, clobber=True)
    for url in (SIGNED.replace("photos", "denied"), SIGNED.replace(".zip", ".tar")):
        with pytest.raises(DataError) as caught:
            fetch_archive(url.format("s3cret"), tmp_path / "data")
        assert "X-Amz-Signature=***" in str(caught.value)
        assert "s3cretabc" not in str(caught.value)


def test_a_partial_download_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_archive(tmp_path, 10)
    memory = type(fsspec.filesystem("memory"))

    def fail_download(_self: object, _path: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("connection reset")

    monkeypatch.setattr(memory, "get_file", fail_download)
    with pytest.raises(DataError, match="connection reset"):
        fetch_archive(URL, tmp_path / "data")
    assert not [path for path in (tmp_path / "data").iterdir() if path.suffix in (".zip", ".partial")]
    monkeypatch.undo()
    assert zipfile.is_zipfile(fetch_archive(URL, tmp_path / "data"))


def test_a_full_disk_is_not_reported_as_an_unreadable_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_archive(tmp_path, 10)

    def fill_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", fill_disk)
    with pytest.raises(StorageError, match=r"data: the folder for the archives .* but got No space left"):
        fetch_archive(URL, tmp_path / "data")


def test_an_unwritable_data_root_is_reported(tmp_path: Path) -> None:
    upload_archive(tmp_path, 10)
    (tmp_path / "data").touch()
    with pytest.raises(StorageError, match=r"data: the folder for the archives .* but got File exists"):
        fetch_archive(URL, tmp_path / "data")
