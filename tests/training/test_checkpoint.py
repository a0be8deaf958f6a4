from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_rescon.errors import StorageError
from tune_rescon.training.checkpoint import (
    CheckpointFolder,
    FoundCheckpoint,
    is_intact,
    read_checkpoint,
    write_durably,
)
from tune_rescon.tuning.folder import TRIAL_FILES

LargestFile = Callable[[int], AbstractContextManager[None]]

VALUES = {"weights": torch.arange(64.0), "epoch": 3}


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(path=tmp_path)


def _epoch(path: Path) -> int:
    epoch = read_checkpoint(path)["epoch"]
    assert isinstance(epoch, int)
    return epoch


def _flip_bit(path: Path, needle: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(needle) + len(needle) // 2] ^= 1
    path.write_bytes(data)


def test_a_written_checkpoint_reads_back_and_leaves_no_other_file(folder: CheckpointFolder) -> None:
    write_durably(VALUES, folder.last)
    read = read_checkpoint(folder.last)
    torch.testing.assert_close(read["weights"], VALUES["weights"], rtol=0, atol=0)
    assert [path.name for path in folder.path.iterdir()] == ["last.ckpt"]


def test_the_previous_checkpoint_is_kept(folder: CheckpointFolder) -> None:
    for epoch in (1, 2, 3):
        write_durably({"epoch": epoch}, folder.last, previous=folder.previous)
    assert (_epoch(folder.last), _epoch(folder.previous)) == (3, 2)


def test_a_checkpoint_without_a_previous_path_is_replaced(folder: CheckpointFolder) -> None:
    write_durably({"epoch": 1}, folder.best)
    opened = sum(1 for _ in Path("/dev/fd").iterdir())
    write_durably({"epoch": 2}, folder.best)
    assert sum(1 for _ in Path("/dev/fd").iterdir()) == opened, "no file is left open"
    assert _epoch(folder.best) == 2
    assert [path.name for path in folder.path.iterdir()] == ["best.ckpt"]


def test_a_file_is_synced_before_it_is_renamed(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        "os.fsync", lambda handle: synced.append((os.fstat(handle).st_size, folder.last.exists()))
    )
    write_durably({"text": "x" * 1000}, folder.last)
    assert synced[0] == (folder.last.stat().st_size, False)
    assert synced[1:] == [(folder.path.stat().st_size, True)], "the directory entry is synced too"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_durably({"epoch": 1}, folder.last)

    def raise_disk_full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_durably({"epoch": 2}, folder.last, previous=folder.previous)
    assert [path.name for path in folder.path.iterdir()] == ["last.ckpt"]
    assert _epoch(folder.last) == 1


@pytest.mark.parametrize("kilobytes", [0.1, 4, 40])
def test_a_file_too_large_for_the_disk_raises_os_error(
    folder: CheckpointFolder, kilobytes: float, file_size_limit: LargestFile
) -> None:
    write_durably({"epoch": 1}, folder.last)
    with file_size_limit(int(1000 * kilobytes)), pytest.raises(OSError, match="File too large"):
        write_durably({"weights": torch.zeros(20_000)}, folder.last, previous=folder.previous)
    assert [path.name for path in folder.path.iterdir()] == ["last.ckpt"]
    assert _epoch(folder.last) == 1


def test_other_errors_of_torch_save_are_raised_unchanged(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such thing can be saved")

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(RuntimeError, match="no such thing"):
        write_durably({"epoch": 1}, folder.last)
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("kept_share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_not_intact(folder: CheckpointFolder, kept_share: float) -> None:
    write_durably(VALUES, folder.last)
    data = folder.last.read_bytes()
    folder.last.write_bytes(data[: int(kept_share * len(data))])
    assert not is_intact(folder.last)


@pytest.mark.parametrize("needle", [torch.arange(64.0).numpy().tobytes(), b"weights"])
def test_one_flipped_bit_is_noticed_in_tensors_and_in_values(folder: CheckpointFolder, needle: bytes) -> None:
    write_durably(VALUES, folder.last)
    assert is_intact(folder.last)
    _flip_bit(folder.last, needle)
    assert not is_intact(folder.last)


def test_a_missing_file_is_not_intact(folder: CheckpointFolder) -> None:
    assert not is_intact(folder.last)


@pytest.mark.parametrize(
    ("last", "previous", "found", "damaged"),
    [
        ("intact", "intact", "last", 0),
        ("intact", "damaged", "last", 0),
        ("damaged", "intact", "previous", 1),
        ("damaged", "damaged", None, 2),
        ("damaged", "missing", None, 1),
        ("missing", "intact", "previous", 0),  # a crash between the two renames
        ("missing", "damaged", None, 1),
        ("missing", "missing", None, 0),
    ],
)
def test_the_newest_intact_checkpoint_is_found_and_becomes_the_last(
    folder: CheckpointFolder, last: str, previous: str, found: str | None, damaged: int
) -> None:
    for path, condition, name in ((folder.last, last, "last"), (folder.previous, previous, "previous")):
        if condition != "missing":
            write_durably({"name": name}, path)
        if condition == "damaged":
            path.write_bytes(path.read_bytes()[:-100])
    expected = {"last": folder.last, "previous": folder.previous, None: None}[found]
    assert folder.find() == FoundCheckpoint(path=expected, damaged=damaged)
    assert folder.recover() == FoundCheckpoint(path=folder.last if found else None, damaged=damaged)
    if found:
        assert read_checkpoint(folder.last)["name"] == found
        assert folder.find() == FoundCheckpoint(path=folder.last, damaged=0)


def test_the_newest_written_checkpoint_is_found_without_checksums(folder: CheckpointFolder) -> None:
    assert folder.written() is None
    folder.previous.touch()
    assert folder.written() == folder.previous
    folder.last.touch()
    assert folder.written() == folder.last


def test_creating_an_existing_folder_succeeds(tmp_path: Path) -> None:
    folder = CheckpointFolder(path=tmp_path / "checkpoints" / "trial_0000")
    for _ in range(2):
        folder.create()
    assert folder.path.is_dir()


def test_a_folder_that_cannot_be_created_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="must be one that can be made"):
        CheckpointFolder(path=tmp_path / "file" / "trial").create()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_not_a_checkpoint_is_a_storage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"x\.ckpt"):
        read_checkpoint(path)


def test_a_missing_checkpoint_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="must be a file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({"evil": Path("x")}, tmp_path / "x.ckpt")
    with pytest.raises(StorageError):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_search_that_prunes_knows_every_file_that_a_trial_writes(folder: CheckpointFolder) -> None:
    written = {path.name for path in (folder.best, folder.last, folder.previous)}
    assert written | {path.with_suffix(".partial").name for path in (folder.best, folder.last)} == TRIAL_FILES
