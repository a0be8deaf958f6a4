"""The one writer: a background thread that sends what happened to MLflow, in order.

The search only puts events into a queue: it never waits for the tracking server and never sees its errors.
A call that fails is made again, with growing pauses, until it succeeds or :meth:`MlflowWriter.close` runs out
of time. What then still waits is counted and said; the study has it all.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tune_rescon.tracking.events import Event
from tune_rescon.tracking.uri import alone_at

if TYPE_CHECKING:
    from tune_rescon.tracking.runs import RunBook

__all__ = ["MlflowWriter"]

#: MLflow's settings, read when it is imported: its HTTP client gives up in seconds (by default a dead server
#: holds one call for 246 s), and its log records go where everybody's go.
_ENVIRONMENT: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_CONFIGURE_LOGGING": "false",
}

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

#: HTTP's 4xx answers that are about the moment, not the request: time-out, too many requests.
_PASSING_STATUS: Final = frozenset({408, 429})

_LOGGER = logging.getLogger(__name__)

#: Seconds between tries of a call that fails: the first pause and the longest.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0

#: Seconds :meth:`MlflowWriter.close` gives a call that is in flight when its time is up.
LAST_CALL: Final = 5.0


class MlflowWriter:
    """Takes events from the search's thread, and sends them from its own."""

    def __init__(
        self, uri: str, *, experiment: str, search: str, metric: str, maximize: bool, artifacts: Path | None
    ) -> None:
        """Describe the store; :meth:`start` begins. See :class:`.runs.RunBook` for the arguments."""
        self._uri = uri
        self._artifacts = artifacts
        self._names = {"experiment": experiment, "search": search, "metric": metric}
        self._maximize = maximize
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._opened: queue.Queue[tuple[int, str]] = queue.Queue()
        self._give_up = threading.Event()
        self._book: RunBook | None = None
        self._taken = 0
        self._sent = 0
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)

    @property
    def uri(self) -> str:
        """Where the runs go."""
        return self._uri

    @property
    def waiting(self) -> int:
        """Events that were not sent yet. For any thread."""
        return self._taken - self._sent

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def put(self, event: Event) -> None:
        """Have an event sent. Returns at once, always. For one thread: the search's."""
        self._taken += 1
        self._queue.put(event)

    def opened_runs(self) -> list[tuple[int, str]]:
        """Trial numbers and run ids of the child runs opened since the last call."""
        opened = []
        while True:
            try:
                opened.append(self._opened.get_nowait())
            except queue.Empty:
                return opened

    def close(self, timeout: float) -> int:
        """Send what waits, for ``timeout`` seconds (and the last call); the number of events left unsent."""
        self._queue.put(None)
        self._thread.join(timeout)
        self._give_up.set()
        # A call that hangs for longer is left to the daemon thread, and counts as unsent.
        self._thread.join(LAST_CALL)
        return self.waiting

    def _run(self) -> None:
        connected = self._insist(self._connect)
        while (event := self._queue.get()) is not None:
            if connected and self._insist(functools.partial(self._send, event)):
                self._sent += 1

    def _connect(self) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Imported here: MLflow takes seconds to import, and the search need not wait for it.
        from tune_rescon.tracking.local_store import make_local_store
        from tune_rescon.tracking.runs import RunBook

        # Two searches that make the same SQLite store at once break each other's migrations.
        with alone_at(self._uri):
            make_local_store(self._uri)
            book = RunBook(self._uri, maximize=self._maximize, **self._names)
            book.connect(self._artifacts)
        self._book = book

    def _send(self, event: Event) -> None:
        assert self._book is not None, "events are sent after the connection only"
        opened = self._book.apply(event)
        if opened is not None:
            self._opened.put(opened)

    def _insist(self, call: Callable[[], None]) -> bool:
        """Call until it succeeds; False if the server refuses it for good, or time is up."""
        pause = FIRST_PAUSE
        while not self._give_up.is_set():
            try:
                call()
            except Exception as error:
                if _is_final(error):
                    _LOGGER.exception("MLflow refuses a call; it is left out")
                    return False
                _LOGGER.warning("MLflow does not take a call; next try in %.1f s: %s", pause, error)
                self._give_up.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return True
        return False


def _is_final(error: Exception) -> bool:
    """Whether making the same call again cannot help."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
        return 400 <= status < 500 and status not in _PASSING_STATUS
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    # The network's, the disk's and the database's errors pass; any other is a fault of the call.
    return not isinstance(error, OSError | SQLAlchemyError)
