"""What Ray can run instead of a trial that learns: it reports the same things, and fails on demand.

A learning rate of 0.1 is best; each factor of ten away from it costs 0.2 of accuracy.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from tune_rescon.config import METRICS
from tune_rescon.testing.curves import SyntheticCurve
from tune_rescon.tuning import TrialTask

__all__ = ["die_once", "fail_second", "learn_nothing", "learn_slowly"]

#: Seconds of an epoch that leaves time to interrupt it.
SLOW_EPOCH: Final = 0.3


def learn_nothing(config: dict[str, Any]) -> None:
    """Report the whole curve as fast as Tune takes it."""
    _report(TrialTask.from_dict(config), seconds=0.0)


def learn_slowly(config: dict[str, Any]) -> None:
    """Report the curve at a pace a person or a signal can step into; go on after its last epoch."""
    _report(TrialTask.from_dict(config), seconds=SLOW_EPOCH)


def die_once(config: dict[str, Any]) -> None:
    """As :func:`learn_slowly`, but trial 0's process is killed once, after its second epoch."""
    task = TrialTask.from_dict(config)
    _report(task, seconds=0.0, kill_after=2 if task.number == 0 else 0)


def fail_second(config: dict[str, Any]) -> None:
    """Trial 1 raises as a fault in our code would; the others learn."""
    if config["number"] == 1:
        raise RuntimeError("the second trial is broken on purpose")
    learn_nothing(config)


def _report(task: TrialTask, *, seconds: float, kill_after: int = 0) -> None:
    from ray import tune

    limit = 0.95 - 0.2 * abs(math.log10(task.config.learning_rate / 0.1))
    curve = SyntheticCurve(limit=max(limit, 0.05))
    done = _Progress(Path(task.checkpoint_dir))
    # From the last epoch again, as a real trial does: its report may have been lost with the driver.
    for epoch in range(max(done.read(), 1), task.epochs + 1):
        time.sleep(seconds)
        done.write(epoch)
        value = curve.at(epoch)
        metrics = {**dict.fromkeys(METRICS, 0.5), "val_accuracy": value, "epoch_seconds": seconds}
        report = {"number": task.number, "epoch": epoch, "metrics": metrics, "checkpoint": str(done.path)}
        tune.report(report)
        if epoch == kill_after and done.first_time():
            os.kill(os.getpid(), signal.SIGKILL)


class _Progress:
    """The checkpoint of a trial that learns nothing: how far it came."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "best.ckpt"
        self._killed = folder / "killed"

    def read(self) -> int:
        return int(self.path.read_text()) if self.path.exists() else 0

    def write(self, epoch: int) -> None:
        self.path.write_text(str(epoch))

    def first_time(self) -> bool:
        known = self._killed.exists()
        self._killed.touch()
        return not known
