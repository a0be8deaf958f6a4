"""Who makes the calls to MLflow, and the process that does nothing else.

MLflow's calls are tens of milliseconds of Python each. On a thread of the driver they would hold its
interpreter lock while trials wait for their next epoch; in a process of low priority they cost a search
little more than what nobody else wants. What arrives here is a view. What goes back is an :class:`.Answer` or
what the call failed with (:class:`.CallError`), and before either the log records that it gave rise to.

``python -m tune_rescon.tracking.worker DESCRIPTOR`` is :class:`.link.WorkerProcess`'s business: it reads a
:class:`.Destination` and then views from that descriptor, and ends when its other end is closed.
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
from tune_rescon.tracking.messages import Destination, View, alone_at
from tune_rescon.tracking.mlflow_runs import MlflowRunSync
from tune_rescon.tracking.mlflow_store import make_local_store, remedy_words
from tune_rescon.tracking.relocation import follow_artifacts
from tune_rescon.tracking.worker_client import Answer, CallError, RetryPolicy

__all__ = [
    "MlflowWorker",
]


#: MLflow's error codes that mean the call itself is wrong; every other one may be the server's bad day.
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

#: HTTP's 4xx answers that are about the moment or the server, not the request: time-out, too many requests,
#: and "forbidden", which a server says to every request until it is told this host's name.
_PASSING_STATUS: Final = frozenset({403, 408, 429})

#: The lowest priority. Ray has its workers at 15, where a trial then has the larger part of a processor.
_NICENESS: Final = 19

_LOGGER = logging.getLogger(__name__)


class MlflowWorker:
    """Shows one search's views. Connects with the first one."""

    def __init__(self, destination: Destination) -> None:
        """Remember where to write; nothing is sent yet."""
        self._destination = destination
        self._book: MlflowRunSync | None = None

    def show(self, view: View) -> Answer:
        """Have MLflow show ``view``; the id of its run, and what the user should be told.

        Raises:
            CallError: a call failed; what was done before it is done, and not done again the next time.
        """
        uri = self._destination.uri
        with _judged(uri, hopeless=RetryPolicy.GIVE_UP):
            book = self._book = self._book or self._connect()
        try:
            with _judged(uri, hopeless=RetryPolicy.SKIP):
                return Answer(run_id=book.show(view), remarks=book.take_remarks())
        except CallError as error:
            if error.remedy is RetryPolicy.SKIP:
                # Every other call is refused too if the experiment was deleted meanwhile.
                with _judged(uri, hopeless=RetryPolicy.SKIP):
                    book.check()
            raise

    def start(self) -> None:
        """Nothing has to be made ready; see :class:`.link.Shower`."""

    def hurry(self) -> None:
        """It is as fast as it is."""

    def close(self) -> None:
        """Nothing has to be ended."""

    def _connect(self) -> MlflowRunSync:
        # Two searches that make the same SQLite store at once break each other's migrations.
        with alone_at(self._destination.uri):
            make_local_store(self._destination.uri)
            file = sqlite_file(self._destination.uri)
            if file is not None and self._destination.artifacts is not None:
                follow_artifacts(file, self._destination.artifacts)
            book = MlflowRunSync(self._destination)
            book.connect()
        return book


@contextmanager
def _judged(uri: str, *, hopeless: RetryPolicy) -> Iterator[None]:
    """Turn an error into what is to be done about it: ``hopeless`` if making the call again cannot help."""
    try:
        yield
    except CallError:
        raise
    except Exception as error:
        if remedy := remedy_words(error, uri):
            raise CallError(f"{_words(error)} {remedy}", RetryPolicy.GIVE_UP) from error
        final = is_final(error)
        if final:
            _LOGGER.exception("MLflow refuses a call; it is left out")
        raise CallError(_words(error), hopeless if final else RetryPolicy.AGAIN) from error


def is_final(error: Exception) -> bool:
    """Whether making the same call again cannot help."""
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in _PASSING_STATUS
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    # The network's, the disk's and the database's errors pass; any other is a fault of the call.
    return not isinstance(error, OSError | SQLAlchemyError)


def _words(error: Exception) -> str:
    """What happened, in a line: of a database's error its own words, not what SQLAlchemy puts around them."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__ or cause.__context__
    said = str(error if cause is None else cause.orig)
    return (said.strip().splitlines() or [type(error).__name__])[0]


class _Forwarder(QueueHandler):
    """Sends log records to the driver, into whose log they belong."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(queue.SimpleQueue())  # stays empty: enqueue() goes past it
        self._connection = connection
        self._turn = threading.Lock()

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send(record)

    def send(self, message: object) -> None:
        """Send one message as a whole: other threads may be logging."""
        with self._turn:
            self._connection.send(message)


def _serve(connection: Connection) -> None:
    """Answer views until the other end is closed."""
    os.nice(_NICENESS)
    forwarder = _Forwarder(connection)
    logging.getLogger().addHandler(forwarder)
    arrived: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
    desk = MlflowWorker(arrived.get())
    while True:
        try:
            forwarder.send(desk.show(arrived.get()))
        except CallError as error:
            forwarder.send(error)


def _receive(connection: Connection, arrived: queue.Queue[Any]) -> None:
    # On a thread of its own, so that the driver's end is the end of this process in whatever call it is.
    try:
        while True:
            arrived.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
