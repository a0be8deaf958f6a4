"""One search through all its lives: driver after driver on the same storage, each struck down as planned."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from storm.plan import Moment, Pace, Plan, moment
from storm.processes import MARK, Household
from storm.trainables import LEDGER

__all__ = ["Life", "Lives"]

#: Seconds between two looks at a driver.
TICK = 0.02

#: Seconds between two looks for a trial process that can be killed; each reads all of /proc.
SEARCH = 0.1

#: Seconds after which a driver that should end by itself is given up.
TIMEOUT = 300.0

#: Seconds Ray gets to clean up after a driver that died, before what is left counts as an orphan. Its agents
#: stay for about a minute, the time they give a lost GCS to come back.
CLEANUP = 75.0

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(kw_only=True)
class Life:
    """What became of one driver."""

    exit_code: int | None = None
    """None: it was killed."""
    seconds: float = 0.0
    first_epoch: float | None = None
    """Seconds from its start to the end of the first epoch trained in it; None: none was."""
    trained: int = 0
    """Epochs trained in all lives when it ended."""
    workers_killed: int = 0


class Lives:
    """Runs the drivers of one search, one after another."""

    def __init__(self, command: Sequence[str], folder: Path, ray_folder: Path) -> None:
        """Set up.

        Args:
            command: starts a driver, which itself finds out whether there is a search to resume.
            folder: where the log, the ledger and scratch files go.
            ray_folder: holds a directory for each life; a short path, for Ray's sockets.
        """
        self._command = command
        self._folder = folder
        self._ray_folder = ray_folder
        self._ledger = folder / "ledger"
        self._households: list[Household] = []

    def trained(self) -> list[str]:
        """A line for each epoch trained so far."""
        return self._ledger.read_text().splitlines() if self._ledger.exists() else []

    def weather(self, plan: Plan, pace: Pace) -> list[Life]:
        """Live through ``plan``; the last life ends by itself."""
        rng = random.Random(plan.seed)
        lives: list[Life] = []
        for share, blows in zip((*plan.driver_kills, None), plan.worker_kills, strict=True):
            trained = len(self.trained())
            strikes = [moment(blow, pace, trained) for blow in blows]
            end = None if share is None else moment(share, pace, trained)
            lives.append(self.live(end=end, blows=strikes, rng=rng))
            if share is not None and lives[-1].exit_code == 0:
                # Done before it could be killed: what can be killed is a driver that finds that out.
                soon = Moment(seconds=share * pace.startup, epochs=0)
                lives.append(self.live(end=soon, blows=(), rng=rng))
        return lives

    def live(self, *, end: Moment | None, blows: Sequence[Moment], rng: random.Random) -> Life:
        """Start a driver and watch it to its end, its own or that at the moment ``end``."""
        life, driver, household = Life(), *self._start()
        waiting, before, began = list(blows), len(self.trained()), time.monotonic()
        epochs, last = 0, 0.0
        while driver.poll() is None:
            life.seconds = time.monotonic() - began
            if len(self.trained()) - before > epochs:
                epochs, last = len(self.trained()) - before, life.seconds
                life.first_epoch = life.first_epoch or last
            now = (life.seconds, epochs, life.seconds - last)
            if waiting and waiting[0].is_due(*now):
                struck = _strike(household, rng)
                life.workers_killed += struck
                waiting[:1] = [] if struck else [Moment(seconds=life.seconds + SEARCH, epochs=0)]
            if (end is not None and end.is_due(*now)) or life.seconds >= TIMEOUT:
                driver.kill()
                driver.wait()
                break
            time.sleep(TICK)
        life.exit_code = None if driver.returncode == -signal.SIGKILL else driver.returncode
        life.trained = len(self.trained())
        return life

    def _start(self) -> tuple[subprocess.Popen[bytes], Household]:
        number = len(self._households)
        ray_folder, scratch = self._ray_folder / str(number), self._folder / "tmp"
        for path in (ray_folder, scratch):
            path.mkdir(parents=True, exist_ok=True)
        mark = f"{self._folder.name}-{number}-{os.getpid()}"
        settings = {
            MARK: mark,
            LEDGER: str(self._ledger),
            "RAY_TMPDIR": str(ray_folder),
            "TMPDIR": str(scratch),
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
        }
        with (self._folder / "driver.log").open("ab") as log:
            log.write(f"\n===== life {number}\n".encode())
            log.flush()
            driver = subprocess.Popen(
                self._command,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )
        self._households.append(Household(mark, ray_folder))
        return driver, self._households[-1]

    def orphans(self) -> list[str]:
        """What any driver has left behind a while after the last one; it is ended."""
        time.sleep(CLEANUP)
        return [title for home in self._households for title in home.end()]


def _strike(household: Household, rng: random.Random) -> bool:
    """Kill one process that runs a trial; False if no process runs one yet."""
    there = sorted(household.trial_processes(), key=lambda process: process.pid)
    if not there:
        return False
    try:
        rng.choice(there).kill()
    except psutil.NoSuchProcess:
        return False
    return True
