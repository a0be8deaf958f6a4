"""The driver's interface to the process that makes the calls to MLflow."""

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
from typing import Final, Protocol

from tune_rescon.tracking.run_state import Destination, RunState, SearchRunState
from tune_rescon.user_code import child_import_path

__all__ = ["CallError", "CallResult", "RetryPolicy", "Sink", "WorkerProcess"]


class RetryPolicy(enum.Enum):
    """The action after a failed call."""

    RETRY = enum.auto()
    """Retry the call later."""
    SKIP = enum.auto()
    """Skip the call, because the call itself is wrong. The next call may succeed."""
    ABORT = enum.auto()
    """Make no more calls, because the store cannot be used."""


class CallError(Exception):
    """A call to MLflow failed."""

    def __init__(self, message: str, policy: RetryPolicy) -> None:
        """Create an error with a message of one line and a retry policy."""
        super().__init__(message, policy)
        self.message = message
        self.policy = policy


@dataclass(frozen=True, kw_only=True)
class CallResult:
    """The result of successful calls."""

    run_id: str
    remarks: tuple[str, ...] = ()
    """Messages to the user about the calls."""


#: Settings that MLflow reads when it is imported. Its HTTP client gives up within seconds (by default, one
#: call to a dead server takes 246 s), its log records go where all others go, and telemetry is off.
_ENVIRONMENT: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise MLflow prints two lines with the run's address at the end of every run.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

#: The lowest priority. Ray runs its workers at niceness 15, so a trial gets the larger share of a CPU core.
NICENESS: Final = 19


class Sink(Protocol):
    """Sends states to MLflow; :class:`WorkerProcess` is one."""

    def start(self) -> None:
        """Prepare for states without creating anything in the store."""

    def send(self, run_state: RunState) -> CallResult:
        """Send ``run_state`` to MLflow. May take long.

        Raises:
            CallError: If a call fails.
        """

    def flush(self) -> None:
        """Use the CPU at normal priority, because the search has ended and no trial needs it."""

    def close(self) -> None:
        """Accept no more states. A call for which another thread waits ends with an error."""


class WorkerProcess:
    """A :class:`.worker.MlflowWorker` in a separate process, which is started when it is needed.

    If the process dies, its present call fails. The next process gets the state of the search first, because
    it finds the runs by the search's id. The process ends when the connection is closed, so it does not
    outlive the driver.
    """

    def __init__(self, destination: Destination) -> None:
        """Store ``destination``; no process is started yet."""
        self._destination = destination
        self._lock = threading.Lock()
        self._closed = False
        self._flushed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[object, object] | None = None
        self._search: SearchRunState | None = None
        self._knows_search = False

    def start(self) -> None:
        """Start the process before it is needed, because it takes seconds to import MLflow."""
        with self._lock:
            if self._process is None and not self._closed:
                self._process, self._connection = _started()
                if not self._flushed:
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
                self._connection.send(self._destination)
                self._knows_search = False

    def send(self, run_state: RunState) -> CallResult:
        """Send ``run_state`` to MLflow.

        Raises:
            CallError: If a call fails, or the process dies during it.
        """
        try:
            self.start()
            if self._connection is None:
                raise EOFError
            if isinstance(run_state, SearchRunState):
                self._search, self._knows_search = run_state, True
            elif self._search is not None and not self._knows_search:
                # The new process needs the search's id to find the runs. The champion and the files, which a
                # server may refuse, wait for the search's next state.
                self._call(self._connection, dataclasses.replace(self._search, champion=None, files=()))
                self._knows_search = True
            return self._call(self._connection, run_state)
        except (EOFError, OSError) as error:
            self._end()
            message = "no answer until the end" if self._closed else "the process that talks to MLflow died"
            raise CallError(message, RetryPolicy.RETRY) from error

    def flush(self) -> None:
        """Give the process the driver's priority.

        A running process keeps its own priority unless the user may raise it, which usually only root may.
        """
        with self._lock, suppress(OSError):
            self._flushed = True
            if self._process is not None:
                os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0))

    def close(self) -> None:
        """End the process, even during a call."""
        self._closed = True
        self._end()

    @staticmethod
    def _call(connection: Connection[object, object], run_state: RunState) -> CallResult:
        connection.send(run_state)
        while True:
            message = connection.recv()
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
            elif isinstance(message, CallError):
                raise message
            elif isinstance(message, CallResult):
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
            env={**_ENVIRONMENT, **os.environ, "PYTHONPATH": child_import_path()},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            # In a separate process group, because only the driver handles Ctrl-C. Not in a separate session:
            # Linux may divide CPU time among sessions, and niceness then has no effect between them.
            process_group=0,
        )
    return process, ours
