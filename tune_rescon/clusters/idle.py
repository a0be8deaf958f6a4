"""End a cluster that is not used: after some hours without use, its head ends the workers and itself.

A process on the head checks once a minute. Its parts::

    IdleRule      decides from observations and their times when the cluster was last used
    HeadActions   what the process does on the head: observe, copy, end
    watch         observes until the cluster is due, observes once more, and ends it

The hours are in a file beside Ray's token. A new container has it too, because the folder is the machine's.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from tune_rescon.atomic_write import atomic_write
from tune_rescon.errors import TuneResconError

__all__ = [
    "HeadActions",
    "IdleFiles",
    "IdleRule",
    "IdleState",
    "Observation",
    "watch",
]

#: Seconds between two observations.
INTERVAL: Final = 60.0

#: Seconds before another attempt to end machines. Ray has stopped by then, and the machines are billed.
RETRY_SECONDS: Final = 10.0

#: Seconds to wait for the lock. After them, another process is watching.
LOCK_TIMEOUT: Final = 2.0

_log: Final = logging.getLogger(__name__)

_PROGRESS = logging.getLogger("tune_rescon.progress")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What uses the cluster at one time, as its head sees it."""

    uses: tuple[str, ...] = ()
    """What uses the cluster, in words: jobs that run or wait, and services that do not answer."""
    sessions: frozenset[str] = frozenset()
    """The ssh connections to the head: a tunnel to MLflow, a job that is followed, a shell."""
    seconds_since_write: float = math.inf
    """Seconds since MLflow's database was last written."""


class IdleRule:
    """Decides when the cluster was last used, and whether it is due to end. It reads no clock itself.

    A connection counts as use if two observations in a row have it. A short one, such as that of `cluster
    status`, does not count. But the cluster never ends during a connection: a job may be about to come.
    """

    def __init__(self, now: float) -> None:
        """Start at time ``now``, in seconds of a clock that is never set back; the start counts as use."""
        self.used = now
        self.by = "its start"
        self.in_use = False
        self._sessions: frozenset[str] = frozenset()

    def observe(self, seen: Observation, now: float) -> None:
        """Record an observation."""
        lasting = seen.sessions & self._sessions
        self._sessions = seen.sessions
        self.in_use = bool(seen.uses or lasting)
        if seen.uses:
            self._use(now, seen.uses[0])
        elif lasting:
            self._use(now, "an ssh connection")
        else:
            self.record_use(seen.seconds_since_write, "a change of MLflow's database", now)

    def record_use(self, age: float, what: str, now: float) -> None:
        """Record a use that was ``age`` seconds ago."""
        if now - max(0.0, age) > self.used:
            self._use(now - max(0.0, age), what)

    def is_due(self, hours: float, now: float) -> bool:
        """Return whether the cluster is to end: it was not used for the hours, and there is no connection."""
        return not (self.in_use or self._sessions) and now - self.used >= hours * 3600

    def _use(self, when: float, what: str) -> None:
        self.used = when
        self.by = what


@dataclass(frozen=True, kw_only=True)
class HeadActions:
    """What the process that watches does on the head."""

    observe: Callable[[], Observation]
    heartbeat_age: Callable[[], float]
    """Returns the seconds since the last heartbeat of any search in the storage. Raises OSError."""
    end_mlflow: Callable[[], None]
    """Ends MLflow; raises a TuneResconError if the copy of its database is not complete."""
    start_mlflow: Callable[[], None]
    """Starts MLflow again with the command that it had."""
    stop_ray: Callable[[], None]
    end_machines: Callable[[], None]
    """Ends the workers, then the head; raises a TuneResconError."""


@dataclass(frozen=True, kw_only=True)
class IdleState:
    """When the cluster ends itself, by the last observation. Times are in seconds since 1970."""

    hours: float
    used: float
    by: str
    in_use: bool = False
    problem: str = ""
    """Why the cluster could not be ended when it was due; empty if it was not due."""
    is_watched: bool = True
    """False if the process that watches does not run, so that the cluster will not end."""

    @property
    def ends(self) -> float:
        """When the cluster ends unless it is used before."""
        return self.used + self.hours * 3600

    def describe(self) -> str:
        """Describe the state in a line.

        >>> IdleState(hours=4, used=0, by="job a").describe()
        'Ends itself at 1970-01-01 04:00 UTC, after 4 h without use. Last use: 1970-01-01 00:00 UTC (job a).'
        """
        if not self.is_watched:
            return (
                f"It was to end itself after {self.hours:g} h without use, and will not: the process that"
                " watches does not run. `cluster up` with --end-after-idle starts it."
            )
        if self.in_use:
            return f"Ends itself after {self.hours:g} h without use. Used now: {self.by}."
        text = f"Ends itself at {_utc(self.ends)}, after {self.hours:g} h without use."
        text += f" Last use: {_utc(self.used)} ({self.by})."
        return f"{text} It could not be ended: {self.problem}" if self.problem else text


