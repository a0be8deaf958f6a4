"""What Ray runs: one trial, in a process that stays for the next one.

This module is imported by the driver (to send the function by reference) and by the workers (to run it), so
nothing heavy is imported before a trial really runs.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import DatasetConfig, MetricAt, TrialConfig, TrialState
from tune_rescon.training import messages
from tune_rescon.tuning.execution.notice import NOTICE, never, node_is_drained
from tune_rescon.tuning.execution.one_thread import on_one_thread
from tune_rescon.tuning.store.checkpoint_sync import synchronised

if TYPE_CHECKING:
    from tune_rescon.training import EpochReport
    from tune_rescon.training.callbacks import Left

__all__ = ["TrialTask", "run_trial"]

#: The files of a trial that are kept where the storage is a URL, in the order they are written.
_KEPT: Final = ("best.ckpt", "last.ckpt")

#: Seconds a process that was told to go waits for the driver to hear that it goes in order.
_FAREWELL: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """All a worker is told about a trial. Plain values only: it crosses processes as Tune's config dict."""

    number: int
    config: TrialConfig
    dataset: DatasetConfig
    epochs: int
    """Epochs of the whole schedule (``fidelity.max``)."""
    seed: int
    metric: str
    mode: str
    keep: MetricAt = "best"
    """Which epoch's network the trial keeps (``metric.at``)."""
    recorded: int
    """Epochs the record holds; a worker that knows of more owes their reports."""
    checkpoint_dir: str
    checkpoint_url: str | None
    """Where they are kept, if that is not where they are written."""
    data_root: str
    cache_root: str
    threads: int
    """CPU threads of a training process."""
    workers: int = 1
    """Processes that train it together."""
    device: str
    """``"cuda"`` where the trial was given a GPU, else ``"cpu"``."""

    def to_dict(self) -> dict[str, Any]:
        """Tune's config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialTask:
        """Back from Tune's config."""
        nested = {
            "config": TrialConfig.from_dict(values["config"]),
            "dataset": DatasetConfig(**values["dataset"]),
        }
        return cls(**{**values, **nested})


def run_trial(config: dict[str, Any]) -> None:
    """Train as ``config`` (a :class:`TrialTask` as dict) says, reporting to Tune after each epoch.

    An exception is reported as the trial's end rather than raised: Tune would retry it, and a fault of the
    configuration comes back every time. What Tune retries is a worker that died: so does one that was told to
    go, once its trial is left in order.
    """
    on_one_thread(functools.partial(_run, TrialTask.from_dict(config)))


def _run(task: TrialTask) -> None:
    from ray import tune

    try:
        left = _train(task)
    except Exception as error:
        tune.report({"number": task.number, "state": _fate(error).value, "error": traceback.format_exc()})
    else:
        if left is not None:
            _go(task, left)


def _train(task: TrialTask) -> Left | None:
    from tune_rescon.training.lean import import_lean_torchmetrics

    # First, as Lightning would otherwise bring all of torchmetrics.
    import_lean_torchmetrics()
    from ray import tune

    from tune_rescon.training import recorded_epochs
    from tune_rescon.training.callbacks import Left
    from tune_rescon.training.device import device_name
    from tune_rescon.training.trial_files import trained_steps
    from tune_rescon.tuning.execution.gang import gathered
    from tune_rescon.tuning.execution.training import train_task

    folder = Path(task.checkpoint_dir)
    name = device_name(task.device)

    def report(epoch: EpochReport) -> None:
        sync.send(last=epoch.epoch == task.epochs)
        best = sync.kept(epoch.best_checkpoint) if epoch.best_checkpoint else None
        metrics = dict(epoch.metrics)
        tune.report(
            {
                "number": task.number,
                "epoch": epoch.epoch,
                "metrics": metrics,
                "checkpoint": best,
                "device": name,
            }
        )

    def note(text: str) -> None:
        tune.report({"number": task.number, "note": text})

    with synchronised(
        folder,
        task.checkpoint_url,
        names=_KEPT,
        progress=trained_steps,
        note=note,
    ) as sync:
        for owed in recorded_epochs(folder)[task.recorded :]:
            # A worker or driver that died between a checkpoint and its record owes that report.
            report(owed)
        with gathered(task) as peers, _told_to_leave(task) as leave:
            try:
                train_task(task, folder, peers, on_epoch=report, on_note=note, leave=leave)
            except Left as left:
                sync.send(last=True)
                return left
    return None


@contextmanager
def _told_to_leave(task: TrialTask) -> Iterator[Callable[[], bool]]:
    if task.workers > 1:
        yield never
        return
    with NOTICE.heeded(is_drained=node_is_drained) as told:
        yield told


def _go(task: TrialTask, left: Left) -> None:
    """End this process, and with it what Tune takes for the trial; the coordinator knows better."""
    from ray import tune

    # A report waits for the driver, which may be gone.
    patience = threading.Timer(_FAREWELL, os._exit, [1])
    patience.daemon = True
    patience.start()
    tune.report({"number": task.number, "note": messages.left(left.epoch, left.batches), "leaving": True})
    os._exit(1)


def _fate(error: Exception) -> TrialState:
    import torch

    return TrialState.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else TrialState.FAILED
