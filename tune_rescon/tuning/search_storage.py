"""Where one run of a search keeps its files: a directory, or a scratch directory and a URL."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from typing_extensions import override

from tune_rescon.storage import (
    Discard,
    Mirror,
    RemoteError,
    SearchHome,
    Sender,
    SharedValue,
    StorageUrl,
    fetch_databases,
    usable,
)
from tune_rescon.tuning.callbacks import SearchListener
from tune_rescon.tuning.folder import CHECKPOINTS, TRIAL_FILES, SearchFolder, claimed, trial_folder
from tune_rescon.tuning.lease import LeaseStore
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.schedulers import Verdict
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "LocalStore",
    "MirrorListener",
    "SearchStore",
    "UrlStore",
    "find_search",
    "open_store",
    "open_url_store",
]


class MirrorListener(SearchListener):
    """Waits a little where a trial begins or ends, and never at an epoch."""

    def __init__(self, mirror: Mirror) -> None:
        """Tell ``mirror``."""
        self._mirror = mirror

    @override
    def search_started(self, trials: Sequence[TrialRecord]) -> None:
        """Nothing: that much was sent when the storage was first written."""

    @override
    def trial_started(self, trial: TrialRecord) -> None:
        """Before a worker has the trial it is in the study at the URL, if that is quick."""
        self._mirror.flush()

    @override
    def epoch_done(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Its checkpoint holds the epoch already."""
        self._mirror.changed()

    @override
    def trial_noted(self, trial: TrialRecord, text: str) -> None:
        """It can wait for the next copy."""
        self._mirror.changed()

    @override
    def trial_ended(self, trial: TrialRecord) -> None:
        """What became of it, and with that which checkpoints can go."""
        self._mirror.flush()


_TRIAL: Final = re.compile(rf"{CHECKPOINTS}/trial_(\d+)/(.*)")


class UrlStore:
    """A :class:`.SearchStore` at a URL."""

    def __init__(self, home: SearchHome, options: RunOptions) -> None:
        """Keep a search at ``home``. Nothing is fetched or sent yet."""
        scratch = home.scratch(options.cache_root.resolve())
        self.folder = SearchFolder(storage=scratch, name=home.name)
        self.url = home.remote.url
        self._home = home
        # Of this run alone: what another one left on a node may be of a trial that never was.
        self._checkpoints = scratch / CHECKPOINTS / uuid.uuid4().hex[:12]
        self._databases = _databases(self.folder, options)
        self._sender = Sender(home.remote, databases=self._databases, files=_files(self.folder))
        self._mirror = Mirror(self._sender)
        self._begun = False

    @property
    def listeners(self) -> Sequence[SearchListener]:
        """One that tells the mirror."""
        return (MirrorListener(self._mirror),)

    @property
    def lease(self) -> LeaseStore | None:
        """At the URL, unless the study is in a database of its own."""
        return SharedValue(self._home.remote.folder("lease")) if "study.db" in self._databases else None

    @property
    def begun(self) -> bool:
        """Whether the search is at the URL."""
        return self._begun

    def fetch(self) -> None:
        """The databases: the newer of what is at the URL and what this machine has of an earlier run."""
        with usable(self._home.storage):
            self._sender.term = fetch_databases(self._home.remote, self._databases)

    def begin(self, known: Iterable[int]) -> None:
        """Send the first copies, and delete what belongs to trials that the record has never heard of.

        Such a trial was begun by a run that died before it could send its study; its number will be drawn
        again.
        """
        numbers = set(known)
        with usable(self._home.storage):
            self._sender.send()
            for name in self._home.remote.names(CHECKPOINTS):
                trial = _TRIAL.fullmatch(name)
                if trial and int(trial[1]) not in numbers and trial[2] in TRIAL_FILES:
                    self._home.remote.delete(name)
        self._begun = True
        self._mirror.start()

    def checkpoint_dir(self, number: int) -> Path:
        """A folder of the node the trial runs on."""
        return self._checkpoints / Path(trial_folder(number)).name

    def checkpoint_url(self, number: int) -> str | None:
        """In the search's folder."""
        return f"{self.url}/{trial_folder(number)}"

    def prune(self, number: int, keep: str | None) -> None:
        """Once the study at the URL no longer needs them; a node's own copies are its worker's to delete."""
        kept = None if keep is None else keep.rpartition("/")[2]
        self._mirror.forget(Discard(folder=trial_folder(number), names=TRIAL_FILES, keep=kept))

    def close(self, patience: float) -> int:
        """Send what is left."""
        return self._mirror.close(patience)

    def abandon(self) -> None:
        """Leave the URL to the other driver."""
        self._mirror.abandon()


@contextmanager
def open_url_store(storage: StorageUrl, options: RunOptions) -> Iterator[UrlStore]:
    """Take a new search's name at the URL, or find the search to go on with.

    Raises:
        StorageError: the name is none, taken or missing, or the URL cannot be used.
    """
    if options.resume:
        store = UrlStore(SearchHome.find(storage, options.name), options)
        store.folder.path.mkdir(parents=True, exist_ok=True)
        yield store
        return
    home = SearchHome.create(storage, options.name)
    store = UrlStore(home, options)
    try:
        store.folder.create()
        yield store
    except BaseException:
        if not store.begun:
            shutil.rmtree(store.folder.storage, ignore_errors=True)
            # If the URL is gone by now, the name stays taken, by a search that its finder says is none.
            with suppress(RemoteError):
                home.remove()
        raise


def _databases(folder: SearchFolder, options: RunOptions) -> Mapping[str, Path]:
    """Those that are files of this machine."""
    databases = {}
    if options.study_url is None:
        databases["study.db"] = folder.path / "study.db"
    if options.tracking_uri is None:
        databases["mlflow.db"] = folder.storage / "mlflow.db"
    return databases


def _files(folder: SearchFolder) -> Mapping[str, Path]:
    files = (folder.trials_csv, folder.best_yaml, folder.report_html, folder.log, folder.space_yaml)
    return {path.name: path for path in files}


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
