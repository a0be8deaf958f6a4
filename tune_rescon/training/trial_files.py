"""A trial's files: its checkpoints, what they say of themselves, and where a trial continues."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import MetricAt, TrialConfig
from tune_rescon.errors import StorageError, format_error
from tune_rescon.models import NetworkSpec
from tune_rescon.training import messages
from tune_rescon.training.checkpoint import CheckpointFolder, is_intact, read_checkpoint
from tune_rescon.training.messages import EpochReport, OnMessage, is_better
from tune_rescon.training.module import TrialModule
from tune_rescon.training.weights import TrainedNetwork, describe_trained, save_trained

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = [
    "CheckpointMetadata",
    "CheckpointWriter",
    "ResumePoint",
    "find_resume_point",
    "kept_best",
    "recorded_epochs",
    "trained_steps",
]


#: What makes a trial this one; the names are those of TrainedNetwork too.
_IDENTITY: Final = ("config", "spec", "dataset", "seed")


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """A trial and how far it has come."""

    config: TrialConfig
    spec: NetworkSpec
    dataset: str
    """Content key of its images and their split."""
    seed: int
    epochs: int
    """Length of the whole training: the schedule was laid over it."""
    history: tuple[Mapping[str, float], ...] = ()
    """Metrics of epochs 1, 2, ...; each one's ``epoch_seconds`` stops before its own checkpoint."""
    batches: int = 0
    """Batches trained of the epoch after those."""
    micro_batches: int = 1
    """Pieces a batch is cut into, as the memory was found to demand: what goes on starts with them."""
    recomputes: bool = False
    """Whether activations are computed again, likewise."""

    def extended(self, metrics: Mapping[str, float]) -> CheckpointMetadata:
        """With one more epoch."""
        return dataclasses.replace(self, history=(*self.history, dict(metrics)), batches=0)

    def continued(self, found: CheckpointMetadata) -> CheckpointMetadata:
        """``found``, read from a checkpoint, if it is this trial's.

        Raises:
            StorageError: it is another trial's: another configuration, network, dataset, seed or length.
        """
        self._require_same(found, (*_IDENTITY, "epochs"))
        return found

    def check_own(self, network: TrainedNetwork) -> None:
        """Check that a trained network is this trial's.

        Raises:
            StorageError: it is another trial's: another configuration, network, dataset or seed.
        """
        self._require_same(network, _IDENTITY)

    def _require_same(self, found: CheckpointMetadata | TrainedNetwork, names: tuple[str, ...]) -> None:
        other = [name for name in names if getattr(self, name) != getattr(found, name)]
        if other:
            rule = "a trial can only go on from its own checkpoint"
            hint = "Give each trial a checkpoint folder of its own."
            raise StorageError(format_error(rule, got=f"one with another {', '.join(other)}", hint=hint))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "config": self.config.to_dict(),
            "spec": self.spec.to_dict(),
            "dataset": self.dataset,
            "seed": self.seed,
            "epochs": self.epochs,
            "history": [dict(metrics) for metrics in self.history],
            "batches": self.batches,
            "micro_batches": self.micro_batches,
            "recomputes": self.recomputes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckpointMetadata:
        """Back from :meth:`to_dict`.

        Raises:
            ConfigError, NetworkError: another version wrote it.
        """
        nested = {
            "config": TrialConfig.from_dict(values["config"]),
            "spec": NetworkSpec.from_dict(values["spec"]),
            "history": tuple(values["history"]),
        }
        return cls(**{**values, **nested})


def kept_best(folder: CheckpointFolder) -> TrainedNetwork | None:
    """Which network ``best.ckpt`` holds; None if there is none or it is damaged.

    Raises:
        StorageError: the file is no trained network's.
    """
    return describe_trained(folder.best) if is_intact(folder.best) else None


