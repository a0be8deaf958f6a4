"""The operations on a folder at a URL, on every kind of file system."""

from __future__ import annotations

import errno
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tune_rescon.errors import StorageError
from tune_rescon.storage import RemoteError, RemoteFolder, StorageUrl

THIS_FILE = Path(__file__)


def test_a_file_is_read_back_and_replaced(remote: RemoteFolder) -> None:
    assert remote.read("a/x.txt") is None
    remote.write("a/x.txt", b"one")
    remote.write("a/x.txt", b"three")
    assert remote.read("a/x.txt") == b"three"
    assert remote.read("a/x.txt", start=1, end=3) == b"hr"


def test_files_are_uploaded_and_downloaded_completely(remote: RemoteFolder, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(bytes(range(256)) * 1000)
    remote.upload(source, "checkpoints/last.ckpt")
    assert remote.download("checkpoints/last.ckpt", target)
    assert target.read_bytes() == source.read_bytes()
    assert list(target.parent.iterdir()) == [target]
    assert not remote.download("checkpoints/best.ckpt", target)
    assert target.read_bytes() == source.read_bytes()


def test_names_lists_one_folder_without_caching(remote: RemoteFolder) -> None:
    assert remote.names() == []
    remote.write("a/x", b"1")
    assert remote.names() == ["a/x"]
    remote.write("a/b/y", b"1")
    remote.write("ab/z", b"1")
    assert remote.names("a") == ["a/b/y", "a/x"]
    assert remote.folder("a").names() == ["b/y", "x"]
    remote.delete("a/x")
    remote.delete("a/x")
    assert remote.names() == ["a/b/y", "ab/z"]


def test_a_file_is_moved_to_another_folder(remote: RemoteFolder) -> None:
    remote.write("a/x", b"1")
    remote.move("a/x", "b/c/y")
    assert remote.names() == ["b/c/y"]
    assert remote.read("b/c/y") == b"1"
    with pytest.raises(RemoteError, match=r"moving .*/a/x to z"):
        remote.move("a/x", "z")


def test_folders_are_found_by_a_file_in_them(remote: RemoteFolder) -> None:
    assert remote.folders_with("space.yaml") == []
    for name in ("b/space.yaml", "a/space.yaml", "c/other", "d/e/space.yaml"):
        remote.write(name, b"")
    assert remote.folders_with("space.yaml") == ["a", "b"]


def test_create_succeeds_only_once_per_name(remote: RemoteFolder) -> None:
    assert remote.create("a/claim", b"mine")
    assert not remote.create("a/claim", b"yours")
    assert remote.read("a/claim") == b"mine"


def test_a_repeated_create_with_the_same_content_succeeds(remote: RemoteFolder) -> None:
    remote.write("claim", b"mine")
    assert remote.create("claim", b"mine")


@pytest.mark.parametrize("remote", [pytest.param("s3", marks=pytest.mark.s3), "disk"], indirect=True)
def test_only_one_of_concurrent_creates_succeeds(remote: RemoteFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda n: remote.create("claim", f"driver {n}".encode()), range(8)))
    assert sum(created) == 1
    assert remote.read("claim") == f"driver {created.index(True)}".encode()


def test_create_works_without_conditional_writes(
    memory: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MemoryFileSystem.pipe_file

    def raise_501(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        original(self, path, value, mode=mode)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", raise_501)
    assert memory.create("claim", b"mine")
    assert not memory.create("claim", b"yours")


def test_a_partial_upload_never_replaces_a_file(
    on_disk: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"new" * 100)
    on_disk.write("last.ckpt", b"old")

    def truncated_upload(_: LocalFileSystem, local: str, path: str) -> None:
        Path(path).write_bytes(Path(local).read_bytes()[:100])

    monkeypatch.setattr(LocalFileSystem, "put_file", truncated_upload)
    with pytest.raises(RemoteError, match="100 of 300 bytes arrived"):
        on_disk.upload(source, "last.ckpt")
    assert on_disk.read("last.ckpt") == b"old"
    assert on_disk.names() == ["last.ckpt"]


CALLS: dict[str, tuple[Any, ...]] = {
    "read": ("x",),
    "write": ("x", b"1"),
    "create": ("x", b"1"),
    "upload": (THIS_FILE, "x"),
    "download": ("x", THIS_FILE),
    "delete": ("x",),
    "names": (),
    "folders_with": ("x",),
}


def test_a_download_is_complete_if_the_file_is_replaced_meanwhile(
    memory: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.write("study.db", b"old")
    original = MemoryFileSystem.get_file

    def replace_then_download(self: MemoryFileSystem, path: str, target: str) -> None:
        memory.write("study.db", b"newer")
        original(self, path, target)

    monkeypatch.setattr(MemoryFileSystem, "get_file", replace_then_download)
    assert memory.download("study.db", tmp_path / "study.db")
    assert (tmp_path / "study.db").read_bytes() == b"newer"

    def truncated_download(_: MemoryFileSystem, path: str, target: str) -> None:
        Path(target).write_bytes(memory.read(path.rpartition("/")[2], end=3) or b"")

    monkeypatch.setattr(MemoryFileSystem, "get_file", truncated_download)
    with pytest.raises(RemoteError, match="3 of 5 bytes arrived"):
        memory.download("study.db", tmp_path / "study.db")
    assert (tmp_path / "study.db").read_bytes() == b"newer"


@pytest.mark.parametrize(("call", "arguments"), CALLS.items(), ids=CALLS)
def test_every_error_of_a_file_system_is_a_remote_error(call: str, arguments: tuple[Any, ...]) -> None:
    class FailingFileSystem:
        """Raises an error that is no OSError, as botocore does."""

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"Unable to locate credentials.\nand much more of {name}")

    remote = RemoteFolder("s3://bucket/runs", FailingFileSystem(), "bucket/runs")
    with pytest.raises(RemoteError, match=r"^\w+ing s3://bucket/runs.*: Unable to locate credentials$"):
        getattr(remote, call)(*arguments)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nope://bucket/x", "--storage: must be a directory, or a URL that begins with one of abfs://, "),
        ("gs://bucket/x", "--storage: gs:// needs a package that is not installed. "),
        ("gs://bucket/x", 'Install it: pip install "tune_rescon[gcs]".'),
        ("abfs://bucket/x", 'pip install "tune_rescon[azure]"'),
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_opened_is_reported(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError) as caught:
        RemoteFolder.connect(StorageUrl(url=url))
    assert message in str(caught.value)
