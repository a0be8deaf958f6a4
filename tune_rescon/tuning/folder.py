"""The files of one search: their paths, and atomic writes to them."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from tune_rescon.atomic_write import atomic_write
from tune_rescon.config import trial_name
from tune_rescon.csv_cells import csv_line
from tune_rescon.errors import StorageError, format_error
from tune_rescon.spaces import yaml_text
from tune_rescon.storage import (
    StorageUrl,
    check_name,
    check_new_name,
    name_taken,
    name_without_space,
    no_such_search,
    parse_storage,
    sqlite_url,
)
from tune_rescon.tuning.trial import INACTIVE, TABLE_COLUMNS, TrialRecord

__all__ = [
    "CHECKPOINTS",
    "TRIAL_FILES",
    "SearchFolder",
    "holds_trials",
    "recorded_checkpoint",
    "resolve_storage",
    "trial_folder",
    "unknown_trials",
    "usable_directory",
    "write_atomically",
]


#: The directory of all trials' checkpoints.
CHECKPOINTS: Final = "checkpoints"

#: The files that a trial writes (:class:`tune_rescon.training.checkpoint.CheckpointFolder`). The package
#: deletes only these: any other file in the directory belongs to the user.
TRIAL_FILES: Final = frozenset(
    {"best.ckpt", "best.partial", "last.ckpt", "last.partial", "last.previous.ckpt"}
)


def trial_folder(number: int) -> str:
    """Return the directory of one trial's checkpoints, relative to the search's folder.

    >>> trial_folder(7)
    'checkpoints/trial_0007'
    """
    return f"{CHECKPOINTS}/{trial_name(number)}"


def recorded_checkpoint(number: int, file: str | None) -> str | None:
    """Return the path of a trial's checkpoint as the record stores it; None if ``file`` is None.

    ``file`` is a path or URL. Only its file name is used: earlier versions recorded absolute paths, and the
    folder may have been moved or copied after that.

    >>> recorded_checkpoint(7, "/old/runs/a/checkpoints/trial_0007/best.ckpt")
    'checkpoints/trial_0007/best.ckpt'
    """
    if file is None:
        return None
    return f"{trial_folder(number)}/{file.rpartition('/')[2]}"


def unknown_trials(files: Iterable[str], known: Collection[int]) -> dict[str, str]:
    """Return new names for the directories of trials that the record does not have, by their present names.

    A record that was restored from a backup, or whose newest copy was lost with a machine, lacks the trials
    since. Their numbers are used again, and their files may be all that is left of them.

    Args:
        files: The files of all trials, by their paths in :data:`CHECKPOINTS`.
        known: The numbers in the record.

    >>> unknown_trials(["trial_0001/last.ckpt", "trial_0002.lost_1/last.ckpt", "trial_0002/last.ckpt"], {1})
    {'trial_0002': 'trial_0002.lost_2'}
    """
    parts = [file.partition("/") for file in files]
    taken, moved = {directory for directory, _, _ in parts}, dict[str, str]()
    for directory, _, name in parts:
        number = directory.removeprefix("trial_")
        is_trial = number.isdecimal() and directory == trial_name(int(number))
        if is_trial and int(number) not in known and name in TRIAL_FILES:
            new_names = (f"{directory}.lost_{copy}" for copy in count(1))
            moved[directory] = next(new for new in new_names if new not in taken)
    return moved


_ENVIRONMENT: Final = "TUNE_RESCON_STORAGE"


def resolve_storage(text: str | None = None) -> Path | StorageUrl:
    """Return the storage that a user named: a directory or a URL.

    If ``text`` is empty or None, it is the storage in ``$TUNE_RESCON_STORAGE``, or ``./runs`` without that.

    Raises:
        StorageError: As :func:`.parse_storage`.
    """
    return parse_storage(text or os.environ.get(_ENVIRONMENT) or "runs")


class _Within:
    """A file or directory of a search, by its name in the search's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: SearchFolder, owner: type[SearchFolder]) -> Path:
        return folder.path / self._name


