"""A search whose storage is a URL: it works in a scratch directory, and keeps the URL up to date.

At the URL is what a storage directory has, and what only a URL needs::

    <url>/<name>/space.yaml study.db trials.csv best.yaml report.html search.log checkpoints/
                 mlflow.db      unless --tracking-uri names a store: one for each search, because a file at a
                                URL can have one writer only
                 search.json    the search's identity
                 lease/         who drives it

The study at the URL may lag some seconds behind. Checkpoints do not: a worker sends them before it reports
the epoch, and a trial that is taken up again reports whatever the study has not heard of.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

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
from tune_rescon.tuning.listener import SearchListener
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.ownership.lease import LeaseStore
from tune_rescon.tuning.record.folder import SearchFolder
from tune_rescon.tuning.record.places import CHECKPOINTS, TRIAL_FILES, trial_folder
from tune_rescon.tuning.store.mirror_listener import MirrorListener

__all__ = ["UrlStore", "open_url_store"]

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
