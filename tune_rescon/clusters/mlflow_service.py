"""The MLflow server on a cluster's head: one server, checked for health and restarted when it fails.

The server ends when this process ends, because a guard process (:func:`.guard.main`) then kills its
process group. :class:`RestartPolicy` decides what to do with the server. Its database is copied to a URL by
the mirror that also copies a search's databases.
"""

from __future__ import annotations

import http.client
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import psutil
from filelock import FileLock, Timeout

from tune_rescon.atomic_write import file_version
from tune_rescon.errors import ClusterError
from tune_rescon.signal_handlers import handled_signals
from tune_rescon.storage import (
    Mirror,
    Pace,
    RemoteError,
    RemoteFolder,
    Sender,
    StorageUrl,
    fetch_databases,
    parse_storage,
    sqlite_url,
)
from tune_rescon.user_code import child_import_path

__all__ = [
    "Action",
    "Health",
    "MlflowSettings",
    "RestartPolicy",
    "RestartTiming",
    "answers",
    "end_mlflow",
    "mlflow_command",
    "server_command",
    "supervise_mlflow",
]


def answers(url: str, *, timeout: float) -> bool:
    """Return whether a server answers in time. An error 4xx counts as an answer, an error 5xx does not."""
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


class Health(Enum):
    """The state of a server when it was checked."""

    ENDED = "ended"
    """The server has no process. A server that was never started is in this state too."""
    UNRESPONSIVE = "unresponsive"
    HEALTHY = "healthy"


class Action(Enum):
    """What to do with the server now."""

    WAIT = "wait"
    START = "start"
    KILL = "kill"


@dataclass(frozen=True, kw_only=True)
class RestartTiming:
    """The limits of :class:`RestartPolicy`. All but ``failures`` are in seconds."""

    interval: float = 5.0
    """Between two checks."""
    timeout: float = 5.0
    """The longest wait for an answer."""
    failures: int = 4
    """Consecutive failed checks before the server is killed. A busy moment must not be enough."""
    startup_timeout: float = 180.0
    """From the start of the server to its first answer. Migrations of a large database take long."""
    first_pause: float = 1.0
    longest_pause: float = 60.0
    """The pause before a restart; it doubles from ``first_pause`` to ``longest_pause``."""
    healthy_reset: float = 300.0
    """After answers for this long, the pause before the next restart is ``first_pause`` again."""


class RestartPolicy:
    """Decides from a server's states what to do with it. Times are seconds of one monotonic clock."""

    def __init__(self, timing: RestartTiming) -> None:
        """Begin with a server that has not been started."""
        self._timing = timing
        self._started: float | None = None
        self._first_answer: float | None = None
        self._healthy_seconds = 0.0
        self._misses = 0
        self._pause = 0.0
        self._due = float("-inf")

    def decide(self, seen: Health, now: float) -> Action:
        """Return the action for a state at time ``now``. The caller must carry out every action."""
        if seen is Health.ENDED:
            return self._start_again(now)
        if seen is Health.HEALTHY:
            self._misses = 0
            if self._first_answer is None:
                self._first_answer = now
            self._healthy_seconds = now - self._first_answer
            return Action.WAIT
        assert self._started is not None, "it was never started"
        if self._first_answer is None:
            return Action.KILL if now - self._started >= self._timing.startup_timeout else Action.WAIT
        self._misses += 1
        return Action.KILL if self._misses >= self._timing.failures else Action.WAIT

    def seconds_to_next_check(self, now: float) -> float:
        """Return the seconds until the next check."""
        if self._started is None:
            return max(0.0, min(self._timing.interval, self._due - now))
        return self._timing.interval

    def _start_again(self, now: float) -> Action:
        if self._started is not None:
            if self._healthy_seconds >= self._timing.healthy_reset or not self._pause:
                self._pause = self._timing.first_pause
            else:
                self._pause = min(2 * self._pause, self._timing.longest_pause)
            self._started = self._first_answer = None
            self._healthy_seconds = 0.0
            self._due = now + self._pause
        if now < self._due:
            return Action.WAIT
        self._started = now
        self._misses = 0
        return Action.START


_log: Final = logging.getLogger(__name__)

#: Seconds between two copies of the database.
COPY_INTERVAL: Final = 30.0

#: Seconds for the last copy, when the server ends.
LAST_COPY_TIMEOUT: Final = 60.0

#: Seconds that a server has to end by itself.
END_TIMEOUT: Final = 5.0

#: Marks the server's processes, so that a later process finds those that an earlier one left behind.
_MARK: Final = "TUNE_RESCON_MLFLOW_FOLDER"

_DATABASE: Final = "mlflow.db"
_LOCK: Final = "service.lock"
_PID_FILE: Final = "service.pid"

