"""Checkpoint files: they are written atomically, and verified before they are used.

A trial's folder holds ``last.ckpt`` (Lightning's whole state after the last epoch, or within an interrupted
one, and the trial's identity), ``last.previous.ckpt`` (the checkpoint before) and ``best.ckpt`` (only a
trained network).

torch's file is a zip archive with a CRC-32 of every record, which ``torch.load`` does not check.
:func:`is_intact` checks them, so that no checksum file is needed, which could differ from its checkpoint. No
pickled code is ever loaded: all files hold tensors and plain values. Only :func:`load_values` calls
``torch.load``, with ``weights_only=True``.
"""

from __future__ import annotations

import copy
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tune_rescon.atomic_write import atomic_write
from tune_rescon.errors import StorageError, format_error

__all__ = [
    "CheckpointFolder",
    "FoundCheckpoint",
    "copy_to_host",
    "is_intact",
    "load_values",
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

    def newest(self) -> Path | None:
        """Return the newest checkpoint without a check of its records; None if the folder has none."""
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


def copy_to_host(values: Any) -> Any:
    """Return a copy of nested values that later training steps do not change.

    The copy's tensors are on the CPU. A tensor that occurs twice is copied once. Tensors of a GPU are copied
    to pinned memory, which torch keeps for the next call, and the call waits once for all of them. It uses
    the current stream. Another stream would save nothing, because the next step overwrites the weights and
    would have to wait for the copies.

    Args:
        values: dicts, lists and tuples of tensors and plain values.
    """
    copies: _Copies = {}
    copied = _copied(values, copies)
    for device in {key[0] for key in copies}:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    return copied


#: The device, address, shape, strides and dtype of a tensor -> its copy.
_Copies = dict[tuple[torch.device, int, torch.Size, tuple[int, ...], torch.dtype], Tensor]


def _copied(values: Any, copies: _Copies) -> Any:
    if isinstance(values, Tensor):
        key = (values.device, values.data_ptr(), values.shape, values.stride(), values.dtype)
        if key not in copies:
            copies[key] = _host_copy(values)
        return copies[key]
    if isinstance(values, dict):
        # A network's state is a dict that also has an attribute, the versions of its layers.
        copied = copy.copy(values)
        copied.update((key, _copied(value, copies)) for key, value in values.items())
        return copied
    if type(values) in (list, tuple):
        return type(values)(_copied(value, copies) for value in values)
    return values


def _host_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.detach().clone()
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
    return pinned.copy_(tensor.detach(), non_blocking=True)


def write_durably(values: Mapping[str, Any], path: Path, *, previous: Path | None = None) -> None:
    """Write ``values`` to ``path`` atomically: even after a power cut the file is complete or absent.

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
    """Raise the OSError of a failed write, which torch hides.

    After a failed write torch's archive still writes its end. That fails too, and its error hides the first
    one. On a full disk ``torch.save`` raises ``RuntimeError: unexpected pos 768 vs 662`` (torch 2.15).
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


#: Archives of torch that hold a program, by the name of a member that only they have.
_PROGRAMS: Final = {"constants.pkl": "a TorchScript program", "archive_format": "an exported program"}

#: The class that torch's unpickler has refused, in its message.
_REFUSED_CLASS: Final = re.compile(r"GLOBAL ([A-Za-z_][\w.]*)")


def load_values(path: Path, *, where: str = "", source: str = "", hint: str = "") -> Any:
    """Return the values in a file that ``torch.save`` wrote, on the CPU; no code in the file is run.

    The tensors of an archive are memory-mapped. The error message does not repeat torch's, which advises
    loading with ``weights_only=False``: that would run the code in the file.

    Args:
        path: the file.
        where: the setting or option that gave the file; the error message names it.
        source: what the user gave, if it is not ``path``.
        hint: what the user can do; the error message ends with it.

    Raises:
        StorageError: the file does not exist, is damaged, is of another kind, or holds more than tensors and
            plain values.
    """
    shown = source or str(path)
    if not path.is_file():
        got = f"{shown}, which is not one"
        raise StorageError(format_error("a checkpoint must be a file that exists", got=got, where=where))
    # A file of torch before 1.6 is not an archive and cannot be memory-mapped.
    is_archive = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            # torch's warnings about files of other kinds are for programmers.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:
        # The unpickler can raise any error for a file of another kind.
        rule = (
            "a checkpoint must be a whole file that torch wrote, of tensors and plain values; code in it is"
            " never run"
        )
        got = f"{shown}, {_kind_of_file(path, error)}"
        raise StorageError(format_error(rule, got=got, where=where, hint=hint)) from error


def _kind_of_file(path: Path, error: Exception) -> str:
    """Return why torch could not load a file, in words, from the file and torch's ``error``."""
    if path.stat().st_size == 0:
        return "which is empty"
    for member, kind in _PROGRAMS.items():
        if _has_member(path, member):
            return f"which is {kind}"
    if isinstance(error, OSError) and error.strerror:
        return f"which cannot be read ({error.strerror})"
    if isinstance(error, pickle.UnpicklingError) and (refused := _REFUSED_CLASS.search(str(error))):
        return f"which holds an object of {refused[1]}"
    return "which is damaged or of another kind"


def _has_member(path: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.rpartition("/")[2] == name for member in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read_checkpoint(path: Path, *, hint: str = "") -> dict[str, Any]:
    """Return the values that :func:`write_durably` wrote, as :func:`load_values` does.

    Raises:
        StorageError: as :func:`load_values`, or the file does not hold values by name.
    """
    values = load_values(path, hint=hint)
    if not isinstance(values, dict):
        got = f"{path}, which holds a {type(values).__name__}"
        raise StorageError(format_error("a checkpoint must hold values by name", got=got, hint=hint))
    return values
