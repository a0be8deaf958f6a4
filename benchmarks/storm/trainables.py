"""What both sides train: the same curve at the same pace, with a real checkpoint file after each epoch.

A ledger beside the search, which neither side knows of, says which epochs were really trained, how often.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tune_rescon.metric_names import METRICS
from tune_rescon.testing import SyntheticCurve
from tune_rescon.tuning import TrialTask

__all__ = ["EPOCHS", "EPOCH_SECONDS", "LEDGER", "accuracy", "train_ours", "train_plain"]

#: Environment variable that names the ledger.
LEDGER = "TUNE_RESCON_STORM_LEDGER"

EPOCHS = 9
EPOCH_SECONDS = 0.1

#: Bytes of a checkpoint.
WEIGHT = 20_000


def accuracy(learning_rate: float, epoch: int) -> float:
    """The validation accuracy: 0.1 is the best learning rate, each factor of ten away costs 0.2."""
    limit = 0.95 - 0.2 * abs(math.log10(learning_rate / 0.1))
    return SyntheticCurve(limit=max(limit, 0.05)).at(epoch)


def train_ours(config: dict[str, Any]) -> None:
    """A trial of tune_rescon: its checkpoint is in the folder it was given."""
    from ray import tune

    task = TrialTask.from_dict(config)
    last, best = (Path(task.checkpoint_dir) / name for name in ("last.ckpt", "best.ckpt"))

    def report(epoch: int) -> None:
        value = accuracy(task.config.learning_rate, epoch)
        metrics = {**dict.fromkeys(METRICS, 0.5), "val_accuracy": value, "epoch_seconds": EPOCH_SECONDS}
        tune.report({"number": task.number, "epoch": epoch, "metrics": metrics, "checkpoint": str(best)})

    done = json.loads(last.read_text())["epoch"] if last.exists() else 0
    for owed in range(task.epochs_in_study + 1, done + 1):
        # Its report was lost with a worker or a driver.
        report(owed)
    for epoch in range(done + 1, task.epochs + 1):
        _train_epoch(task.config.learning_rate, epoch)
        for path in (best, last):
            _write(path, epoch)
        report(epoch)


def train_plain(config: dict[str, Any]) -> None:
    """A trial of plain Ray Tune, with the checkpoints of its tutorials."""
    from ray import tune

    done = 0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            done = json.loads((Path(folder) / "last.ckpt").read_text())["epoch"]
    for epoch in range(done + 1, EPOCHS + 1):
        _train_epoch(config["learning_rate"], epoch)
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder) / "last.ckpt", epoch)
            tune.report(
                {"epoch": epoch, "val_accuracy": accuracy(config["learning_rate"], epoch)},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


def _train_epoch(learning_rate: float, epoch: int) -> None:
    time.sleep(EPOCH_SECONDS)
    with Path(os.environ[LEDGER]).open("a") as ledger:
        # One short write to a file opened for appending is one line, whichever process writes.
        ledger.write(f"{learning_rate!r} {epoch}\n")


def _write(path: Path, epoch: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps({"epoch": epoch, "weights": "0" * WEIGHT}))
    half.replace(path)