#: A file that exists while the last copy of the database is not complete.
_NOT_COPIED: Final = "not_kept"

_PROGRESS = logging.getLogger("tune_rescon.progress")


@dataclass(frozen=True, kw_only=True)
class MlflowSettings:
    """The server's database, artifacts and address."""

    folder: Path
    """A folder of this machine: it holds the lock, and the database unless ``database`` is given."""
    host: str = "127.0.0.1"
    port: int = 5000
    database: str | None = None
    artifacts: str | None = None
    keep: str | None = None
    """A URL at which to keep copies of the folder's database."""
    allowed_hosts: str | None = None

    @property
    def sqlite(self) -> Path:
        """The path of the folder's database."""
        return self.folder / _DATABASE

    @property
    def sqlite_files(self) -> tuple[Path, Path]:
        """The files that a write to the folder's database changes: itself, and its write-ahead log."""
        return self.sqlite, self.sqlite.with_name(f"{_DATABASE}-wal")


def server_command(settings: MlflowSettings) -> tuple[list[str], Mapping[str, str]]:
    """Return the server's command line, and the variables to add to this process's environment."""
    artifacts = settings.artifacts or str(settings.folder.absolute() / "artifacts")
    argv = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
    argv += ["--host", settings.host, "--port", str(settings.port)]
    # Otherwise each request of every search writes a log line.
    argv += ["--artifacts-destination", artifacts, "--uvicorn-opts=--no-access-log"]
    if settings.allowed_hosts:
        argv += ["--allowed-hosts", settings.allowed_hosts]
    env = {
        # Not an argument: it may contain a password, and every user of the machine can list arguments.
        "MLFLOW_BACKEND_STORE_URI": settings.database or sqlite_url(settings.sqlite.absolute()),
        # Its job runners would be a dozen more processes, which nothing here needs.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        _MARK: str(settings.folder.absolute()),
    }
    return argv, env


