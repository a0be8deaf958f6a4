"""The one writer: a background thread that has MLflow show what the search is.

The search only leaves the newest view of a run here: it never waits for the tracking server and never sees
its errors. A call that fails is made again, with growing pauses, until it succeeds or
:meth:`MlflowWriter.close` runs out of time. What then still waits is counted and said; the record has it all,
and a later run of the search, or ``report --sync``, sends it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tune_rescon.tracking.backlog import Backlog
from tune_rescon.tracking.uri import alone_at
from tune_rescon.tracking.views import RunView, View

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

#: HTTP's 4xx answers that are about the moment or the server, not the request: time-out, too many requests,
#: and "forbidden", which a server says to every request until it is told this host's name.
_PASSING_STATUS: Final = frozenset({403, 408, 429})

_LOGGER = logging.getLogger(__name__)

#: Seconds between tries of a call that fails: the first pause and the longest.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0

#: Seconds :meth:`MlflowWriter.close` gives a call that is in flight when its time is up.
LAST_CALL: Final = 5.0

#: Seconds for which the view of a run that goes on is held back: what comes in them is one request.
SETTLE: Final = 0.5


class MlflowWriter:
    """Takes views from the search's thread, and sends them from its own."""

    def __init__(
        self, uri: str, *, experiment: str, search: str, metric: str, maximize: bool, artifacts: Path | None
    ) -> None:
        """Describe the store; :meth:`start` begins. See :class:`.runs.RunBook` for the arguments."""
        self._uri = uri
        self._artifacts = artifacts
        self._names = {"experiment": experiment, "search": search, "metric": metric}
        self._maximize = maximize
        self._backlog = Backlog(settle=SETTLE)
        self._opened: queue.Queue[tuple[int, str]] = queue.Queue()
        self._known: set[int] = set()
        self._give_up = threading.Event()
        self._refused = 0
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)

    @property
    def uri(self) -> str:
        """Where the runs go."""
        return self._uri

    @property
    def waiting(self) -> int:
        """Updates that are not sent yet."""
        return len(self._backlog)

    @property
    def trouble(self) -> str:
        """What the last call failed with, in a line; empty since one succeeded."""
        return self._trouble

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def show(self, view: View) -> None:
        """Have MLflow show it. Returns at once, always. The search must be shown before its trials."""
        self._backlog.put(view)

    def opened_runs(self) -> list[tuple[int, str]]:
        """Trial numbers and run ids of the child runs opened since the last call."""
        opened = []
        while True:
            try:
                opened.append(self._opened.get_nowait())
            except queue.Empty:
                return opened

    def close(self, timeout: float) -> int:
        """Send what waits, for ``timeout`` seconds (and the last call); the number of updates left unsent."""
        self._backlog.close()
        self._thread.join(timeout)
        self._give_up.set()
        # A call that hangs for longer is left to the daemon thread, and counts as unsent.
        self._thread.join(LAST_CALL)
        return self.waiting + self._refused

    def _run(self) -> None:
        book: RunBook | None = None
        waiting: tuple[View, int] | None = None
        pause = FIRST_PAUSE
        while not self._give_up.is_set():
            try:
                book = book or self._connect()
                waiting = self._backlog.next()
                if waiting is None:
                    return
                self._send(book, waiting[0])
            except Exception as error:
                if not _is_final(error):
                    pause = self._pause(pause, error)
                    continue
                _LOGGER.exception("MLflow refuses a call; it is left out")
                if waiting is None:
                    self._trouble = _line(error)
                    return
                self._refused += waiting[1]
            self._backlog.done(*waiting)
            self._trouble, pause = "", FIRST_PAUSE

    def _pause(self, seconds: float, error: Exception) -> float:
        """Wait before the next try; how long to wait after that."""
        self._trouble = _line(error)
        _LOGGER.warning("MLflow does not take a call; next try in %.1f s: %s", seconds, error)
        self._give_up.wait(seconds)
        return min(2 * seconds, LONGEST_PAUSE)

    def _send(self, book: RunBook, view: View) -> None:
        run_id = book.show(view)
        if isinstance(view, RunView) and view.number not in self._known:
            self._known.add(view.number)
            self._opened.put((view.number, run_id))

    def _connect(self) -> RunBook:
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
        return book


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


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
