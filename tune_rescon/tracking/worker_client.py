"""The driver's end of the process that talks to MLflow."""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Final, Protocol

from tune_rescon.tracking.messages import Destination, SearchRunState, View

__all__ = [
    "Answer",
    "CallError",
    "RetryPolicy",
    "Shower",
    "WorkerProcess",
]


class RetryPolicy(enum.Enum):
    """What helps after a call that failed."""

    AGAIN = enum.auto()
    """Making it again, later."""
    SKIP = enum.auto()
    """Nothing: the call itself is wrong. The next one may be right."""
    GIVE_UP = enum.auto()
    """Nothing, and the same holds for every call: the store cannot be used."""


class CallError(Exception):
    """A call to MLflow failed."""

    def __init__(self, words: str, remedy: RetryPolicy) -> None:
        """``words``: the error in a line."""
        super().__init__(words, remedy)
        self.words = words
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of calls that succeeded."""

    run_id: str
    remarks: tuple[str, ...] = ()
    """What the user should be told about them."""


#: MLflow's settings, read when it is imported: its HTTP client gives up in seconds (by default a dead server
#: holds one call for 246 s), its log records go where everybody's go, and it tells its makers nothing.
_ENVIRONMENT: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Two lines with the run's address, at every run's end.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

#: Where this package is imported from.
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[2]


class Shower(Protocol):
    """Whoever has MLflow show things: a desk, or the process one is in."""

    def start(self) -> None:
        """Get ready, without making anything anywhere."""

    def show(self, view: View) -> Answer:
        """Have MLflow show ``view``. May take long, and may raise :class:`.CallError`."""

    def hurry(self) -> None:
        """The search is over: nobody else needs the processor any more."""

    def close(self) -> None:
        """No more comes. A call that another thread is waiting for ends with an error."""


class WorkerProcess:
    """A :class:`.worker.MlflowWorker` in its own process, which is started when it is needed.

    A process that dies has failed the call it was in. The next one is shown the search first: its runs are
    found by the search's id. It does not outlive this one: it ends when the connection does.
    """

    def __init__(self, destination: Destination) -> None:
        """Remember where to write; nothing is started yet."""
        self._destination = destination
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[object, object] | None = None
        self._search: SearchRunState | None = None
        self._knows_search = False

    def start(self) -> None:
        """Have the process there before it is needed: importing MLflow takes it seconds."""
        with self._lock:
            if self._process is None and not self._closed:
                self._process, self._connection = _started()
                self._connection.send(self._destination)
                self._knows_search = False

    def show(self, view: View) -> Answer:
        """Have MLflow show ``view``.

        Raises:
            CallError: the call failed, or the process died of it.
        """
        try:
            self.start()
            if self._connection is None:
                raise EOFError
            if isinstance(view, SearchRunState):
                self._search, self._knows_search = view, True
            elif self._search is not None and not self._knows_search:
                # Whose runs these are; what a server may refuse waits for the search's next view.
                self._call(self._connection, dataclasses.replace(self._search, champion=None, files=()))
                self._knows_search = True
            return self._call(self._connection, view)
        except (EOFError, OSError) as error:
            self._end()
            words = "no answer until the end" if self._closed else "the process that talks to MLflow died"
            raise CallError(words, RetryPolicy.AGAIN) from error

    def hurry(self) -> None:
        """Give the process the driver's own priority, where that may be done (by root alone, as a rule)."""
        with self._lock, suppress(OSError):
            if self._process is not None:
                os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0))

    def close(self) -> None:
        """End the process, in whatever call it is."""
        self._closed = True
        self._end()

    @staticmethod
    def _call(connection: Connection[object, object], view: View) -> Answer:
        connection.send(view)
        while True:
            message = connection.recv()
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
            elif isinstance(message, CallError):
                raise message
            elif isinstance(message, Answer):
                return message

    def _end(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None


def _started() -> tuple[subprocess.Popen[bytes], Connection[object, object]]:
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tune_rescon.tracking.worker", str(theirs.fileno())],
            env=_environment(),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            # Ctrl-C is the driver's to answer. Not a session: Linux may share the processor by sessions,
            # and then niceness says nothing.
            process_group=0,
        )
    return process, ours


def _environment() -> dict[str, str]:
    paths = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    return {**_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
