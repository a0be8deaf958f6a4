"""The files of one run of a search: a directory, or a scratch directory that is copied to a URL."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from tune_rescon.errors import LeaseLostError, counted
from tune_rescon.storage import (
    Discard,
    Mirror,
    RemoteError,
    SearchHome,
    Sender,
    SharedValue,
    fetch_databases,
    usable,
)
from tune_rescon.tuning.callbacks import SearchCallback
from tune_rescon.tuning.folder import (
    CHECKPOINTS,
    TRIAL_FILES,
    SearchFolder,
    trial_folder,
    unknown_trials,
    usable_directory,
)
from tune_rescon.tuning.lease import LeaseKeeper, LeaseStore
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.stopping.rule import Verdict
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["Reservation", "SearchStore", "UrlStore"]


_PROGRESS = logging.getLogger("tune_rescon.progress")


class SearchStore:
    """The storage of a run: a directory, which keeps every file that is written to it.

    A run uses it in this order:

    1. :func:`.open_store` reserves the name of a new search, or finds the search to resume.
    2. :attr:`lease` is the store of the lease. Once the run holds the lease, :meth:`fetch` brings the files
       from which the run continues.
    3. When the record is open and ``space.yaml`` is written, :meth:`begin` verifies that the storage can be
       written.
    4. The :attr:`callbacks` keep the storage up to date until :meth:`close` or :meth:`abandon`.
    """

    url: str | None = None
    """The URL at which the files are kept; None if they are kept in :attr:`folder`."""
    callbacks: Sequence[SearchCallback] = ()
    """The callbacks that the run must notify of its events."""
    lease: LeaseStore | None = None
    """The store of the lease; None if the study's database holds the lease."""

    def __init__(self, folder: SearchFolder, *, resumed: bool = False) -> None:
        """Keep a search in ``folder``; ``resumed`` is False if this run has reserved its name."""
        self.folder = folder
        self.resumed = resumed

    def fetch(self) -> None:
        """Fetch the newest copies of the files from which this run continues."""

    def begin(self, known: Iterable[int]) -> None:
        """Write to the storage for the first time; ``known`` are the numbers of the trials in the record.

        Directories with checkpoints of other trials are renamed, because their numbers will be used again.

        Raises:
            StorageError: If the storage cannot be written.
        """
        with usable_directory(self.folder.storage):
            moved = self.folder.rename_unknown_checkpoints(set(known))
        _report_moved(self.folder.path / CHECKPOINTS, [path.name for path in moved])

    def checkpoint_dir(self, number: int) -> Path:
        """Return the directory to which a worker process writes a trial's checkpoints."""
        return self.folder.checkpoints(number)

    def checkpoint_url(self, number: int) -> str | None:
        """Return the URL to which a worker process copies a trial's checkpoints; None if it makes no copy."""
        del number
        return None

    def prune(self, number: int, keep: str | None) -> None:
        """Delete a trial's checkpoints except ``keep``, the path or URL that a worker process reported."""
        self.folder.prune_checkpoints(number, keep=keep)

    def close(self, timeout: float) -> int:
        """Wait at most ``timeout`` seconds until all changes are kept; return how many are not kept."""
        del timeout
        return 0

    def abandon(self) -> None:
        """Stop writing, because another driver has the search."""


def _report_moved(place: Path | str, folders: Sequence[str]) -> None:
    if folders:
        _PROGRESS.info(
            f"The record lacks the trials of {counted(len(folders), 'folder')} of checkpoints. It may have"
            " been restored from a backup, or its newest copy was lost with a machine. Moved aside in"
            f" {place}: {', '.join(folders)}"
        )


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


