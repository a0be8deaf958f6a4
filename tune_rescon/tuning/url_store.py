"""A URL as the storage of a run: the name is reserved there, and a scratch directory is copied to it."""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from typing_extensions import override

from tune_rescon.errors import LeaseError, LeaseLostError, NameTakenError
from tune_rescon.storage import (
    Discard,
    Mirror,
    RemoteError,
    SearchHome,
    Sender,
    SharedValue,
    StorageUrl,
    fetch_databases,
    name_taken,
    usable,
)
from tune_rescon.tuning.callbacks import SearchCallback
from tune_rescon.tuning.folder import (
    CHECKPOINTS,
    TRIAL_FILES,
    SearchFolder,
    trial_folder,
)
from tune_rescon.tuning.lease import LeaseKeeper, LeaseStore, hold_lease
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.stopping.rule import Verdict
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "URL_LEASE_FACTOR",
    "MirrorCallback",
    "TakeoverWait",
    "UrlStore",
    "open_url_store",
]

_PROGRESS = logging.getLogger("tune_rescon.progress")

#: Factor by which a lease at a URL is longer. A beat there needs several requests, and each request that the
#: store refuses is retried for half a minute (s3fs's 5 tries of botocore's 5).
URL_LEASE_FACTOR: Final = 4


class TakeoverWait:
    """Waits for another driver to end, within the time that the options of ``resume_or_start`` allow."""

    def __init__(self, options: RunOptions) -> None:
        """Wait for ``options.takeover_seconds`` in all, or not at all without ``resume_or_start``."""
        self._seconds = options.takeover_seconds if options.resume_or_start else 0.0
        self._end: float | None = None

    def wait(self, error: LeaseError) -> None:
        """Wait a while before the next try.

        Raises:
            LeaseError: ``error``, because the time is up.
        """
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._seconds
            if self._seconds > 0:
                _PROGRESS.info(f"{error} Waiting for up to {self._seconds:g} s.")
        if now >= self._end:
            raise error
        time.sleep(min(self._seconds / 20, self._end - now))


class MirrorCallback(SearchCallback):
    """Notifies a mirror of changes. It waits briefly when a trial begins or ends, and never at an epoch."""

    def __init__(self, mirror: Mirror) -> None:
        """Notify ``mirror``."""
        self._mirror = mirror

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        """Send the study before a worker process runs the trial, if sending is quick."""
        self._mirror.flush()

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Mark the study as changed without waiting: the trial's checkpoint holds the epoch already."""
        self._mirror.changed()

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        """Mark the study as changed; the next copy includes the note."""
        self._mirror.changed()

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        """Send the trial's outcome, which determines which checkpoints can be deleted."""
        self._mirror.flush()


_TRIAL: Final = re.compile(rf"{CHECKPOINTS}/trial_(\d+)/(.*)")


