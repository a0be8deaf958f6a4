"""MLflow's store: create a local one, and explain an error that a store raises."""

from __future__ import annotations

import re
from typing import Final

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import DBAPIError

from tune_rescon.passwords import hide_passwords
from tune_rescon.storage import sqlite_file, sqlite_url

__all__ = [
    "deleted_experiment",
    "fatal_error_hint",
    "make_local_store",
]


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
    """Return how to fix an error that every later call would raise too; None if a retry may succeed.

    Args:
        error: The exception that a call to MLflow has raised.
        uri: The tracking URI.
    """
    message = str(error)
    if isinstance(error, MlflowException) and error.error_code in _UNKNOWN_USER:
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
    if "out-of-date database schema" in message:
        versions = re.search(r"found version (\w+), but expected (\w+)", message)
        found = f" (its tables have version {versions[1]}, not {versions[2]})" if versions else ""
        return (
            f"Another version of MLflow has made its database{found}. If that was an older one, take a copy"
            f" and run `mlflow db upgrade {hide_passwords(uri)}`; if a newer one, install it."
        )
    if isinstance(error, DBAPIError):
        return next((words for sign, words in _DATABASE.items() if sign in str(error.orig)), None)
    return None


def deleted_experiment(name: str, experiment_id: str) -> str:
    """Return a message that an experiment was deleted and accepts no runs, with the command to restore it.

    >>> deleted_experiment("digits", "3")
    "the experiment 'digits' is deleted. Restore it: `mlflow experiments restore --experiment-id 3`"
    """
    way_out = f"Restore it: `mlflow experiments restore --experiment-id {experiment_id}`"
    return f"the experiment {name!r} is deleted. {way_out}"


def make_local_store(uri: str) -> None:
    """Create the store if it is a SQLite file that does not exist. No other process may use it meanwhile."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    half = file.with_name(f".{file.name}.half")
    for remains in (half, half.with_name(f"{half.name}-journal")):
        remains.unlink(missing_ok=True)
    # Any query creates the store.
    MlflowClient(sqlite_url(half, driver="sqlite+pysqlite")).search_experiments()
    half.replace(file)