class UrlStore(SearchStore):
    """A scratch directory on this machine, whose files are copied to a URL."""

    def __init__(
        self, home: SearchHome, options: RunOptions, *, reservation: Reservation | None = None
    ) -> None:
        """Keep a search at ``home``. The constructor neither fetches nor sends anything.

        Args:
            home: The search's place at the URL.
            options: The options of this run.
            reservation: The reservation of a new search's name; None for a search that is resumed.
        """
        scratch = home.scratch(options.cache_root.resolve())
        super().__init__(SearchFolder(storage=scratch, name=home.name), resumed=reservation is None)
        self._reservation = reservation
        self.url = home.remote.url
        self._home = home
        # The folder is unique to this run, because an earlier run may have left checkpoints on a node of a
        # trial that never reached the record.
        self._checkpoints = scratch / CHECKPOINTS / uuid.uuid4().hex[:12]
        self._databases = _databases(self.folder, options)
        self._sender = Sender(home.remote, databases=self._databases, files=_files(self.folder))
        self._mirror = Mirror(self._sender)
        self.callbacks = (MirrorCallback(self._mirror),)
        if "study.db" in self._databases:
            self.lease = SharedValue(home.remote.folder("lease"))
        self.begun = False
        """True if the search is at the URL."""

    @override
    def fetch(self) -> None:
        """Fetch the space and the databases.

        A database is the newer of the URL's copy and the copy of an earlier run on this machine.
        """
        with usable(self._home.storage):
            self._sender.term = fetch_databases(self._home.remote, self._databases)
            self._home.remote.download(self.folder.space_yaml.name, self.folder.space_yaml)

    @override
    def begin(self, known: Iterable[int]) -> None:
        """Send the first copies, and move the files of trials aside that the record does not contain.

        Such a trial was begun by a run that died before it could send its study, or the study was restored
        from a backup. Its number will be used again.
        """
        if self._reservation is not None:
            self._reservation.keeper.ensure_held()
        with usable(self._home.storage):
            self._sender.send()
            moved = self._move_unknown(set(known))
        _report_moved(f"{self.url}/{CHECKPOINTS}", moved)
        self.begun = True
        if self._reservation is not None:
            # The search's own lease guards it from now on.
            self._reservation.held.close()
        # A file that remains is harmless: a search that has begun is not opened again.
        with suppress(RemoteError):
            self._home.end_opening()
        self._mirror.start()

    def _move_unknown(self, known: Collection[int]) -> list[str]:
        """Move the files of :func:`.unknown_trials` to new folders; return the names of these folders."""
        remote, top = self._home.remote, f"{CHECKPOINTS}/"
        files = [name.removeprefix(top) for name in remote.names(CHECKPOINTS)]
        moved = unknown_trials(files, known)
        for file in files:
            folder, _, name = file.partition("/")
            if folder in moved and name in TRIAL_FILES:
                remote.move(f"{top}{file}", f"{top}{moved[folder]}/{name}")
        return list(moved.values())

    @override
    def checkpoint_dir(self, number: int) -> Path:
        """Return a folder on the node that runs the trial."""
        return self._checkpoints / Path(trial_folder(number)).name

    @override
    def checkpoint_url(self, number: int) -> str | None:
        return f"{self.url}/{trial_folder(number)}"

    @override
    def prune(self, number: int, keep: str | None) -> None:
        """Delete a trial's checkpoints at the URL once the study there no longer needs them.

        The worker process of a node deletes the copies on that node.
        """
        kept = None if keep is None else keep.rpartition("/")[2]
        self._mirror.forget(Discard(folder=trial_folder(number), names=TRIAL_FILES, keep=kept))

    @override
    def close(self, timeout: float) -> int:
        return self._mirror.close(timeout)

    @override
    def abandon(self) -> None:
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


def _databases(folder: SearchFolder, options: RunOptions) -> Mapping[str, Path]:
    """Return the databases that are files on this machine."""
    databases = {}
    if options.study_url is None:
        databases["study.db"] = folder.study_db
    if options.tracking_uri is None:
        databases["mlflow.db"] = folder.mlflow_db
    return databases


def _files(folder: SearchFolder) -> Mapping[str, Path]:
    written = (folder.trials_csv, folder.best_yaml, folder.report_html, folder.mistakes_json)
    return {path.name: path for path in (*written, folder.log, folder.space_yaml)}
