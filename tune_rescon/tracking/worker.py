"""Make the calls to MLflow in a separate process.

Each call to MLflow runs Python code for tens of milliseconds. On a thread of the driver, the calls would hold
the driver's interpreter lock while trials wait for their next epoch. In a process of low priority, they cost
a search little more than otherwise idle CPU time.

The process receives states of runs. For each, it sends the log records of the calls and then a
:class:`.CallResult`, or a :class:`.CallError` if a call failed.

:class:`.worker_client.WorkerProcess` runs ``python -m tune_rescon.tracking.worker DESCRIPTOR``. The process
reads a :class:`.Destination` and then states from that descriptor, and ends when the other end is closed.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any, Final

from mlflow.exceptions import MlflowException
from requests import HTTPError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tune_rescon.storage import sqlite_file
from tune_rescon.tracking.mlflow_runs import MlflowRunSync
from tune_rescon.tracking.mlflow_store import alone_at, fatal_error_hint, follow_artifacts, make_local_store
from tune_rescon.tracking.run_state import Destination, RunState, storable
from tune_rescon.tracking.worker_client import CallError, CallResult, RetryPolicy

__all__ = ["MlflowWorker"]


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

#: HTTP status codes 4xx that depend on the time or the server, not on the request: time-out, too many
#: requests, and "forbidden", which a server returns for every request until it is configured with this host's
#: name.
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

    def start(self) -> None:
        """Do nothing, because no preparation is needed; see :class:`.worker_client.Sink`."""

    def flush(self) -> None:
        """Do nothing, because the calls cannot be made faster."""

    def close(self) -> None:
        """Do nothing, because nothing must be ended."""

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


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
