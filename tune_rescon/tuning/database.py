"""Open the database of a study, and turn its errors into messages for the user."""

from __future__ import annotations

import functools
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import optuna

from tune_rescon.errors import RecordError, StorageError, first_line, format_error
from tune_rescon.storage import sqlite_file

__all__ = [
    "create_study",
    "find_study",
    "holds_studies",
    "missing_study",
    "name_objectives",
    "open_database",
    "unwritable",
]


def open_database(url: str, *, busy_seconds: float, create: bool = False) -> optuna.storages.RDBStorage:
    """Connect to a database.

    Args:
        url: The database's URL.
        busy_seconds: Seconds that a writer waits for another writer's transaction on a SQLite file.
        create: Whether to create the SQLite file and the tables if they are missing, as for a new search.

    Raises:
        StorageError: If the database cannot be reached, it is not a database, it is missing and ``create`` is
            False, or another version of Optuna created its tables.
    """
    # Imported here: a dry run reads this module and opens no database.
    from sqlalchemy.exc import SQLAlchemyError

    file = sqlite_file(url)
    if file is not None and not create and not holds_studies(file):
        raise missing_study(file)
    try:
        if file is not None and create:
            file.touch()
        return optuna.storages.RDBStorage(url, engine_kwargs=_engine_kwargs(file, busy_seconds))
    except (ImportError, OSError, SQLAlchemyError, ValueError) as error:
        # The URL itself is not shown: it may hold a password.
        rule = "must be the URL of a database that can be reached"
        got = first_line(error)
        hint = "For a local file give sqlite:///PATH/study.db."
        if isinstance(error, ImportError):
            hint = "Install the database's driver, for PostgreSQL by: pip install 'tune_rescon[postgresql]'."
        raise StorageError(format_error(rule, got=got, where="--study", hint=hint)) from None
    except RuntimeError as error:
        raise _schema_error(url, str(error)) from None


#: The version of Optuna that made the tables.
_WRITER: Final = "SELECT library_version FROM version_info"


def _schema_error(url: str, message: str) -> StorageError:
    """Return the error for tables of another version of Optuna; ``message`` is Optuna's."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        writer = connection.execute(sqlalchemy.text(_WRITER)).scalar()
    if "storage upgrade" in message:
        # The hint omits the actual URL, because a report reads a copy of the database.
        hint = (
            "Keep a copy, then run `optuna storage upgrade --storage URL`, where URL is the database's"
            " (sqlite:///STORAGE/NAME/study.db unless --study names another)."
        )
    else:
        hint = f"Install optuna {writer} or later."
    rule = f"a study must have the tables of optuna {optuna.__version__}, which is installed here"
    return StorageError(format_error(rule, got=f"those of optuna {writer}", where="--study", hint=hint))


def _engine_kwargs(file: Path | None, busy_seconds: float) -> dict[str, Any]:
    """Return engine arguments that connect to a SQLite file and never create it, even if it is deleted."""
    if file is None:
        return {}
    return {"creator": functools.partial(_connect, f"{file.absolute().as_uri()}?mode=rw", busy_seconds)}


def _connect(uri: str, busy_seconds: float) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=busy_seconds, check_same_thread=False)
    # Otherwise SQLite accepts the epochs of a trial that a restored copy of the file does not have.
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def unwritable(url: str, error: Exception) -> RecordError:
    """Return the error for a write to the record at ``url`` that failed with ``error`` during a search."""
    file = sqlite_file(url)
    message = first_line(error.__cause__ or error)
    if file is not None and not holds_studies(file):
        rule = "the record must stay where it is while the search runs"
        hint = "Put the file back: a resumed search has only what the file holds."
        return RecordError(format_error(rule, got=f"{file}, which is gone ({message})", hint=hint))
    if "FOREIGN KEY" in message:
        rule = "the record must have the trials of this search"
        hint = "It was replaced by another copy while the search ran. Resume what that copy holds."
        return RecordError(format_error(rule, got=f"{file}, which lacks one", hint=hint))
    hint = "Every earlier epoch is recorded. Free space on the disk, or repair the database; then resume."
    got = f"{file or 'its database'}: {message}"
    return RecordError(
        format_error("each epoch of a trial must be written to the record", got=got, hint=hint)
    )


def missing_study(file: Path, why: str = "") -> StorageError:
    """Return the error for a record whose SQLite file is missing or invalid; ``why`` is SQLite's message."""
    hint = "restore the file from a copy: without its record a search cannot be resumed or read."
    if file.exists():
        got, hint = f"{file} ({why or 'no study is in it'})", hint.capitalize()
    else:
        got = f"{file}, which does not exist"
        hint = f"If the search was given a --study, give it here too. Otherwise {hint}"
    return StorageError(
        format_error("a search's record must be a database that can be read", got=got, hint=hint)
    )


def create_study(
    storage: optuna.storages.RDBStorage, name: str, directions: list[optuna.study.StudyDirection]
) -> int:
    """Create a study and return its id.

    Raises:
        StorageError: If the database already has a study of that name.
    """
    try:
        # The study always has a name: Optuna's default name would merge two searches in one database.
        return storage.create_new_study(directions, name)
    except optuna.exceptions.DuplicatedStudyError:
        study_id = storage.get_study_id_from_name(name)
        # A driver that died before its first trial leaves an empty study, which is used again. The lease
        # prevents two live drivers from sharing it.
        is_empty = storage.get_n_trials(study_id) == 0
        if is_empty and storage.get_study_directions(study_id) == directions:
            return study_id
        if is_empty:
            hint = (
                "That study has no trials and another metric. Delete it with `optuna delete-study`, or give"
                " another --name."
            )
        else:
            hint = f"Resume it with --resume {name} and the --storage of its folder, or give another --name."
        rule = f"a study named {name!r} is already in the database"
        raise StorageError(format_error(rule, where="--study", hint=hint)) from None


def name_objectives(storage: optuna.storages.RDBStorage, name: str, objectives: list[str]) -> None:
    """Name the study's objectives, so that optuna-dashboard shows the names instead of numbers."""
    with warnings.catch_warnings():
        # Experimental in Optuna; the names are only shown.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.load_study(study_name=name, storage=storage).set_metric_names(objectives)


def find_study(storage: optuna.storages.RDBStorage, name: str, *, any_name: bool = False) -> int:
    """Return the id of a study.

    Args:
        storage: The database.
        name: The study's name.
        any_name: If the database holds a single study, return that study whatever its name. Use this only for
            reading: a renamed folder still belongs to the search, but a copy of a folder must not write to
            the runs of the original.

    Raises:
        StorageError: If no study has that name; the error lists the names that exist.
    """
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        studies = storage.get_all_studies()
    if any_name and len(studies) == 1:
        return studies[0]._study_id
    known = ", ".join(repr(study.study_name) for study in studies) or "none"
    file = sqlite_file(str(storage.url))
    if file is not None and file.name == "study.db" and file.parent.name == name and len(studies) == 1:
        other = studies[0].study_name
        rule = "a search must be in the folder of its name"
        got = f"{name}: {file.parent} holds the search {other!r}"
        hint = f"Rename the folder to {other}, then give --resume {other}."
        raise StorageError(format_error(rule, got=got, where="--resume", hint=hint))
    rule = f"there is no study named {name!r} in the database"
    raise StorageError(format_error(rule, where="--study", hint=f"It holds: {known}."))


def holds_studies(file: Path) -> bool:
    """Return whether a file has Optuna's tables; True if it is not a database, which Optuna then rejects."""
    if not file.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'studies'"
            return bool(database.execute(query).fetchone()[0])
    except sqlite3.Error:
        return True
