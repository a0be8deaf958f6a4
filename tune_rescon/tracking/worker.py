"""The process that makes the calls to MLflow, and the preparation of a local store.

Each call to MLflow runs Python code for tens of milliseconds. On a thread of the driver, the calls would hold
the driver's interpreter lock while trials wait for their next epoch. In a process of low priority, they cost
a search little more than otherwise idle CPU time.

The process receives states of runs. For each, it sends the log records of the calls and then a
:class:`.CallResult`, or a :class:`.CallError` if a call failed.

:class:`.worker_client.WorkerProcess` runs ``python -m tune_rescon.tracking.worker DESCRIPTOR``. The process
reads a :class:`.Destination` and then states from that descriptor, and ends when the other end is closed.

A store that is a SQLite file is created here, and updated after it was moved: MLflow stores absolute paths of
artifacts. Without an update, no artifact would be found after a storage was moved, and a copy of a storage
would write into the artifacts of the original.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import HTTPError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tune_rescon.errors import hide_passwords
from tune_rescon.storage import sqlite_file, sqlite_url
from tune_rescon.tracking.mlflow_runs import MlflowRunSync
from tune_rescon.tracking.run_state import Destination, RunState, storable
from tune_rescon.tracking.worker_client import CallError, CallResult, RetryPolicy

__all__ = ["MlflowWorker", "alone_at", "fatal_error_hint", "follow_artifacts", "make_local_store"]


#: MLflow's error codes for a wrong call. All other codes may be temporary failures of the server.
_REFUSALS: Final = frozenset(
    {
        "ALREADY_EXISTS",
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "NOT_FOUND",
        "NOT_IMPLEMENTED",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    }
)

#: HTTP status codes 4xx that do not depend on the request: time-out, too many requests, and "forbidden",
#: which a server returns for every request until it is configured with this host's name.
_PASSING_STATUS: Final = frozenset({403, 408, 429})

_LOGGER = logging.getLogger(__name__)


class MlflowWorker:
    """Sends one search's states to MLflow. Connects to the store with the first state."""

    def __init__(self, destination: Destination) -> None:
        """Store ``destination``; nothing is sent yet."""
        self._destination: Destination = storable(destination)
        self._runs: MlflowRunSync | None = None

    def send(self, run_state: RunState) -> CallResult:
        """Send ``run_state`` to MLflow, and return the id of its run and the messages to the user.

        Raises:
            CallError: If a call fails. The calls before it have taken effect, and a retry does not repeat
                them.
        """
        uri = self._destination.uri
        with _errors_converted(uri, if_final=RetryPolicy.ABORT):
            runs = self._runs = self._runs or self._connect()
        try:
            with _errors_converted(uri, if_final=RetryPolicy.SKIP):
                return CallResult(run_id=runs.send(storable(run_state)), remarks=runs.take_remarks())
        except CallError as error:
            if error.policy is RetryPolicy.SKIP:
                # If the experiment was deleted meanwhile, every other call will be refused too.
                with _errors_converted(uri, if_final=RetryPolicy.SKIP):
                    runs.check()
            raise

    def _connect(self) -> MlflowRunSync:
        # Two searches that create the same SQLite store at once would break each other's migrations.
        with alone_at(self._destination.uri):
            make_local_store(self._destination.uri)
            file = sqlite_file(self._destination.uri)
            if file is not None and self._destination.artifacts is not None:
                follow_artifacts(file, self._destination.artifacts)
            runs = MlflowRunSync(self._destination)
            runs.connect()
        return runs


@contextmanager
def _errors_converted(uri: str, *, if_final: RetryPolicy) -> Iterator[None]:
    """Convert errors within the block to :class:`.CallError` with a retry policy.

    ``if_final`` is the policy if a retry of the call cannot succeed.
    """
    try:
        yield
    except CallError:
        raise
    except Exception as error:
        if hint := fatal_error_hint(error, uri):
            raise CallError(f"{_message_line(error)} {hint}", RetryPolicy.ABORT) from error
        final = is_final(error)
        if final:
            _LOGGER.exception("MLflow refuses a call; it is left out")
        raise CallError(_message_line(error), if_final if final else RetryPolicy.RETRY) from error


def is_final(error: Exception) -> bool:
    """Return whether a retry of the same call cannot succeed."""
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in _PASSING_STATUS
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    # Errors of the network, the disk and the database are temporary. Any other is a fault of the call.
    return not isinstance(error, OSError | SQLAlchemyError)


def _message_line(error: Exception) -> str:
    """Return the first line of an error's message; for a database error, without SQLAlchemy's text."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__ or cause.__context__
    message = str(error if cause is None else cause.orig)
    return (message.strip().splitlines() or [type(error).__name__])[0]


class _Forwarder(QueueHandler):
    """Sends log records to the driver, which writes them to its log."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(queue.SimpleQueue())  # stays empty, because enqueue() does not use it
        self._connection = connection
        self._turn = threading.Lock()

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send(record)

    def send(self, message: object) -> None:
        """Send one message without interleaving, because other threads may be logging."""
        with self._turn:
            self._connection.send(message)


def _serve(connection: Connection) -> None:
    """Process states and send the results until the other end is closed."""
    forwarder = _Forwarder(connection)
    logging.getLogger().addHandler(forwarder)
    arrived: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
    worker = MlflowWorker(arrived.get())
    while True:
        try:
            forwarder.send(worker.send(arrived.get()))
        except CallError as error:
            forwarder.send(error)


def _receive(connection: Connection, arrived: queue.Queue[Any]) -> None:
    # On a separate thread, so that this process ends with the driver even during a call.
    try:
        while True:
            arrived.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


#: MLflow's codes for HTTP's 401.
_UNKNOWN_USER: Final = frozenset({"CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"})

_ANOTHER: Final = "name another store with --tracking-uri."

#: A part of a database's error message, and how to fix the error. Locked and full databases are left out,
#: because these errors are temporary.
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

#: The artifact locations of experiments whose storage was at another path. A search sets the tag.
_MOVED: Final = """
    SELECT DISTINCT artifact_location FROM experiments
    JOIN experiment_tags ON experiment_tags.experiment_id = experiments.experiment_id
    WHERE experiment_tags.key = 'mlflow.experiment.primaryMetric.name'
    AND artifact_location LIKE 'file://%/' || ? AND artifact_location != ?
"""


def follow_artifacts(file: Path, artifacts: Path) -> None:
    """Change the artifact paths in the SQLite store ``file`` to the directory ``artifacts``.

    Only experiments that a search has created in a storage's own directory are changed. If the store does not
    have MLflow's tables, it is left unchanged, and a warning is logged.

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


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
