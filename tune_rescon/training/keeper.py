"""What a trial keeps on disk at the end of an epoch. A disk that is full costs a file, never the trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytorch_lightning as pl

from tune_rescon.config import MetricAt
from tune_rescon.training import notes
from tune_rescon.training.checkpoint import CheckpointFolder, is_intact
from tune_rescon.training.module import TrialModule
from tune_rescon.training.report import is_better
from tune_rescon.training.trained import TrainedNetwork, describe_trained, save_trained

__all__ = ["Keeper", "kept_best"]


def kept_best(folder: CheckpointFolder) -> TrainedNetwork | None:
    """Which network ``best.ckpt`` holds; None if there is none or it is damaged.

    Raises:
        StorageError: the file is no trained network's.
    """
    return describe_trained(folder.best) if is_intact(folder.best) else None


class Keeper:
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
            return (notes.left_unwritten(epoch, batches, error),)
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
            return (notes.best_unwritten(epoch, error, kept=self._best.epoch if self._best else None),)
        self._best = about
        return ()

    def _keep_last(self, trainer: pl.Trainer, epoch: int) -> tuple[str, ...]:
        try:
            trainer.save_checkpoint(self._folder.last)
        except OSError as error:
            return (notes.checkpoint_unwritten(epoch, error),)
        return ()