def _utc(seconds: float) -> str:
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds):%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, kw_only=True)
class IdleFiles:
    """The files of the process that watches, on the head."""

    setting: Path
    """The hours. Its folder outlives the container."""
    folder: Path

    @classmethod
    def of_head(cls) -> IdleFiles:
        """Return the files that the commands use."""
        home = Path.home()
        return cls(setting=home / ".ray" / "end_after_idle", folder=home / ".tune_rescon" / "idle")

    @property
    def lock(self) -> Path:
        """The file that the process locks."""
        return self.folder / "watch.lock"

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    def read_hours(self) -> float:
        """Return the hours without use after which the cluster ends; 0: it does not."""
        with suppress(OSError, ValueError):
            hours = float(self.setting.read_text())
            return hours if math.isfinite(hours) and hours > 0 else 0.0
        return 0.0

    def hours_written(self) -> int:
        """Return when the hours were last written, in nanoseconds since 1970; 0 if they are missing."""
        with suppress(OSError):
            return self.setting.stat().st_mtime_ns
        return 0

    def write_hours(self, hours: float) -> None:
        """Store the hours; 0 removes them."""
        if not hours:
            self.setting.unlink(missing_ok=True)
            return
        self.setting.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.setting) as scratch:
            scratch.write_text(f"{hours:g}\n")

    def write_state(self, state: IdleState) -> None:
        """Store the state for `cluster status`."""
        with atomic_write(self._state) as scratch:
            scratch.write_text(json.dumps(asdict(state)))

    def read_state(self) -> IdleState | None:
        """Return the state; None if the cluster does not end itself."""
        hours = self.read_hours()
        if not hours:
            return None
        state = IdleState(hours=hours, used=time.time(), by="its start")
        with suppress(OSError, ValueError, TypeError):
            state = IdleState(**json.loads(self._state.read_text()))
        return replace(state, hours=hours, is_watched=self._is_locked())

    def _is_locked(self) -> bool:
        try:
            with FileLock(self.lock).acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False


def watch(
    files: IdleFiles,
    head: HeadActions,
    *,
    interval: float = INTERVAL,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Watch the head until the cluster is ended or the hours are removed. At most one process watches.

    Args:
        files: where the hours and the state are.
        head: observes the head, and ends the cluster.
        interval: seconds between two observations.
        clock: returns the seconds of a clock that is never set back.
        wait: waits for some seconds.
    """
    if not files.read_hours():
        _PROGRESS.info("The cluster does not end itself: no hours are set")
        return
    files.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(files.lock)
    try:
        # `cluster status` holds it for a moment.
        lock.acquire(timeout=LOCK_TIMEOUT)
    except Timeout:
        _PROGRESS.info("Another process watches already")
        # The head was started again, which counts as use there.
        files.setting.touch()
        return
    with lock:
        rule, problem, written = IdleRule(clock()), "", files.hours_written()
        while hours := files.read_hours():
            rule.observe(_observe(head), clock())
            if written != (written := files.hours_written()):
                rule.record_use(0.0, "`cluster up`", clock())
            problem = "" if rule.in_use else problem
            if rule.is_due(hours, clock()):
                try:
                    is_ready, problem = _prepare_end(rule, head, hours, clock), ""
                except (TuneResconError, OSError) as error:
                    is_ready, problem = False, str(error)
                if is_ready:
                    _end(head, wait)
                    return
            age = clock() - rule.used
            state = IdleState(
                hours=hours, used=time.time() - age, by=rule.by, in_use=rule.in_use, problem=problem
            )
            try:
                files.write_state(state)
            except OSError as error:
                # A full disk must not keep the cluster from ending.
                _log.warning("the state for `cluster status` cannot be written: %s", error)
            wait(min(interval, max(1.0, hours * 3600 / 10)))


def _observe(head: HeadActions) -> Observation:
    """Return what uses the cluster. An observation that fails counts as use, because jobs may run.

    It raises nothing, because nothing else would end the cluster if this process did.
    """
    try:
        return head.observe()
    except Exception as error:
        _log.exception("the head could not be observed")
        return Observation(uses=(f"unknown, because the head could not be observed: {error}",))


def _prepare_end(rule: IdleRule, head: HeadActions, hours: float, clock: Callable[[], float]) -> bool:
    """End MLflow on a cluster that seems due, and check once more that it is.

    The copy of MLflow's database takes up to a minute, in which a job may come.

    Returns:
        Whether the cluster is to be ended now. If not, everything on it runs as before.

    Raises:
        OSError: the storage of the searches cannot be read.
        TuneResconError: the copy of MLflow's database is not complete. MLflow was started again.
    """
    rule.record_use(head.heartbeat_age(), "a search's heartbeat", clock())
    if not rule.is_due(hours, clock()):
        return False
    _log.warning("the cluster was not used for %g hours: last by %s", hours, rule.by)
    try:
        head.end_mlflow()
    except TuneResconError:
        head.start_mlflow()
        raise
    rule.observe(_observe(head), clock())
    if rule.is_due(hours, clock()):
        return True
    head.start_mlflow()
    return False


def _end(head: HeadActions, wait: Callable[[float], object]) -> None:
    # Without Ray, no job can begin, and the autoscaler replaces no worker.
    head.stop_ray()
    while True:
        try:
            head.end_machines()
        except TuneResconError as error:
            _log.error("the machines are not ended yet: %s", error)
            wait(RETRY_SECONDS)
        else:
            return