def supervise_mlflow(settings: MlflowSettings, *, timing: RestartTiming | None = None) -> None:
    """Keep the server running until SIGTERM or SIGINT. Return at once if another process already does.

    Args:
        settings: the database, artifacts and address of the server.
        timing: the intervals between checks and restarts; None: the defaults.

    Raises:
        StorageError: ``settings.keep`` is no valid URL, or the database there is damaged.
        ClusterError: the folder cannot be written.
    """
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(settings.folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        pid = _supervisor_pid(settings.folder) or "unknown"
        _PROGRESS.info(f"MLflow is kept running already (process {pid})")
        return
    except OSError as error:
        raise ClusterError(f"{settings.folder} cannot be written: {error.strerror}.") from None
    pid_file = settings.folder / _PID_FILE
    try:
        pid_file.write_text(f"{os.getpid()}\n")
        stop = threading.Event()
        with handled_signals(lambda _number, _frame: stop.set(), signal.SIGTERM, signal.SIGINT):
            _supervise(settings, stop, timing or RestartTiming())
    finally:
        pid_file.unlink(missing_ok=True)
        lock.release()


def end_mlflow(folder: Path) -> None:
    """End the process that keeps MLflow running in ``folder``, and wait until its database is copied.

    Raises:
        ClusterError: the process does not end, or the last copy of the database is not complete, also that of
            a process that has ended before.
    """
    if pid := _supervisor_pid(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        timeout = END_TIMEOUT + LAST_COPY_TIMEOUT + RestartTiming().timeout + 10
        try:
            with FileLock(folder / _LOCK).acquire(timeout=timeout):
                _PROGRESS.info(f"MLflow has ended (process {pid})")
        except Timeout:
            raise ClusterError(f"process {pid}, which keeps MLflow running, does not end.") from None
    else:
        _PROGRESS.info("MLflow is not kept running")
    if (folder / _NOT_COPIED).exists():
        raise ClusterError(f"the last changes of MLflow's database are not kept yet, but in {folder} alone.")


def mlflow_command(folder: Path) -> list[str]:
    """Return the command line of the process that keeps MLflow running in ``folder``; empty without one."""
    pid = _supervisor_pid(folder)
    with suppress(psutil.NoSuchProcess):  # it has ended since
        return psutil.Process(pid).cmdline() if pid else []
    return []


def _supervisor_pid(folder: Path) -> int | None:
    """Return the ID of the process that holds the lock; None if no process does."""
    if not (folder / _LOCK).is_file():
        return None
    with suppress(Timeout), FileLock(folder / _LOCK).acquire(timeout=0):
        # The file may be that of a killed process, whose ID another process has by now.
        return None
    # The process writes its ID right after it acquires the lock.
    for _ in range(10):
        with suppress(OSError, ValueError):
            return int((folder / _PID_FILE).read_text())
        time.sleep(0.05)
    return None


def _supervise(settings: MlflowSettings, stop: threading.Event, timing: RestartTiming) -> None:
    mirror = _open_mirror(settings, stop)
    if stop.is_set():
        return
    _PROGRESS.info(f"MLflow: http://{settings.host}:{settings.port}, kept running by process {os.getpid()}")
    server, policy, copied = _Server(settings), RestartPolicy(timing), None
    try:
        while not stop.is_set():
            seen = server.check(timing.timeout)
            action = policy.decide(seen, time.monotonic())
            if action is Action.START:
                server.start()
            elif action is Action.KILL:
                _log.warning("MLflow does not answer, and is killed")
                server.end(gently=False)
            if mirror is not None and seen is Health.HEALTHY and copied != (version := _version(settings)):
                # Not before the server answers: a copy in the middle of its migrations would be useless.
                copied = version
                mirror.changed()
            stop.wait(policy.seconds_to_next_check(time.monotonic()))
    finally:
        server.end(gently=True)
        if mirror is not None:
            if copied is not None:
                mirror.changed()
            _close_mirror(mirror, settings)


def _close_mirror(mirror: Mirror, settings: MlflowSettings) -> None:
    """Make the last copy of the database; if it is not complete, the marker stays for :func:`end_mlflow`."""
    marker = settings.folder / _NOT_COPIED
    with suppress(OSError):  # a full disk must not prevent the last copy
        marker.touch()
    if not mirror.close(LAST_COPY_TIMEOUT):
        marker.unlink(missing_ok=True)
        return
    _log.error("the database's last changes are not at %s", settings.keep)
    if not marker.exists():
        try:
            # A full disk may have no room for a new file, but it has for a new name.
            (settings.folder / _PID_FILE).rename(marker)
        except OSError as error:
            _log.error("that cannot be recorded in %s: %s", settings.folder, error)


def _open_mirror(settings: MlflowSettings, stop: threading.Event) -> Mirror | None:
    """Fetch the newest copy of the database and start to mirror it; return None without ``settings.keep``.

    The server must not start before the URL answers: otherwise a new, empty database would replace the one
    at the URL.
    """
    if settings.keep is None:
        return None
    place = parse_storage(settings.keep, where="--keep")
    url = place if isinstance(place, StorageUrl) else StorageUrl(url=f"file://{place.absolute()}")
    remote = RemoteFolder.connect(url, where="--keep")
    databases, pause = {_DATABASE: settings.sqlite}, 1.0
    while not stop.is_set():
        try:
            term = fetch_databases(remote, databases, where="--keep")
        except RemoteError as error:
            _log.warning("the kept database cannot be read; next try in %.0f s: %s", pause, error)
            stop.wait(pause)
            pause = min(2 * pause, 60.0)
        else:
            mirror = Mirror(
                Sender(remote, databases=databases, files={}, term=term),
                Pace(interval=COPY_INTERVAL, first_pause=2.0, longest_pause=60.0),
            )
            mirror.start()
            return mirror
    return None


def _version(settings: MlflowSettings) -> Any:
    """Return a value that changes whenever the folder's database is written."""
    versions = []
    for path in settings.sqlite_files:
        with suppress(FileNotFoundError):
            versions.append(file_version(path))
    return versions or None


class _Server:
    """The process group of the server; each restart makes a new one."""

    def __init__(self, settings: MlflowSettings) -> None:
        self._settings = settings
        # A server that listens on all interfaces is checked on the loopback interface.
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
        self._health = f"http://{host}:{settings.port}/health"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a server. First end the processes of an earlier one, because they would hold the port."""
        _end_leftovers(self._settings.folder)
        argv, env = server_command(self._settings)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tune_rescon.clusters.guard", *argv],
            env={**os.environ, **env, "PYTHONPATH": child_import_path()},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        _log.info("MLflow is started (process %d)", self._process.pid)

    def check(self, timeout: float) -> Health:
        """Check the server and return its state."""
        if self._process is None or self._process.poll() is not None:
            return Health.ENDED
        return Health.HEALTHY if answers(self._health, timeout=timeout) else Health.UNRESPONSIVE

    def end(self, *, gently: bool) -> None:
        """End the server with all its processes; with ``gently``, let it answer pending requests first."""
        if self._process is None:
            return
        if gently:
            self._ask_to_end()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None

    def _ask_to_end(self) -> None:
        assert self._process is not None
        with suppress(psutil.Error):
            # Terminate the last process in the chain: if one above it ended, the guard would kill the rest.
            for process in psutil.Process(self._process.pid).children(recursive=True):
                if not process.children():
                    process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT)


def _end_leftovers(folder: Path) -> None:
    """Kill all processes that a server of this folder left behind. Their environment has its mark."""
    mark = str(folder.absolute())
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark and process.pid != os.getpid():
                process.kill()
                process.wait(END_TIMEOUT)
