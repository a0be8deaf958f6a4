"""MLflow's store: explain an error that a store raises, create a local one, and update it after a move.

MLflow stores absolute paths of artifacts. Without an update, no artifact would be found after a storage was
moved, and a copy of a storage would write into the artifacts of the original.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Final

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DBAPIError

from tune_rescon.passwords import hide_passwords
from tune_rescon.storage import sqlite_file, sqlite_url
from tune_rescon.tracking.worker_client import CallError, RetryPolicy

__all__ = ["alone_at", "deleted_experiment", "fatal_error_hint", "follow_artifacts", "make_local_store"]

_LOGGER: Final = logging.getLogger(__name__)

#: MLflow's codes for HTTP's 401.
_UNKNOWN_USER: Final = frozenset({"CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"})

_ANOTHER: Final = "name another store with --tracking-uri."

#: Part of a database's error message to remedy. Locked and full databases are excluded, because these errors
#: are temporary.
_DATABASE: Final = {
    "not a database": f"The file is no database. Move it away, or {_ANOTHER}",
    "malformed": f"The database is damaged. Restore a copy of it, or {_ANOTHER}",
    "readonly database": f"The database cannot be written. Change its permissions, or {_ANOTHER}",
}


def fatal_error_hint(error: Exception, uri: str) -> str | None:
    """Return how to fix an error that every later call would raise too; None if a retry may succeed."""
    message = str(error)
    if isinstance(error, MlflowException) and error.error_code in _UNKNOWN_USER:
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    if "out-of-date database schema" in message:
        versions = re.search(r"found version (\w+), but expected (\w+)", message)
        found = f" (its tables have version {versions[1]}, not {versions[2]})" if versions else ""
        return (
            f"Another version of MLflow created its database{found}. If that was an older one, make a copy"
            f" and run `mlflow db upgrade {hide_passwords(uri)}`; if a newer one, install it."
        )
    if isinstance(error, DBAPIError):
        return next((hint for sign, hint in _DATABASE.items() if sign in str(error.orig)), None)
    return None


def deleted_experiment(name: str, experiment_id: str) -> str:
    """Return a message that an experiment was deleted and accepts no runs, with the command to restore it.

    >>> deleted_experiment("digits", "3")
    "the experiment 'digits' is deleted. Restore it: `mlflow experiments restore --experiment-id 3`"
    """
    way_out = f"Restore it: `mlflow experiments restore --experiment-id {experiment_id}`"
    return f"the experiment {name!r} is deleted. {way_out}"


def alone_at(uri: str) -> AbstractContextManager[object]:
    """Lock a SQLite store against other writers on this machine, with a lock file beside the store.

    For other stores, the returned context manager does nothing.
    """
    file = sqlite_file(uri)
    if file is None:
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.with_name(f".{file.name}.lock"))


def make_local_store(uri: str) -> None:
    """Create the store if it is a SQLite file that does not exist. Call it within :func:`alone_at`."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    half = file.with_name(f".{file.name}.half")
    for remains in (half, half.with_name(f"{half.name}-journal")):
        remains.unlink(missing_ok=True)
    # Any query creates the store.
    MlflowClient(sqlite_url(half, driver="sqlite+pysqlite")).search_experiments()
    half.replace(file)


#: Seconds to wait for another writer. After that, the call fails and is retried.
_BUSY_SECONDS: Final = 5.0

#: Tables and columns in which MLflow stores the paths of artifacts (MLflow 3.0 and later).
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

#: Finds experiments that searches have created, by the tag that searches set, while the storage was at
#: another path.
_MOVED: Final = """
    SELECT DISTINCT artifact_location FROM experiments
    JOIN experiment_tags ON experiment_tags.experiment_id = experiments.experiment_id
    WHERE experiment_tags.key = 'mlflow.experiment.primaryMetric.name'
    AND artifact_location LIKE 'file://%/' || ? AND artifact_location != ?
"""


def follow_artifacts(file: Path, artifacts: Path) -> None:
    """Change the artifact paths in the SQLite store ``file`` to the directory ``artifacts``.

    Only experiments that a search has created in a storage's own directory are changed. A store with other
    tables is left unchanged, and a warning is logged.

    Raises:
        CallError: If another process has locked the store. Without the change, artifacts would be written to
            the storage's former path.
    """
    here = artifacts.resolve().as_uri()
    uri = f"{file.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as store, store:
            for (there,) in store.execute(_MOVED, (artifacts.name, here)).fetchall():
                for table, column in _PLACES:
                    store.execute(
                        f"UPDATE {table} SET {column} = :here || substr({column}, length(:there) + 1)"
                        f" WHERE {column} = :there OR {column} LIKE :there || '/%'",
                        {"here": here, "there": there},
                    )
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise CallError(str(error), RetryPolicy.RETRY) from error
        _LOGGER.warning("the artifact paths in %s could not be read: %s", file, error)
