"""Replace a file in one step, so that no reader sees a part of it, and detect that a file was replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "file_version", "sync"]


@contextmanager
def atomic_write(
    path: Path, *, durable: bool = False, scratch: Path | None = None, previous: Path | None = None
) -> Iterator[Path]:
    """Yield the path of a scratch file, which replaces ``path`` at the end of the block.

    If the block raises, or the disk is full, the scratch file is deleted and ``path`` stays as it was.

    Args:
        path: the file to write.
        durable: whether the old or the new file, as a whole, survives a power cut.
        scratch: the scratch file, in the folder of ``path``. By default its name is unique to this thread, so
            that several threads may write the same file, and the last one wins. Use a fixed name for a large
            file, so that the next write replaces what a killed process left.
        previous: the path to which an existing file at ``path`` is moved. Between the two renames, only
            ``previous`` exists.
    """
    scratch = scratch or path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield scratch
        if durable:
            sync(scratch)
        if previous is not None and path.exists():
            path.replace(previous)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    if durable:
        # A rename is durable only after its folder is synchronised.
        sync(path.parent)


def sync(path: Path) -> None:
    """Write a file's contents, or a folder's names, through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_version(path: Path) -> tuple[int, int]:
    """Return two numbers of which one changes when a file is written: its modification time and its size.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    return status.st_mtime_ns, status.st_size
