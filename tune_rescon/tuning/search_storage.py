"""The storage of one run of a search: a directory, or a scratch directory and a URL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tune_rescon.errors import LeaseError, NameTakenError, format_error
from tune_rescon.storage import (
    SearchHome,
    StorageUrl,
    usable,
)
from tune_rescon.tuning.callbacks import SearchCallback
from tune_rescon.tuning.folder import (
    FolderState,
    SearchFolder,
    folder_state,
    reserved,
)
from tune_rescon.tuning.lease import LeaseKeeper, LeaseStore, hold_lease
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.url_store import URL_LEASE_FACTOR, TakeoverWait, open_url_store

__all__ = [
    "LocalStore",
    "SearchStore",
    "find_search",
    "open_store",
    "search_lease",
]


class SearchStore(Protocol):
    """The storage of a run.

    A run uses it in this order:

    1. :func:`open_store` reserves the name of a new search, or finds the search to resume.
    2. :attr:`lease` is the store of the lease. Once the run holds the lease, :meth:`fetch` brings the files
       from which the run continues.
    3. When the record is open and ``space.yaml`` is written, :meth:`begin` verifies that the storage can be
       written.
    4. The :attr:`callbacks` keep the storage up to date until :meth:`close` or :meth:`abandon`.
    """

    @property
    def folder(self) -> SearchFolder:
        """The files on which the run works."""

    @property
    def resumed(self) -> bool:
        """True if the search had begun before this run; False if this run has reserved its name."""

    @property
    def url(self) -> str | None:
        """The URL at which the files are kept; None if they are kept in :attr:`folder`."""

    @property
    def callbacks(self) -> Sequence[SearchCallback]:
        """The callbacks that the run must notify of its events."""

    @property
    def lease(self) -> LeaseStore | None:
        """The store of the lease; None if the study's database holds the lease."""

    def fetch(self) -> None:
        """Fetch the newest copies of the files from which this run continues."""

    def begin(self, known: Iterable[int]) -> None:
        """Write to the storage for the first time; ``known`` are the numbers of the trials in the record.

        Raises:
            StorageError: the storage cannot be written.
        """

    def checkpoint_dir(self, number: int) -> Path:
        """Return the directory to which a worker process writes a trial's checkpoints."""

    def checkpoint_url(self, number: int) -> str | None:
        """Return the URL to which a worker process copies a trial's checkpoints; None if it makes no copy."""

    def prune(self, number: int, keep: str | None) -> None:
        """Delete a trial's checkpoints except ``keep``, the path or URL that a worker process reported."""

    def close(self, timeout: float) -> int:
        """Wait at most ``timeout`` seconds until all changes are kept; return how many are not kept."""

    def abandon(self) -> None:
        """Stop writing, because another driver has the search."""


@dataclass(frozen=True, kw_only=True)
class LocalStore:
    """A directory as the storage: every file that is written to it is kept."""

    folder: SearchFolder
    resumed: bool = False
    url: str | None = None
    callbacks: Sequence[SearchCallback] = ()

    @property
    def lease(self) -> LeaseStore | None:
        """None: the study's database holds the lease."""
        return None

    def fetch(self) -> None:
        """Do nothing: the files are already here."""

    def begin(self, known: Iterable[int]) -> None:
        """Do nothing: the run has already written to the directory."""

    def checkpoint_dir(self, number: int) -> Path:
        """Return the trial's directory in the search's folder."""
        return self.folder.checkpoints(number)

    def checkpoint_url(self, number: int) -> str | None:
        """Return None: the checkpoints are not copied."""
        del number
        return None

    def prune(self, number: int, keep: str | None) -> None:
        """Delete the checkpoints at once."""
        self.folder.prune_checkpoints(number, keep=keep)

    def close(self, timeout: float) -> int:
        """Return 0: no change is missing."""
        del timeout
        return 0

    def abandon(self) -> None:
        """Do nothing: no write is in progress."""


def open_store(options: RunOptions) -> AbstractContextManager[SearchStore]:
    """Open the storage of a run; release the name of a new search if the search cannot begin.

    Raises:
        StorageError: the name is invalid, taken or missing, or the storage cannot be used.
    """
    if isinstance(options.storage, StorageUrl):
        return open_url_store(options.storage, options)
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
        yield LocalStore(folder=folder, resumed=resumed)


def _reserve_or_find(folder: SearchFolder, options: RunOptions, held: ExitStack) -> bool:
    """Reserve the name of a new search; return True if a search of that name has begun instead.

    Raises:
        LeaseError: another driver has reserved the name.
        NameTakenError: the directory holds no search, and files that no driver wrote.
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
def search_lease(options: RunOptions, store: SearchStore) -> Iterator[LeaseKeeper]:
    """Hold the lease of the search ``options.name`` for the duration of a block.

    The study's database holds it, or the search's URL if the database is only a copy. With
    ``resume_or_start``, a search that has begun is waited for: its driver may be about to end.

    Raises:
        LeaseError: another driver has the search.
    """
    takeover = TakeoverWait(options)
    with ExitStack() as held:
        while True:
            try:
                keeper = held.enter_context(_lease(options, store))
                break
            except LeaseError as error:
                if not store.resumed:
                    # The record of a new search is open already, and the other driver writes to it.
                    raise
                takeover.wait(error)
        yield keeper


def _lease(options: RunOptions, store: SearchStore) -> AbstractContextManager[LeaseKeeper]:
    name, seconds = options.name, options.lease_seconds
    if store.lease is not None:
        return hold_lease(store.lease, name=name, seconds=URL_LEASE_FACTOR * seconds)
    study_url = options.study_url or store.folder.study_url
    # Imported here because it imports SQLAlchemy, which a report does without.
    from tune_rescon.tuning.study_lease import StudyLeaseStore

    return hold_lease(StudyLeaseStore.open(study_url, name), name=name, seconds=seconds)


def find_search(
    storage: Path | StorageUrl, name: str, *, cache_root: Path, where: str, files: Sequence[str]
) -> SearchFolder:
    """Return the folder of a search that has begun, for reading.

    Args:
        storage: the storage, a directory or a URL.
        name: the search's name.
        cache_root: the directory for the copies of a URL's files.
        where: the flag that names the search, used in error messages.
        files: the files to download if the storage is a URL. The folder then holds only these copies.

    Raises:
        StorageError: no search has that name, or the storage cannot be read.
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
            home.remote.download(file, folder.path / file)
    return folder
