"""What the folder of a search's name holds, and the lock that reserves the name for a new search."""

from __future__ import annotations

import enum
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tune_rescon.storage import check_new_name, name_taken
from tune_rescon.tuning.folder import SearchFolder, holds_trials, usable_directory

__all__ = ["FolderState", "folder_state", "reserved"]


#: The lock of the directory on a file system that locks files but no directories, as NFS does.
_LOCK_FILE: Final = ".search.lock"

#: The names of all files that a driver writes before ``space.yaml``, and the prefixes of such names. NFS
#: renames an open file that is deleted to ``.nfs...``.
_REMAINS: Final = frozenset(
    {"search.log", "study.db", "study.db-journal", "study.db-shm", "study.db-wal", _LOCK_FILE}
)
_REMAINS_PREFIXES: Final = (".space.yaml.", ".nfs")


class FolderState(enum.Enum):
    """What the directory of a search's name holds."""

    FREE = enum.auto()
    """There is no such directory."""
    BEGUN = enum.auto()
    """A search that can be resumed."""
    ABANDONED = enum.auto()
    """Only the remains of a driver that died before its search began."""
    OPENING = enum.auto()
    """A search that a live driver is about to begin, or one on a file system without locks."""
    FOREIGN = enum.auto()
    """Files that no driver wrote, or the trials of a search that has lost its ``space.yaml``."""


def folder_state(folder: SearchFolder) -> FolderState:
    """Return what the directory of a search's name holds.

    Raises:
        StorageError: If the storage cannot be read.
    """
    with usable_directory(folder.storage), ExitStack() as held:
        return _locked_state(folder, held)


@contextmanager
def reserved(folder: SearchFolder) -> Iterator[None]:
    """Create the directory of a new search, and lock it against other drivers for the duration of the block.

    Raises:
        NameTakenError: If the name is taken, or another driver is taking it.
        StorageError: If the name is invalid, or the storage cannot be written.
    """
    check_new_name(folder.name)
    with ExitStack() as held:
        with usable_directory(folder.storage):
            storage_is_new = not folder.storage.exists()
            abandoned = _locked_state(folder, held) is FolderState.ABANDONED
            if abandoned:
                _empty(folder.path)
        if not abandoned:
            folder.create()
            with usable_directory(folder.storage):
                if _lock(folder.path, held) is _Lock.OF_ANOTHER:
                    # Another driver found the directory before it was locked, and took it as abandoned.
                    raise name_taken(folder.name, folder.path, begun=folder.space_yaml.is_file())
        try:
            yield
        except BaseException:
            # A search has begun once its space is written.
            if not folder.space_yaml.exists():
                folder.remove(with_storage=storage_is_new)
            raise


def _empty(directory: Path) -> None:
    """Delete all files but the lock, which this process holds."""
    for path in directory.iterdir():
        if path.name != _LOCK_FILE:
            path.unlink()


def _locked_state(folder: SearchFolder, held: ExitStack) -> FolderState:
    """Return the state; if it is ``ABANDONED``, the directory is locked until ``held`` is closed."""
    if folder.space_yaml.is_file():
        return FolderState.BEGUN
    try:
        names = [path.name for path in folder.path.iterdir()]
        if not all(name in _REMAINS or name.startswith(_REMAINS_PREFIXES) for name in names):
            # The driver that begins the search may have written its space since.
            return FolderState.BEGUN if folder.space_yaml.is_file() else FolderState.FOREIGN
        lock = _lock(folder.path, held)
    except FileNotFoundError:
        return FolderState.FREE
    except NotADirectoryError:
        return FolderState.FOREIGN
    if folder.space_yaml.is_file():
        return FolderState.BEGUN
    if lock is _Lock.HELD:
        return FolderState.FOREIGN if holds_trials(folder.study_db) else FolderState.ABANDONED
    return FolderState.OPENING


class _Lock(enum.Enum):
    HELD = enum.auto()
    OF_ANOTHER = enum.auto()
    UNSUPPORTED = enum.auto()
    """The file system cannot lock. A name stays taken there until a user frees it."""


def _lock(directory: Path, held: ExitStack) -> _Lock:
    """Lock a directory until ``held`` is closed."""
    lock = _lock_path(directory, os.O_RDONLY | os.O_DIRECTORY, held)
    if lock is _Lock.UNSUPPORTED:
        lock = _lock_path(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT, held)
    return lock


def _lock_path(path: Path, flags: int, held: ExitStack) -> _Lock:
    try:
        handle = os.open(path, flags, 0o666)
    except FileNotFoundError:
        return _Lock.OF_ANOTHER  # The other driver has removed the directory.
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _Lock.OF_ANOTHER if error.errno in _LOCKED else _Lock.UNSUPPORTED
    try:
        same = os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        same = False
    # Another driver may have removed the file between the opening and the lock.
    return _Lock.HELD if same else _Lock.OF_ANOTHER


#: Error numbers that mean that another process holds a lock.
_LOCKED: Final = (errno.EWOULDBLOCK, errno.EACCES)