@dataclass(frozen=True, kw_only=True)
class SearchFolder:
    """The folder ``<storage>/<name>/`` of a search and its files."""

    storage: Path
    name: str

    space_yaml = _Within("space.yaml")
    """The resolved space."""
    study_db = _Within("study.db")
    """The SQLite file of the study."""
    trials_csv = _Within("trials.csv")
    """The table of the trials, with one row per trial."""
    best_yaml = _Within("best.yaml")
    """The best trial's configuration and value."""
    report_html = _Within("report.html")
    """The report, which a browser opens."""
    mistakes_json = _Within("mistakes.json")
    """The best network's mistakes, which the report shows."""
    plots = _Within("plots")
    """The directory of the report's plots as images."""
    log = _Within("search.log")
    """The log of the libraries."""
    tensorboard = _Within("tensorboard")
    """TensorBoard's event files, one directory per trial, if the user requested them."""

    @property
    def path(self) -> Path:
        """The directory of the search."""
        return self.storage / self.name

    @property
    def study_url(self) -> str:
        """The study's URL, unless ``--study`` names a database."""
        return sqlite_url(self.study_db)

    @property
    def mlflow_db(self) -> Path:
        """The SQLite file of the storage's own MLflow store."""
        return self.storage / "mlflow.db"

    @property
    def mlflow_uri(self) -> str:
        """The URI of the tracking store, which all searches of this storage share."""
        plain = sqlite_url(self.mlflow_db)
        # MLflow 3.17 creates the directory of a `sqlite:///` URI without unquoting it. If the storage's name
        # must be quoted, an empty directory appears beside the storage. MLflow creates no directory for a URI
        # that names the driver.
        return plain if "%" not in plain else sqlite_url(self.mlflow_db, driver="sqlite+pysqlite")

    @property
    def mlflow_artifacts(self) -> Path:
        """The directory of the artifacts of the storage's own MLflow store."""
        return self.storage / "mlartifacts"

    def checkpoints(self, number: int) -> Path:
        """Return the directory of one trial's checkpoints."""
        return self.path / trial_folder(number)

    def create(self) -> None:
        """Create the directory.

        Raises:
            NameTakenError: If the name is taken.
            StorageError: If the name is invalid, or the storage cannot be written.
        """
        check_new_name(self.name)
        with usable_directory(self.storage):
            self.storage.mkdir(parents=True, exist_ok=True)
            try:
                self.path.mkdir()
            except FileExistsError:
                if not self.space_yaml.is_file() and holds_trials(self.study_db):
                    raise name_without_space(self.path) from None
                raise name_taken(self.name, self.path, begun=self.space_yaml.is_file()) from None

    def require(self, *, where: str = "--resume") -> None:
        """Check that a search of this name exists; ``where`` is the flag that names it.

        Raises:
            StorageError: If no search has that name (the error lists the names that exist), or the name is
                invalid.
        """
        check_name(self.name, where=where)
        with usable_directory(self.storage):
            if self.space_yaml.is_file():
                return
            names = sorted(path.parent.name for path in self.storage.glob("*/space.yaml"))
        raise no_such_search(self.name, self.storage, names, where=where)

    def check_writable(self) -> None:
        """Check that this process may write to the search; call this method before the first write.

        Raises:
            StorageError: If the search's folder or record cannot be written, as in another user's storage.
        """
        for path in (self.path, self.study_db, self.log):
            if path.exists() and not os.access(path, os.W_OK):
                rule = "a resumed search must be one that this user can write to"
                hint = "To continue its trials, copy its folder to a storage of your own."
                got = f"{path}, which cannot be written"
                raise StorageError(format_error(rule, got=got, where="--resume", hint=hint))

    def remove(self, *, with_storage: bool) -> None:
        """Delete the files of a search that never began.

        ``with_storage`` is True if the search also created the storage, which is then deleted if it is empty.
        """
        shutil.rmtree(self.path, ignore_errors=True)
        if with_storage and not any(self.storage.iterdir()):
            self.storage.rmdir()

    def prune_checkpoints(self, number: int, *, keep: str | None) -> None:
        """Delete the files that a trial wrote, except ``keep``; delete the directory too if it is then empty.

        ``keep`` is the path or URL of a file; only its name is used. If that file is missing, nothing is
        deleted, because the trial is among the best and has only its other files left.
        """
        directory = self.checkpoints(number)
        if not directory.is_dir():
            return
        kept = None if keep is None else Path(keep).name
        if kept is not None and not (directory / kept).is_file():
            return
        for name in TRIAL_FILES - {kept}:
            (directory / name).unlink(missing_ok=True)
        if not any(directory.iterdir()):
            directory.rmdir()

    def rename_unknown_checkpoints(self, known: Collection[int]) -> list[Path]:
        """Rename the directories of :func:`unknown_trials`; return the new directories."""
        top = self.path / CHECKPOINTS
        files = sorted(path.relative_to(top).as_posix() for path in top.glob("trial_*/*"))
        return [(top / old).rename(top / new) for old, new in unknown_trials(files, known).items()]

    def write_trials(
        self, trials: Iterable[TrialRecord], parameters: Iterable[str], *, at_url: bool = False
    ) -> None:
        """Write ``trials.csv``: the state, values and parameters of each trial, ordered by number.

        A row contains the checkpoint only if the file exists. It contains ``none`` for each parameter that
        the trial does not have.

        Args:
            trials: All trials of the search.
            parameters: The names of the space's parameters. The columns of parameters that only trials of
                earlier versions of the space have follow them.
            at_url: Whether the checkpoints are kept at a URL. The record is then trusted instead of the
                files, because a checkpoint that is deleted at the URL is also removed from the record.
        """
        trials = tuple(trials)
        names = list(dict.fromkeys([*parameters, *(name for t in trials for name in t.parameters)]))
        lines = [csv_line([*TABLE_COLUMNS, "values", "checkpoint", *names])]
        for trial in trials:
            settings = [trial.setting(name, INACTIVE) for name in names]
            checkpoint = trial.checkpoint or ""
            is_there = at_url or (self.path / checkpoint).is_file()
            values = " ".join(map(repr, trial.values))
            row = [*trial.row().values(), values, checkpoint if is_there else "", *settings]
            lines.append(csv_line(row))
        write_atomically(self.trials_csv, "".join(lines))

    def write_best(self, best: Mapping[str, Any]) -> None:
        """Write ``best.yaml``."""
        write_atomically(self.best_yaml, yaml_text(best, block=True))


@contextmanager
def usable_directory(storage: Path) -> Iterator[None]:
    """Convert an operating system error in the block to an error message for the user.

    Only the user can correct such an error, and no search has begun yet.

    Raises:
        StorageError: If the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        rule = "the storage must be a directory that can be read and written"
        got = f"{storage} ({error.strerror})"
        raise StorageError(format_error(rule, got=got, where="--storage")) from None


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` in one step, so that a reader never sees a partial file."""
    with atomic_write(path, durable=True) as scratch:
        scratch.write_text(text, encoding="utf-8")


def holds_trials(study_db: Path) -> bool:
    """Return whether a file is the record of a search that has trials.

    A driver writes ``space.yaml`` before its first trial. Without that file, such a record is all that is
    left of a search, or all that was restored of it.
    """
    if not study_db.is_file() or not study_db.stat().st_size:
        return False
    try:
        with closing(sqlite3.connect(f"{study_db.absolute().as_uri()}?mode=rw", uri=True)) as database:
            return database.execute("SELECT 1 FROM trials LIMIT 1").fetchone() is not None
    except sqlite3.Error as error:
        # A file that is cut short, or locked by another program, may hold trials. A new one has no tables.
        return "no such table" not in str(error)
