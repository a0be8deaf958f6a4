"""Open the storage of a run: reserve the search's name or find the search, and hold its lease."""

from __future__ import annotations

import enum
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from tune_rescon.errors import LeaseError, NameTakenError, format_error
from tune_rescon.storage import (
    SearchHome,
    SharedValue,
    StorageUrl,
    check_new_name,
    name_taken,
    name_without_space,
    usable,
)
from tune_rescon.tuning.folder import SearchFolder, holds_trials, usable_directory
from tune_rescon.tuning.lease import LeaseKeeper, hold_lease
from tune_rescon.tuning.options import RunOptions, SearchLocation
from tune_rescon.tuning.store import Reservation, SearchStore, UrlStore

__all__ = [
    "FolderState",
    "find_search",
    "folder_state",
    "has_begun",
    "open_store",
    "reserved",
    "search_lease",
]

_PROGRESS = logging.getLogger("tune_rescon.progress")

#: Factor by which a lease at a URL is longer. A beat there needs several requests, and each request that the
#: store refuses is retried for half a minute (s3fs's 5 tries of botocore's 5).
URL_LEASE_FACTOR: Final = 4


def open_store(options: RunOptions) -> AbstractContextManager[SearchStore]:
    """Open the storage of a run; release the name of a new search if the search cannot begin.

    Raises:
        LeaseError: If another driver has reserved the name and is about to begin the search.
        StorageError: If the name is invalid, taken or missing, or the storage cannot be used.
    """
    if isinstance(options.storage, StorageUrl):
        return _open_url_store(options.storage, options)
    folder = SearchFolder(storage=options.storage.resolve(), name=options.name)
    return _open_local_store(folder, options)


@contextmanager
def _open_local_store(folder: SearchFolder, options: RunOptions) -> Iterator[SearchStore]:
    with ExitStack() as held:
        resumed = options.resume
        if options.resume:
            folder.require()
        elif options.resume_or_start:
            resumed = _reserve_or_find(folder, options, held)
        else:
            held.enter_context(reserved(folder))
        if resumed:
            folder.check_writable()
        yield SearchStore(folder, resumed=resumed)


def _reserve_or_find(folder: SearchFolder, options: RunOptions, held: ExitStack) -> bool:
    """Reserve the name of a new search; return True if a search of that name has begun instead.

    Raises:
        LeaseError: If another driver has reserved the name.
        NameTakenError: If the directory holds no search, and files that no driver wrote.
    """
    takeover = TakeoverWait(options)
    while (state := folder_state(folder)) is not FolderState.BEGUN:
        try:
            held.enter_context(reserved(folder))
        except NameTakenError:
            if state is FolderState.FOREIGN:
                raise
            rule = (
                f"a search must have one driver at a time, and another driver is about to begin {folder.name}"
            )
            hint = f"If no other driver runs, remove {folder.path}."
            takeover.wait(LeaseError(format_error(rule, hint=hint)))
        else:
            return False
    return True


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
                for path in folder.path.iterdir():
                    if path.name != _LOCK_FILE:  # this process holds the lock
                        path.unlink()
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
        is_held = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        return _Lock.OF_ANOTHER if is_held else _Lock.UNSUPPORTED
    try:
        same = os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        same = False
    # Another driver may have removed the file between the opening and the lock.
    return _Lock.HELD if same else _Lock.OF_ANOTHER


@contextmanager
def _open_url_store(storage: StorageUrl, options: RunOptions) -> Iterator[UrlStore]:
    with ExitStack() as held:
        found = SearchHome.find(storage, options.name) if options.resume else _reserve(storage, options, held)
        if isinstance(found, SearchHome):
            store = UrlStore(found, options)
            store.folder.path.mkdir(parents=True, exist_ok=True)
            yield store
            return
        store = UrlStore(found.home, options, reservation=found)
        try:
            store.folder.create()
            yield store
        except BaseException:
            if not store.begun:
                found.cancel(store.folder.storage)
            raise


def _reserve(storage: StorageUrl, options: RunOptions, held: ExitStack) -> Reservation | SearchHome:
    """Reserve the name of a new search; with ``resume_or_start``, return the home of one that has begun.

    Raises:
        LeaseError: If another driver has reserved the name.
        NameTakenError: If a search of the name has begun, or has lost its ``space.yaml``.
    """
    takeover = TakeoverWait(options)
    while True:
        home = SearchHome.look(storage, options.name)
        if home is None:
            with suppress(NameTakenError):
                home = SearchHome.create(storage, options.name)
        if home is None:
            continue  # Another driver was faster.
        if home.begun:
            if options.resume_or_start:
                return home
            raise name_taken(options.name, home.remote.url, begun=True)
        try:
            reservation = _take(home, options)
        except LeaseError as error:
            takeover.wait(error)
            continue
        held.enter_context(reservation.held)
        found = SearchHome.look(storage, options.name)
        if found is None or found.identity != home.identity or found.begun:
            # While this process waited, the other driver began the search or released its name.
            reservation.held.close()
            continue
        with usable(storage):
            if not home.holds_remains_only or _has_trials(home):
                reservation.held.close()
                raise name_without_space(home.remote.url)
            home.clear()
        shutil.rmtree(home.scratch(options.cache_root.resolve()), ignore_errors=True)
        return reservation


