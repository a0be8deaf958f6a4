"""Checkpoints: written whole or not at all, checked before they are believed.

A trial's folder holds ``last.ckpt`` (Lightning's whole state after the last epoch, or amid one that had to be
left, and the trial's identity), ``last.previous.ckpt`` (the one before) and ``best.ckpt`` (a trained network,
nothing else).

torch's file is a zip archive with a CRC-32 of every record, which ``torch.load`` does not look at; checking
them takes the place of a checksum file that could itself be out of step. No pickled code is ever loaded:
all files hold tensors and plain values (``weights_only``).
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tune_rescon.errors import StorageError, format_error

__all__ = [
    "CheckpointFolder",
    "FoundCheckpoint",
    "is_intact",
    "read_checkpoint",
    "write_durably",
]


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """What a trial goes on from."""

    path: Path | None
    """None: from the start."""
    damaged: int
    """How many newer checkpoints were passed over, because not all of their records have their CRC-32."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """Where a trial keeps its checkpoints."""

    path: Path

    @property
    def last(self) -> Path:
        """What training goes on from."""
        return self.path / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The one before, for when ``last`` is damaged."""
        return self.path / "last.previous.ckpt"

    @property
    def best(self) -> Path:
        """The best network so far."""
        return self.path / "best.ckpt"

    def create(self) -> None:
        """Make the folder.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                format_error("the checkpoint folder must be one that can be made", got=str(error))
            ) from error

    def find(self) -> FoundCheckpoint:
        """The last checkpoint; the previous one if that is damaged or missing."""
        damaged = 0
        for path in (self.last, self.previous):
            if path.exists():
                if is_intact(path):
                    return FoundCheckpoint(path=path, damaged=damaged)
                damaged += 1
        return FoundCheckpoint(path=None, damaged=damaged)

    def recover(self) -> FoundCheckpoint:
        """:meth:`find`, as ``last``, so that a damaged file never becomes the one to fall back on."""
        found = self.find()
        if found.path == self.previous:
            return FoundCheckpoint(path=self.previous.replace(self.last), damaged=found.damaged)
        return found

    def written(self) -> Path | None:
        """The newest checkpoint there is, unchecked: for who has just written it, or failed to."""
        return next((path for path in (self.last, self.previous) if path.exists()), None)


def is_intact(path: Path) -> bool:
    """Whether every record of a checkpoint still has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:
        # Whatever a flipped bit makes of a header (BadZipFile, NotImplementedError, RuntimeError for a
        # "password", EOFError, ...): the file cannot be read, and that is the answer.
        return False


def write_durably(values: Mapping[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write ``values`` to ``path`` so that a reader, also one after a power cut, finds a whole file or none.

    ``previous``: where the file that was at ``path`` is kept. Between the two renames only that one exists.

    Raises:
        OSError: the disk is full or cannot be written; what was at ``path`` is there or at ``previous``.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            with _as_os_error():
                torch.save(dict(values), file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """When a write fails, torch's archive still writes its end, and that failure hides the file's own.

    On a full disk ``torch.save`` raises ``RuntimeError: unexpected pos 768 vs 662`` (torch 2.15).
    """
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror) from error


def _sync_folder(folder: Path) -> None:
    # A rename is on disk once its folder is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`write_durably` wrote, on the CPU, tensors mapped rather than read.

    Raises:
        StorageError: no such file, a damaged one, or not one of torch's.
    """
    if not path.is_file():
        raise StorageError(format_error("a checkpoint must be a file", got=f"{path}, which is none"))
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise StorageError(
            format_error("a checkpoint must be a file torch can read", got=f"{path}: {error}")
        ) from error
    assert isinstance(values, dict)
    return values
