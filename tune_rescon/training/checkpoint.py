"""Checkpoints: written whole or not at all, checked before they are believed.

A trial's folder holds ``last.ckpt`` (Lightning's whole state after the last epoch, and the trial's identity),
``last.previous.ckpt`` (the same, one epoch older) and ``best.ckpt`` (a trained network, nothing else).

torch's file is a zip archive with a CRC-32 of every record, which ``torch.load`` does not look at; checking
them takes the place of a checksum file that could itself be out of step. No pickled code is ever loaded:
all files hold tensors and plain values (``weights_only``).
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from tune_rescon.errors import StorageError, explain

__all__ = ["CheckpointFolder", "DurableCheckpointIO", "is_intact", "read_checkpoint", "write_durably"]

_log: Final = logging.getLogger(__name__)


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
                explain("the checkpoint folder must be one that can be made", got=str(error))
            ) from error

    def newest_intact(self) -> Path | None:
        """The last checkpoint; the previous one if that is damaged or missing; None if there is neither."""
        for path in (self.last, self.previous):
            if path.exists():
                if is_intact(path):
                    return path
                _log.warning("checkpoint %s is damaged: going on from what came before it", path)
        return None

    def recover(self) -> Path | None:
        """:meth:`newest_intact` as ``last``, so that a damaged file never becomes the one to fall back on."""
        newest = self.newest_intact()
        return newest.replace(self.last) if newest == self.previous else newest


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's way to its checkpoint file, through :func:`write_durably`; keeps the one before."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; what was there gets the suffix ``.previous.ckpt``."""
        assert storage_options is None
        path = Path(path)
        write_durably(checkpoint, path, previous=path.with_suffix(".previous.ckpt"))


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
        OSError: the disk is full or cannot be written; ``path`` is as it was.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(values), file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


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
        raise StorageError(explain("a checkpoint must be a file", got=f"{path}, which is none"))
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise StorageError(
            explain("a checkpoint must be a file torch can read", got=f"{path}: {error}")
        ) from error
    assert isinstance(values, dict)
    return values