def _has_trials(home: SearchHome) -> bool:
    """Return whether the study at the URL has trials, which a search that never began has not."""
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as scratch:
        study = Path(scratch) / "study.db"
        return home.remote.download(study.name, study) and holds_trials(study)


def _take(home: SearchHome, options: RunOptions) -> Reservation:
    """Hold the lease of a reservation.

    Raises:
        LeaseError: If another driver holds it.
    """
    seconds = URL_LEASE_FACTOR * options.lease_seconds
    with ExitStack() as held, usable(home.storage):
        lease = hold_lease(SharedValue(home.opening), name=options.name, seconds=seconds)
        keeper = held.enter_context(lease)
        return Reservation(home=home, keeper=keeper, held=held.pop_all())


class TakeoverWait:
    """Waits for another driver to end, within the time that the options of ``resume_or_start`` allow."""

    def __init__(self, options: RunOptions) -> None:
        """Wait for ``options.takeover_seconds`` in all, or not at all without ``resume_or_start``."""
        self._seconds = options.takeover_seconds if options.resume_or_start else 0.0
        self._end: float | None = None

    def wait(self, error: LeaseError) -> None:
        """Wait a while before the next try.

        Raises:
            LeaseError: If the time is up; this is ``error``.
        """
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._seconds
            if self._seconds > 0:
                _PROGRESS.info(f"{error} Waiting for up to {self._seconds:g} s.")
        if now >= self._end:
            raise error
        time.sleep(min(self._seconds / 20, self._end - now))


@contextmanager
def search_lease(options: RunOptions, store: SearchStore, *, drives: bool = True) -> Iterator[LeaseKeeper]:
    """Hold the lease of the search ``options.name`` for the duration of a block.

    The study's database holds it, or the search's URL if the database is only a copy. With
    ``resume_or_start``, a search that has begun is waited for: its driver may be about to end.

    Args:
        options: The options of this run.
        store: The storage of this run.
        drives: Whether this process runs the search, so that the time counts for ``budget.hours``.

    Raises:
        LeaseError: If another driver has the search.
    """
    takeover = TakeoverWait(options)
    with ExitStack() as held:
        while True:
            try:
                keeper = held.enter_context(_lease(options, store, drives=drives))
                break
            except LeaseError as error:
                if not store.resumed:
                    # The record of a new search is open already, and the other driver writes to it.
                    raise
                takeover.wait(error)
        yield keeper


def _lease(options: RunOptions, store: SearchStore, *, drives: bool) -> AbstractContextManager[LeaseKeeper]:
    name, seconds = options.name, options.lease_seconds
    if store.lease is not None:
        return hold_lease(store.lease, name=name, seconds=URL_LEASE_FACTOR * seconds, drives=drives)
    study_url = options.study_of(store.folder)
    # Imported here because it imports SQLAlchemy, which a report does without.
    from tune_rescon.tuning.study_lease import StudyLeaseStore

    return hold_lease(StudyLeaseStore.open(study_url, name), name=name, seconds=seconds, drives=drives)


def has_begun(location: SearchLocation, name: str) -> bool:
    """Return whether a search of this name has begun.

    Raises:
        StorageError: If the name is invalid, or the storage cannot be read.
    """
    storage = location.storage
    if isinstance(storage, Path):
        folder = SearchFolder(storage=storage.resolve(), name=name)
        with usable_directory(folder.storage):
            return folder.space_yaml.is_file()
    home = SearchHome.look(storage, name)
    return home is not None and home.begun


def find_search(location: SearchLocation, name: str, *, where: str, with_study: bool = False) -> SearchFolder:
    """Return the folder of a search that has begun, for reading.

    If the storage is a URL, the folder holds only a copy of ``space.yaml``, and of the study if requested.

    Args:
        location: Where the searches are.
        name: The search's name.
        where: The flag that names the search, used in error messages.
        with_study: Whether to copy the study too, unless a separate database has it.

    Raises:
        StorageError: If no search has that name, or the storage cannot be read.
    """
    storage = location.storage
    if isinstance(storage, Path):
        folder = SearchFolder(storage=storage.resolve(), name=name)
        folder.require(where=where)
        return folder
    home = SearchHome.find(storage, name, where=where)
    # The copies are in a separate folder, because a run of the search may be using the scratch folder.
    folder = SearchFolder(storage=home.scratch(location.cache_root) / "copies", name=name)
    files = ["space.yaml", "study.db"] if with_study and not location.study_url else ["space.yaml"]
    with usable(storage):
        for file in files:
            if not home.remote.download(file, folder.path / file):
                # An earlier call's copy of a file that is gone is not what the storage holds.
                (folder.path / file).unlink(missing_ok=True)
    return folder
