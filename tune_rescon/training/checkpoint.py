"""Checkpoints: written whole or not at all, and verified before they are used.

A trial's folder holds ``last.ckpt`` (Lightning's whole state after the last epoch, or within an interrupted
one, and the trial's identity), ``last.previous.ckpt`` (the checkpoint before) and ``best.ckpt`` (a trained
network, nothing else).

torch's file is a zip archive with a CRC-32 of every record, which ``torch.load`` does not check.
:func:`is_intact` checks these instead of a checksum file, which could itself be out of step. No pickled code
is ever loaded: all files hold tensors and plain values (``weights_only``).
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tune_rescon.atomic_write import atomic_write
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
    """The checkpoint from which a trial resumes."""

    path: Path | None
    """None: start from the beginning."""
    damaged: int
    """Newer checkpoints that were skipped because some of their records do not match their CRC-32."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """The folder of a trial's checkpoints."""

    path: Path

    @property
    def last(self) -> Path:
        """The checkpoint from which training resumes."""
        return self.path / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The checkpoint before, used if ``last`` is damaged."""
        return self.path / "last.previous.ckpt"

    @property
    def best(self) -> Path:
        """The best network so far."""
        return self.path / "best.ckpt"

    def create(self) -> None:
        """Create the folder.

        Raises:
            StorageError: the folder cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                format_error("the checkpoint folder must be one that can be made", got=str(error))
            ) from error

    def find(self) -> FoundCheckpoint:
        """Return the last checkpoint; the previous one if the last is damaged or missing."""
        damaged = 0
        for path in (self.last, self.previous):
            if path.exists():
                if is_intact(path):
                    return FoundCheckpoint(path=path, damaged=damaged)
                damaged += 1
        return FoundCheckpoint(path=None, damaged=damaged)

    def recover(self) -> FoundCheckpoint:
        """Return :meth:`find`'s checkpoint, renamed to ``last`` if it is the previous one.

        The rename ensures that a damaged ``last`` never becomes the checkpoint to fall back on.
        """
        found = self.find()
        if found.path == self.previous:
            return FoundCheckpoint(path=self.previous.replace(self.last), damaged=found.damaged)
        return found

    def written(self) -> Path | None:
        """Return the newest checkpoint, unchecked; None if the folder has none.

        It serves a caller that has just written a checkpoint, or failed to.
        """
        return next((path for path in (self.last, self.previous) if path.exists()), None)


def is_intact(path: Path) -> bool:
    """Return whether every record of a checkpoint matches its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:
        # A flipped bit in a header raises errors of many kinds (BadZipFile, NotImplementedError, RuntimeError
        # for a "password", EOFError, ...). In each case the file cannot be read, so it is not intact.
        return False


def write_durably(values: Mapping[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write ``values`` to ``path`` so that a reader, even after a power cut, finds a whole file or no file.

    Args:
        values: tensors and plain values.
        path: the file to write.
        previous: the path to which an existing file at ``path`` is moved. Between the two renames only
            ``previous`` exists.

    Raises:
        OSError: the disk is full or cannot be written. The file that was at ``path`` is still there or at
            ``previous``.
    """
    scratch = path.with_suffix(".partial")
    with (
        atomic_write(path, durable=True, scratch=scratch, previous=previous),
        scratch.open("wb") as file,
        _as_os_error(),
    ):
        torch.save(dict(values), file)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise the OSError that torch hides when a write fails.

    After a failed write torch's archive still writes its end; that fails too and hides the first error. On a
    full disk ``torch.save`` raises ``RuntimeError: unexpected pos 768 vs 662`` (torch 2.15).
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the values that :func:`write_durably` wrote, on the CPU; tensors are memory-mapped, not read.

    Raises:
        StorageError: the file does not exist, is damaged, or was not written by torch.
    """
    if not path.is_file():
        raise StorageError(format_error("a checkpoint must be a file", got=f"{path}, which is not one"))
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise StorageError(
            format_error("a checkpoint must be a file torch can read", got=f"{path}: {error}")
        ) from error
    assert isinstance(values, dict)
    return values
