"""Functions that Ray can run instead of a trial that trains: they report the same metrics and fail on demand.

A learning rate of 0.1 is the best; each factor of ten away from it costs 0.2 of accuracy.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.metric_names import METRICS
from tune_rescon.testing.landscapes import SyntheticCurve
from tune_rescon.tuning import Decision, TrialTask
from tune_rescon.tuning.ray.worker import synchronised

__all__ = [
    "EpochRun",
    "Incumbent",
    "Trace",
    "die_variously",
    "end_together",
    "fail_second",
    "learn_nothing",
    "learn_slowly",
]


@dataclass(frozen=True, kw_only=True)
class EpochRun:
    """One epoch of one trial on one worker; ``begun`` and ``ended`` are simulated seconds."""

    number: int
    epoch: int
    worker: int
    begun: float
    ended: float
    value: float
    """The reported value; nan also if the epoch was lost."""
    decision: Decision | None
    """The decision after the epoch; None if the epoch was lost with its worker or its driver."""


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best trial from some moment on.

    The trial with the most epochs wins, then the best value: Optuna's order of pruned trials, which is also
    this project's order.
    """

    epochs_spent: int
    """Epochs of all trials together, up to that moment."""
    seconds: float
    number: int
    epoch: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Every epoch that a simulated search ran, in the order in which the epochs ended."""

    workers: int
    runs: tuple[EpochRun, ...]

    @property
    def epochs_spent(self) -> int:
        """Epochs that ran, including lost ones: the cost of the search."""
        return len(self.runs)

    @property
    def seconds(self) -> float:
        """The simulated time at which the last epoch ended."""
        return max((run.ended for run in self.runs), default=0.0)

    @property
    def utilisation(self) -> float:
        """The fraction of the workers' time that was spent on training; lost epochs count as idle."""
        busy = math.fsum(run.ended - run.begun for run in self.runs if run.decision is not None)
        return busy / (self.workers * self.seconds) if self.runs else 0.0

    def epochs_of(self, number: int) -> tuple[int, ...]:
        """Return the epochs that a trial reported, in order."""
        return tuple(r.epoch for r in self.runs if r.number == number and r.decision is not None)

    def incumbents(self) -> Iterator[Incumbent]:
        """Yield the best trial so far, each time it changes or reports a later epoch."""
        best = (0, -math.inf)
        for spent, run in enumerate(self.runs, 1):
            if run.decision is None or not math.isfinite(run.value) or (run.epoch, run.value) <= best:
                continue
            best = (run.epoch, run.value)
            yield Incumbent(
                epochs_spent=spent, seconds=run.ended, number=run.number, epoch=run.epoch, value=run.value
            )


#: Seconds of an epoch that is slow enough to be interrupted.
SLOW_EPOCH: Final = 0.3

#: Seconds between two moments at which trials end together.
TOGETHER: Final = 0.5


def learn_nothing(config: dict[str, Any]) -> None:
    """Report the complete curve as fast as Tune accepts it."""
    _report(TrialTask.from_dict(config), seconds=0.0)


def learn_slowly(config: dict[str, Any]) -> None:
    """Report the curve slowly enough for a person or a signal to interrupt it.

    A resumed trial continues after its last epoch.
    """
    _report(TrialTask.from_dict(config), seconds=SLOW_EPOCH)


def die_variously(config: dict[str, Any]) -> None:
    """Report as :func:`learn_nothing`, but end the processes of trials 0 to 5, each in a different way.

    A process ends before anything is written, after the first checkpoint, in the middle of the trial, or
    after a report. It is killed, or it exits without an exception that ``except Exception`` would catch.
    Trial 4 loses every process.
    """
    task = TrialTask.from_dict(config)
    _report(task, seconds=0.0, death=_DEATHS.get(task.number))


def end_together(config: dict[str, Any]) -> None:
    """Report as :func:`learn_nothing`, at the next full half second; each trial notes its process ID."""
    from ray import tune

    task = TrialTask.from_dict(config)
    tune.report({"number": task.number, "note": f"process {os.getpid()}"})
    time.sleep(TOGETHER - time.time() % TOGETHER)
    _report(task, seconds=0.0)


def fail_second(config: dict[str, Any]) -> None:
    """Raise in trial 1, as a bug in our code would; report as :func:`learn_nothing` in all other trials."""
    if config["number"] == 1:
        raise RuntimeError("the second trial is broken on purpose")
    learn_nothing(config)


@dataclass(frozen=True, kw_only=True)
class _Death:
    """How a trial's process ends early."""

    epoch: int
    """The epoch in which the process ends, after the epoch's checkpoint; 0: before anything is written."""
    end: Callable[[], object]
    """Ends the process."""
    reported: bool = False
    """True: after the report of the epoch; False: before it."""
    always: bool = False
    """True: each time the epoch is reached; False: only once."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_DEATHS: Final[Mapping[int, _Death]] = {
    0: _Death(epoch=0, end=_kill),
    1: _Death(epoch=1, end=_kill),
    2: _Death(epoch=4, end=lambda: sys.exit(1)),
    3: _Death(epoch=5, end=lambda: os._exit(1)),
    4: _Death(epoch=2, end=lambda: os._exit(1), always=True),
    5: _Death(epoch=2, end=_kill, reported=True),
}


def _report(task: TrialTask, *, seconds: float, death: _Death | None = None) -> None:
    from ray import tune

    limit = 0.95 - 0.2 * abs(math.log10(task.config.learning_rate / 0.1))
    curve = SyntheticCurve(limit=max(limit, 0.05))
    folder = Path(task.checkpoint_dir)

    def note(text: str) -> None:
        tune.report({"number": task.number, "note": text})

    with synchronised(
        folder,
        task.checkpoint_url,
        names=[_Progress.NAME],
        progress=lambda f: _Progress(f).read(),
        note=note,
    ) as sync:
        done = _Progress(folder)
        done.die(death, epoch=0, reported=False)
        # As in a real trial, epochs that the driver lost, so that the record misses them, are reported again.
        for epoch in range(min(done.read(), task.epochs_in_study) + 1, task.epochs + 1):
            time.sleep(seconds)
            done.write(max(epoch, done.read()))
            value = curve.at(epoch)
            metrics = {**dict.fromkeys(METRICS, 0.5), "val_accuracy": value, "epoch_seconds": seconds}
            done.die(death, epoch=epoch, reported=False)
            sync.send(last=epoch == task.epochs)
            checkpoint = sync.location(done.path)
            tune.report({"number": task.number, "epoch": epoch, "metrics": metrics, "checkpoint": checkpoint})
            done.die(death, epoch=epoch, reported=True)


class _Progress:
    """The checkpoint of a trial that does not train: the number of its last epoch."""

    NAME: Final = "best.ckpt"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / self.NAME
        # Beside the checkpoint folder: a search deletes the files of a losing trial, but not this one.
        self._killed = folder.parents[1] / f".{folder.name}.killed"

    def read(self) -> int:
        return int(self.path.read_text()) if self.path.exists() else 0

    def write(self, epoch: int) -> None:
        self.path.write_text(str(epoch))

    def die(self, death: _Death | None, *, epoch: int, reported: bool) -> None:
        """End this process if ``death`` is due at this point."""
        if death is None or (death.epoch, death.reported) != (epoch, reported):
            return
        if death.always or not self._killed.exists():
            self._killed.touch()
            death.end()
