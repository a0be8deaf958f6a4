from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_rescon.errors import StorageError
from tune_rescon.training.checkpoint import CheckpointFolder, is_intact, read_checkpoint, write_durably

VALUES = {"weights": torch.arange(64.0), "epoch": 3}


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(path=tmp_path)


def _epoch(path: Path) -> int:
    epoch = read_checkpoint(path)["epoch"]
    assert isinstance(epoch, int)
    return epoch


def _flip(path: Path, needle: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(needle) + len(needle) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_written_is_read_and_nothing_else_is_left(folder: CheckpointFolder) -> None:
    write_durably(VALUES, folder.last)
    read = read_checkpoint(folder.last)
    torch.testing.assert_close(read["weights"], VALUES["weights"], rtol=0, atol=0)
    assert [path.name for path in folder.path.iterdir()] == ["last.ckpt"]


def test_the_file_before_is_kept(folder: CheckpointFolder) -> None:
    for epoch in (1, 2, 3):
        write_durably({"epoch": epoch}, folder.last, previous=folder.previous)
    assert (_epoch(folder.last), _epoch(folder.previous)) == (3, 2)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_durably({"epoch": 1}, folder.last)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably({"epoch": 2}, folder.last, previous=folder.previous)
    assert [path.name for path in folder.path.iterdir()] == ["last.ckpt"]
    assert _epoch(folder.last) == 1


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_not_intact(folder: CheckpointFolder, keep: float) -> None:
    write_durably(VALUES, folder.last)
    data = folder.last.read_bytes()
    folder.last.write_bytes(data[: int(keep * len(data))])
    assert not is_intact(folder.last)


@pytest.mark.parametrize("needle", [torch.arange(64.0).numpy().tobytes(), b"weights"])
def test_one_flipped_bit_is_noticed_in_tensors_and_in_values(folder: CheckpointFolder, needle: bytes) -> None:
    write_durably(VALUES, folder.last)
    assert is_intact(folder.last)
    _flip(folder.last, needle)
    assert not is_intact(folder.last)


def test_a_missing_file_is_not_intact(folder: CheckpointFolder) -> None:
    assert not is_intact(folder.last)


def test_a_damaged_last_gives_way_to_the_one_before(
    folder: CheckpointFolder, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in (1, 2):
        write_durably({"epoch": epoch}, folder.last, previous=folder.previous)
    folder.last.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert folder.recover() == folder.last
    assert _epoch(folder.last) == 1
    assert not folder.previous.exists()
    assert "damaged" in caplog.text


def test_two_damaged_files_mean_a_start_from_the_start(folder: CheckpointFolder) -> None:
    for path in (folder.last, folder.previous):
        path.write_bytes(b"damaged")
    assert folder.recover() is None


def test_a_crash_between_the_two_renames_loses_nothing(folder: CheckpointFolder) -> None:
    write_durably({"epoch": 1}, folder.previous)
    assert folder.recover() == folder.last
    assert _epoch(folder.last) == 1


def test_an_empty_folder_holds_nothing(folder: CheckpointFolder) -> None:
    assert folder.recover() is None


def test_a_folder_that_cannot_be_made_is_the_users_to_know(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="must be one that can be made"):
        CheckpointFolder(path=tmp_path / "file" / "trial").create()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_what_is_no_checkpoint_is_a_storage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"x\.ckpt"):
        read_checkpoint(path)


def test_no_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="must be a file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({"evil": Path("x")}, tmp_path / "x.ckpt")
    with pytest.raises(StorageError):
        read_checkpoint(tmp_path / "x.ckpt")
