"""Open the storage of a run: reserve the search's name or find the search, and hold its lease."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from tune_rescon.errors import LeaseError, NameTakenError, format_error
from tune_rescon.storage import (
    SearchHome,
    SharedValue,
    StorageUrl,
    name_taken,
    name_without_space,
    usable,
)
from tune_rescon.tuning.folder import SearchFolder, holds_trials, usable_directory
from tune_rescon.tuning.folder_state import FolderState, folder_state, reserved
from tune_rescon.tuning.lease import LeaseKeeper, hold_lease
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.store import Reservation, SearchStore, UrlStore

__all__ = ["find_search", "has_begun", "open_store", "search_lease"]

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
    study_url = options.study_url or store.folder.study_url
    # Imported here because it imports SQLAlchemy, which a report does without.
    from tune_rescon.tuning.study_lease import StudyLeaseStore

    return hold_lease(StudyLeaseStore.open(study_url, name), name=name, seconds=seconds, drives=drives)


def has_begun(storage: Path | StorageUrl, name: str) -> bool:
    """Return whether a search of this name has begun.

    Raises:
        StorageError: If the name is invalid, or the storage cannot be read.
    """
    if isinstance(storage, Path):
        folder = SearchFolder(storage=storage.resolve(), name=name)
        with usable_directory(folder.storage):
            return folder.space_yaml.is_file()
    home = SearchHome.look(storage, name)
    return home is not None and home.begun


def find_search(
    storage: Path | StorageUrl, name: str, *, cache_root: Path, where: str, files: Sequence[str]
) -> SearchFolder:
    """Return the folder of a search that has begun, for reading.

    Args:
        storage: The storage, a directory or a URL.
        name: The search's name.
        cache_root: The directory for the copies of a URL's files.
        where: The flag that names the search, used in error messages.
        files: The files to download if the storage is a URL. The folder then holds only these copies.

    Raises:
        StorageError: If no search has that name, or the storage cannot be read.
    """
    if isinstance(storage, Path):
        folder = SearchFolder(storage=storage.resolve(), name=name)
        folder.require(where=where)
        return folder
    home = SearchHome.find(storage, name, where=where)
    # The copies are in a separate folder, because a run of the search may be using the scratch folder.
    folder = SearchFolder(storage=home.scratch(cache_root) / "copies", name=name)
    with usable(storage):
        for file in files:
            if not home.remote.download(file, folder.path / file):
                # An earlier call's copy of a file that is gone is not what the storage holds.
                (folder.path / file).unlink(missing_ok=True)
    return folder
