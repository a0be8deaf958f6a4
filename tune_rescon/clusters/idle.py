"""The end of a cluster that is not used: after some hours without use its head ends the workers and itself.

A process on the head looks once a minute. Its parts::

    IdleRule      decides from looks, at times of one clock, when the cluster was last used
    Head          what the process does on the head: looks, copies, ends
    watch         looks until the cluster is due, checks once more, and ends it

The hours are in a file beside Ray's token, a folder of the machine, which a new container gets again.
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
    "Head",
    "IdleFiles",
    "IdleRule",
    "IdleState",
    "Look",
    "watch",
]

#: Seconds between two looks.
INTERVAL: Final = 60.0

#: Seconds before machines that were not ended are ended again. Ray has stopped by then, and they are paid.
RETRY_SECONDS: Final = 10.0

#: Seconds to wait for the lock, before another process is taken to watch already.
LOCK_TIMEOUT: Final = 2.0

_log: Final = logging.getLogger(__name__)

_PROGRESS = logging.getLogger("tune_rescon.progress")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the head saw at one look."""

    uses: tuple[str, ...] = ()
    """What uses the cluster now, in words: jobs that run or wait, and what could not be asked."""
    sessions: frozenset[str] = frozenset()
    """The ssh connections to the head: a tunnel to MLflow, a job that is followed, a shell."""
    unwritten: float = math.inf
    """Seconds since MLflow's database was last written."""


class IdleRule:
    """Decides when the cluster was last used, and whether it is due to end. It reads no clock itself.

    A connection counts as use if two looks in a row see it. A short one, such as that of `cluster status`,
    does not count, but the cluster never ends while there is one: a job may be about to be submitted.
    """

    def __init__(self, now: float) -> None:
        """Start at time ``now``, in seconds of a clock that is never set back; the start counts as use."""
        self.used = now
        self.by = "its start"
        self.in_use = False
        self._sessions: frozenset[str] = frozenset()

    def observe(self, look: Look, now: float) -> None:
        """Take a look into account."""
        lasting = look.sessions & self._sessions
        self._sessions = look.sessions
        self.in_use = bool(look.uses or lasting)
        if look.uses:
            self._use(now, look.uses[0])
        elif lasting:
            self._use(now, "an ssh connection")
        else:
            self.record_use(look.unwritten, "a change of MLflow's database", now)

    def record_use(self, age: float, what: str, now: float) -> None:
        """Take a use into account that was ``age`` seconds ago."""
        if now - max(0.0, age) > self.used:
            self._use(now - max(0.0, age), what)

    def is_due(self, hours: float, now: float) -> bool:
        """Return whether the cluster is to end: it was not used for the hours, and no one is connected."""
        return not (self.in_use or self._sessions) and now - self.used >= hours * 3600

    def _use(self, when: float, what: str) -> None:
        self.used = when
        self.by = what


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the process that watches does on the head."""

    look: Callable[[], Look]
    beat_age: Callable[[], float]
    """Returns the seconds since the last heartbeat of any search in the storage. Raises OSError."""
    end_mlflow: Callable[[], None]
    """Ends MLflow; raises a TuneResconError if the copy of its database is not complete."""
    start_mlflow: Callable[[], None]
    """Starts the MLflow that was ended last."""
    stop_ray: Callable[[], None]
    end_machines: Callable[[], None]
    """Ends the workers, then the head; raises a TuneResconError."""


@dataclass(frozen=True, kw_only=True)
class IdleState:
    """When the cluster ends itself, as the process that watches saw it last. Times: seconds since 1970."""

    hours: float
    used: float
    by: str
    in_use: bool = False
    problem: str = ""
    """Why the cluster could not be ended when it was due; empty if it was not due or nothing prevented it."""
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

    def written(self) -> int:
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
    head: Head,
    *,
    interval: float = INTERVAL,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Watch the head until the cluster is ended or the hours are removed. Return at once if another one does.

    Args:
        files: where the hours and the state are.
        head: looks at the head, and ends the cluster.
        interval: seconds between two looks.
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
        rule, problem, written = IdleRule(clock()), "", files.written()
        while hours := files.read_hours():
            rule.observe(head.look(), clock())
            if written != (written := files.written()):
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


def _prepare_end(rule: IdleRule, head: Head, hours: float, clock: Callable[[], float]) -> bool:
    """Do what takes long before the end of a cluster that seems due, and look once more.

    MLflow is ended before the last look, because its last copy takes up to a minute, in which a job may come.

    Returns:
        Whether the cluster is to be ended now. If not, everything on it runs as before.

    Raises:
        OSError: the storage of the searches cannot be read.
        TuneResconError: the copy of MLflow's database is not complete. MLflow was started again.
    """
    rule.record_use(head.beat_age(), "a search's heartbeat", clock())
    if not rule.is_due(hours, clock()):
        return False
    _log.warning("the cluster was not used for %g hours: last by %s", hours, rule.by)
    try:
        head.end_mlflow()
    except TuneResconError:
        head.start_mlflow()
        raise
    rule.observe(head.look(), clock())
    if rule.is_due(hours, clock()):
        return True
    head.start_mlflow()
    return False


def _end(head: Head, wait: Callable[[float], object]) -> None:
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