class UrlStore:
    """A :class:`.SearchStore` at a URL."""

    def __init__(
        self, home: SearchHome, options: RunOptions, *, reservation: Reservation | None = None
    ) -> None:
        """Keep a search at ``home``. The constructor neither fetches nor sends anything.

        Args:
            home: the search's place at the URL.
            options: the options of this run.
            reservation: the reservation of a new search's name; None for a search that is resumed.
        """
        self.resumed = reservation is None
        self._reservation = reservation
        scratch = home.scratch(options.cache_root.resolve())
        self.folder = SearchFolder(storage=scratch, name=home.name)
        self.url = home.remote.url
        self._home = home
        # The folder is unique to this run, because an earlier run may have left checkpoints on a node of a
        # trial that never reached the record.
        self._checkpoints = scratch / CHECKPOINTS / uuid.uuid4().hex[:12]
        self._databases = _databases(self.folder, options)
        self._sender = Sender(home.remote, databases=self._databases, files=_files(self.folder))
        self._mirror = Mirror(self._sender)
        self._begun = False

    @property
    def callbacks(self) -> Sequence[SearchCallback]:
        """A callback that notifies the mirror."""
        return (MirrorCallback(self._mirror),)

    @property
    def lease(self) -> LeaseStore | None:
        """The store of the lease at the URL; None if the study is in a separate database."""
        return SharedValue(self._home.remote.folder("lease")) if "study.db" in self._databases else None

    @property
    def begun(self) -> bool:
        """True if the search is at the URL."""
        return self._begun

    def fetch(self) -> None:
        """Fetch the databases: the newer of the URL's copy and the copy of an earlier run on this machine."""
        with usable(self._home.storage):
            self._sender.term = fetch_databases(self._home.remote, self._databases)

    def begin(self, known: Iterable[int]) -> None:
        """Send the first copies, and delete the files of trials that the record does not contain.

        A run that died before it could send its study began such a trial. The trial's number will be used
        again.
        """
        numbers = set(known)
        if self._reservation is not None:
            self._reservation.keeper.ensure_held()
        with usable(self._home.storage):
            self._sender.send()
            for name in self._home.remote.names(CHECKPOINTS):
                trial = _TRIAL.fullmatch(name)
                if trial and int(trial[1]) not in numbers and trial[2] in TRIAL_FILES:
                    self._home.remote.delete(name)
        self._begun = True
        if self._reservation is not None:
            # The search's own lease guards it from now on.
            self._reservation.held.close()
        # A file that stays is of no harm: a search that has begun is not opened again.
        with suppress(RemoteError):
            self._home.opened()
        self._mirror.start()

    def checkpoint_dir(self, number: int) -> Path:
        """Return a folder on the node that runs the trial."""
        return self._checkpoints / Path(trial_folder(number)).name

    def checkpoint_url(self, number: int) -> str | None:
        """Return the trial's folder within the search's folder at the URL."""
        return f"{self.url}/{trial_folder(number)}"

    def prune(self, number: int, keep: str | None) -> None:
        """Delete a trial's checkpoints at the URL once the study there no longer needs them.

        The worker process of a node deletes the copies on that node.
        """
        kept = None if keep is None else keep.rpartition("/")[2]
        self._mirror.forget(Discard(folder=trial_folder(number), names=TRIAL_FILES, keep=kept))

    def close(self, timeout: float) -> int:
        """Send the remaining changes within ``timeout`` seconds; return the number of unsent changes."""
        return self._mirror.close(timeout)

    def abandon(self) -> None:
        """Stop sending, because another driver has the search."""
        self._mirror.abandon()


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """The name of a new search at a URL, which one driver holds by a lease until the search has begun.

    A driver that dies before that leaves a lease without a beat. The next driver takes the name over.
    """

    home: SearchHome
    keeper: LeaseKeeper
    held: ExitStack
    """Gives the lease back when it is closed."""

    def cancel(self, scratch: Path) -> None:
        """Release the name of a search that could not begin, and delete its files in ``scratch``.

        If the URL is unreachable by now, the name stays taken until the next driver takes it over. If another
        driver has taken it over already, its files stay.
        """
        with suppress(RemoteError, LeaseLostError):
            self.keeper.ensure_held()
            shutil.rmtree(scratch, ignore_errors=True)
            self.home.remove()


@contextmanager
def open_url_store(storage: StorageUrl, options: RunOptions) -> Iterator[UrlStore]:
    """Reserve a new search's name at the URL, or find the search to resume.

    Raises:
        LeaseError: another driver has reserved the name and is about to begin the search.
        StorageError: the name is invalid, taken or missing, or the URL cannot be used.
    """
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
        LeaseError: another driver has reserved the name.
        NameTakenError: a search of the name has begun.
    """
    takeover = TakeoverWait(options)
    while True:
        home = SearchHome.look(storage, options.name)
        if home is None:
            with suppress(NameTakenError):
                home = SearchHome.create(storage, options.name)
        if home is None:
            continue  # another driver was faster
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
            home.clear()
        shutil.rmtree(home.scratch(options.cache_root.resolve()), ignore_errors=True)
        return reservation


def _take(home: SearchHome, options: RunOptions) -> Reservation:
    """Hold the lease of a reservation.

    Raises:
        LeaseError: another driver holds it.
    """
    seconds = URL_LEASE_FACTOR * options.lease_seconds
    with ExitStack() as held, usable(home.storage):
        lease = hold_lease(SharedValue(home.opening), name=options.name, seconds=seconds)
        keeper = held.enter_context(lease)
        return Reservation(home=home, keeper=keeper, held=held.pop_all())


def _databases(folder: SearchFolder, options: RunOptions) -> Mapping[str, Path]:
    """Return the databases that are files on this machine."""
    databases = {}
    if options.study_url is None:
        databases["study.db"] = folder.path / "study.db"
    if options.tracking_uri is None:
        databases["mlflow.db"] = folder.storage / "mlflow.db"
    return databases


def _files(folder: SearchFolder) -> Mapping[str, Path]:
    written = (folder.trials_csv, folder.best_yaml, folder.report_html, folder.mistakes_json)
    return {path.name: path for path in (*written, folder.log, folder.space_yaml)}