class CheckpointWriter:
    """Writes a trial's files, and knows what is in them.

    A better network (a later one, if the last is kept) replaces the one in ``best.ckpt``, whatever else the
    trial has reported: an epoch whose network could not be written does not keep the next one out.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        best: TrainedNetwork | None,
        about: Callable[[int, Mapping[str, float]], TrainedNetwork],
        metric: str,
        mode: str,
        keep: MetricAt = "best",
    ) -> None:
        """``best``: what ``best.ckpt`` holds; ``about(epoch, metrics)`` goes with the network of an epoch.

        ``keep``: the network of the epoch with the best ``metric``, or of the last one where it is finite.
        """
        self._folder = folder
        self._best = best
        self._about = about
        self._metric, self._mode, self._keeps = metric, mode, keep

    @property
    def checkpoint(self) -> Path | None:
        """What training would go on from."""
        return self._folder.written()

    @property
    def best_checkpoint(self) -> Path | None:
        """The file of the best network kept."""
        return self._folder.best if self._best else None

    def keep(
        self, trainer: pl.Trainer, module: TrialModule, epoch: int, metrics: Mapping[str, float]
    ) -> tuple[str, ...]:
        """Write the network, if it is to be kept, then the checkpoint. Returns what could not be."""
        return (*self._keep_best(module, epoch, metrics), *self._keep_last(trainer, epoch))

    def keep_amid(self, trainer: pl.Trainer, epoch: int, batches: int) -> tuple[str, ...]:
        """Write the checkpoint after so many batches of an epoch. Returns what could not be."""
        try:
            trainer.save_checkpoint(self._folder.last)
        except OSError as error:
            return (messages.left_unwritten(epoch, batches, error),)
        return ()

    def _keep_best(self, module: TrialModule, epoch: int, metrics: Mapping[str, float]) -> tuple[str, ...]:
        best = self._best.metrics[self._metric] if self._best and self._keeps == "best" else None
        # A metric of the test images is not there before the last epoch.
        if not is_better(metrics.get(self._metric, math.nan), best, self._mode):
            return ()
        about = self._about(epoch, metrics)
        try:
            save_trained(module.judged, about, self._folder.best)
        except OSError as error:
            # The file itself is asked: the write may have failed after its rename.
            self._best = kept_best(self._folder)
            return (messages.best_unwritten(epoch, error, kept=self._best.epoch if self._best else None),)
        self._best = about
        return ()

    def _keep_last(self, trainer: pl.Trainer, epoch: int) -> tuple[str, ...]:
        try:
            trainer.save_checkpoint(self._folder.last)
        except OSError as error:
            return (messages.checkpoint_unwritten(epoch, error),)
        return ()


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The beginning of a trial, or the point it goes on from."""

    record: CheckpointMetadata
    checkpoint: Path | None = None
    """None: from the start."""
    best: TrainedNetwork | None = None
    """What ``best.ckpt`` holds."""


def find_resume_point(
    record: CheckpointMetadata, folder: CheckpointFolder | None, on_note: OnMessage
) -> ResumePoint:
    """How far the trial that begins as ``record`` has come in ``folder`` (made if absent).

    Raises:
        StorageError: the folder cannot be made, or holds another trial's files.
    """
    if folder is None:
        return ResumePoint(record=record)
    folder.create()
    found = folder.recover()
    if found.path is not None:
        record = record.continued(_read_record(found.path))
    if found.damaged:
        on_note(messages.damaged(found.damaged, epoch=len(record.history)))
    best = kept_best(folder)
    if best is not None:
        record.check_own(best)
    elif folder.best.exists():
        on_note(messages.best_damaged())
    return ResumePoint(record=record, checkpoint=found.path, best=best)


def recorded_epochs(checkpoint_dir: Path) -> tuple[EpochReport, ...]:
    """The epochs that :func:`tune_rescon.training.train_trial` would find behind it, oldest first.

    For a caller that went down between the writing of an epoch's checkpoint and its report: damaged files
    are passed over as there, but nothing is moved. In these, ``epoch_seconds`` leaves out the writing of the
    epoch's own checkpoint, and the files named are those there are now, not those of the epoch.
    """
    folder = CheckpointFolder(path=checkpoint_dir)
    found = folder.find()
    history = _read_record(found.path).history if found.path else ()
    best = folder.best if kept_best(folder) else None
    return tuple(
        EpochReport(epoch=epoch, metrics=metrics, checkpoint=found.path, best_checkpoint=best)
        for epoch, metrics in enumerate(history, start=1)
    )


def trained_steps(checkpoint_dir: Path) -> int:
    """Training steps behind the checkpoint that :func:`recorded_epochs` finds: how far a folder has come."""
    found = CheckpointFolder(path=checkpoint_dir).find()
    return int(read_checkpoint(found.path)["global_step"]) if found.path else 0


def _read_record(checkpoint: Path) -> CheckpointMetadata:
    values = read_checkpoint(checkpoint)
    if "trial" not in values:
        rule = "a checkpoint to go on from must be one a trial wrote"
        raise StorageError(format_error(rule, got="one without a trial's record", where=str(checkpoint)))
    return CheckpointMetadata.from_dict(values["trial"])
