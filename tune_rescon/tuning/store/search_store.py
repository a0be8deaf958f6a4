"""Where one run of a search keeps its files: a directory, or a scratch directory and a URL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tune_rescon.storage import SearchHome, StorageUrl, usable
from tune_rescon.tuning.listener import SearchListener
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.ownership.claim import claimed
from tune_rescon.tuning.ownership.lease import LeaseStore
from tune_rescon.tuning.record.folder import SearchFolder

__all__ = ["LocalStore", "SearchStore", "find_search", "open_store"]


class SearchStore(Protocol):
    """What a run asks of its storage, in this order.

    :func:`open_store` takes the name of a new search, or finds the one to go on with. :attr:`lease` says
    where the lease is kept, and once that is held :meth:`fetch` brings what the run goes on from. With the
    record open and ``space.yaml`` written, :meth:`begin` makes sure that the storage can be written; then
    the :attr:`listeners` keep it up to date until :meth:`close` or :meth:`abandon`.
    """

    @property
    def folder(self) -> SearchFolder:
        """The files as the run works on them."""

    @property
    def url(self) -> str | None:
        """Where they are kept, if that is not the folder."""

    @property
    def listeners(self) -> Sequence[SearchListener]:
        """Who must be told what happens."""

    @property
    def lease(self) -> LeaseStore | None:
        """Where the lease is kept; None: in the study's database."""

    def fetch(self) -> None:
        """Bring the newest copies of what this run goes on from."""

    def begin(self, known: Iterable[int]) -> None:
        """Write for the first time; ``known`` are the trials of the record.

        Raises:
            StorageError: the storage cannot be written.
        """

    def checkpoint_dir(self, number: int) -> Path:
        """Where a worker writes a trial's checkpoints."""

    def checkpoint_url(self, number: int) -> str | None:
        """Where it keeps them, if that is elsewhere."""

    def prune(self, number: int, keep: str | None) -> None:
        """Delete a trial's checkpoints but the file ``keep``, which is where a worker said it is."""

    def close(self, patience: float) -> int:
        """Have everything kept, waiting ``patience`` seconds at most; the number of changes that are not."""

    def abandon(self) -> None:
        """Write nothing more: the search is another driver's."""


@dataclass(frozen=True, kw_only=True)
class LocalStore:
    """A directory: what is written is kept."""

    folder: SearchFolder
    url: str | None = None
    listeners: Sequence[SearchListener] = ()

    @property
    def lease(self) -> LeaseStore | None:
        """In the study's database."""
        return None

    def fetch(self) -> None:
        """It is there."""

    def begin(self, known: Iterable[int]) -> None:
        """It has been written to already."""

    def checkpoint_dir(self, number: int) -> Path:
        """In the search's folder."""
        return self.folder.checkpoints(number)

    def checkpoint_url(self, number: int) -> str | None:
        """Nowhere else."""
        del number
        return None

    def prune(self, number: int, keep: str | None) -> None:
        """At once."""
        self.folder.prune_checkpoints(number, keep=keep)

    def close(self, patience: float) -> int:
        """Nothing is missing."""
        del patience
        return 0

    def abandon(self) -> None:
        """Nothing is under way."""


def open_store(options: RunOptions) -> AbstractContextManager[SearchStore]:
    """The storage of a run; a name that was taken is given back if the search cannot begin.

    Raises:
        StorageError: the name is no name, taken or missing, or the storage cannot be used.
    """
    if isinstance(options.storage, StorageUrl):
        from tune_rescon.tuning.store.url_store import open_url_store

        return open_url_store(options.storage, options)
    folder = SearchFolder(storage=options.storage.resolve(), name=options.name)
    return _open_local_store(folder, resume=options.resume)


@contextmanager
def _open_local_store(folder: SearchFolder, *, resume: bool) -> Iterator[SearchStore]:
    if not resume:
        with claimed(folder):
            yield LocalStore(folder=folder)
        return
    folder.require()
    folder.check_writable()
    yield LocalStore(folder=folder)


def find_search(
    storage: Path | StorageUrl, name: str, *, cache_root: Path, where: str, files: Sequence[str]
) -> SearchFolder:
    """The folder of a search that has begun, to be read; from a URL, one with copies of some ``files``.

    ``where`` is the flag that names it.

    Raises:
        StorageError: there is no such search, or the storage cannot be read.
    """
    if isinstance(storage, Path):
        folder = SearchFolder(storage=storage.resolve(), name=name)
        folder.require(where=where)
        return folder
    home = SearchHome.find(storage, name, where=where)
    # Beside the folder a run of it may be working in.
    folder = SearchFolder(storage=home.scratch(cache_root) / "copies", name=name)
    with usable(storage):
        for file in files:
            home.remote.download(file, folder.path / file)
    return folder
