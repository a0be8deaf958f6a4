"""The directory of a new search: one driver's, and given back if its search cannot begin.

A driver that is killed before its search has begun leaves a directory without ``space.yaml``: nobody can
go on with it, and its name would be taken. The next driver of that name takes it over. Whether the first
one still lives is known from a lock on the directory itself: the system takes it away with the process,
and no crash can leave it behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tune_rescon.storage import check_new_name, name_taken
from tune_rescon.tuning.record.folder import SearchFolder, usable_directory

__all__ = ["claimed"]

#: All that a driver writes before ``space.yaml``, by how the names begin.
_REMAINS: Final = ("search.log", "study.db", ".space.yaml.")


@contextmanager
def claimed(folder: SearchFolder) -> Iterator[None]:
    """Make the directory of a new search, and keep other drivers out of it.

    Raises:
        StorageError: the name is no name, taken, or being taken; or the storage cannot be written.
    """
    check_new_name(folder.name)
    with usable_directory(folder.storage):
        storage_is_new = not folder.storage.exists()
        if _is_abandoned(folder):
            folder.remove(with_storage=False)
    folder.create()
    lock = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(lock)
        if not _is_there(lock, folder.path):
            # Another driver found the directory before it was locked, and took it for abandoned.
            raise name_taken(folder.name, folder.path, begun=folder.space_yaml.is_file())
        try:
            yield
        except BaseException:
            # The space is the first file of a search that has begun.
            if not folder.space_yaml.exists():
                folder.remove(with_storage=storage_is_new)
            raise
    finally:
        os.close(lock)


def _is_abandoned(folder: SearchFolder) -> bool:
    """Whether there is nothing but what a driver left that died before its search began."""
    if not folder.path.is_dir():
        return False
    if not all(path.name.startswith(_REMAINS) for path in folder.path.iterdir()):
        return False
    directory = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _lock(directory)
    finally:
        os.close(directory)


def _lock(directory: int) -> bool:
    """Lock an open directory until it is closed; False if another process has, or nobody can."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Some network file systems lock no directory: there a name stays taken until somebody frees it.
        return False
    return True


def _is_there(directory: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(directory), path.stat())
    except FileNotFoundError:
        return False
