"""What Ray runs: one trial, in a process that stays for the next one.

This module is imported by the driver (to send the function by reference) and by the workers (to run it), so
nothing heavy is imported before a trial really runs.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import DatasetConfig, TrialConfig, TrialState
from tune_rescon.tuning.store.checkpoint_sync import synchronised

if TYPE_CHECKING:
    from tune_rescon.training import EpochReport

__all__ = ["TrialTask", "run_trial"]

#: The files of a trial that are kept where the storage is a URL, in the order they are written.
_KEPT: Final = ("best.ckpt", "last.ckpt")


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
    configuration comes back every time. What Tune retries is a worker that died.
    """
    from ray import tune

    task = TrialTask.from_dict(config)
    try:
        _train(task)
    except Exception as error:
        tune.report({"number": task.number, "state": _fate(error).value, "error": traceback.format_exc()})


def _train(task: TrialTask) -> None:
    from ray import tune

    from tune_rescon.training import recorded_epochs
    from tune_rescon.training.device_name import device_name
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
        epochs=lambda folder: len(recorded_epochs(folder)),
        note=note,
    ) as sync:
        for owed in recorded_epochs(folder)[task.recorded :]:
            # A worker or driver that died between a checkpoint and its record owes that report.
            report(owed)
        with gathered(task) as peers:
            train_task(task, folder, peers, on_epoch=report, on_note=note)


def _fate(error: Exception) -> TrialState:
    import torch

    return TrialState.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else TrialState.FAILED
