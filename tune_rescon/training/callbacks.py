"""What happens around Lightning's loop, one concern a callback. Their order in the Trainer matters:
:func:`tune_rescon.training.trial.train_trial` lists them in the order they must run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from tune_rescon.data import ImageDataModule
from tune_rescon.training.module import TrialModule
from tune_rescon.training.randomness import generator_states, restore_generators, seed_epoch

__all__ = [
    "AverageWeights",
    "Diverged",
    "FiniteLoss",
    "PreciseBatchNorm",
    "SeedEpochs",
]


class Diverged(Exception):  # noqa: N818 - a message to train_trial, not an error
    """The training loss is no longer finite: the trial is over."""


class SeedEpochs(Callback):
    """Seed torch for each epoch, whatever drew random numbers since the last."""

    def __init__(self, seed: int, rank: int = 0) -> None:
        """``seed`` is the trial's; of its processes, if several, each drops its own paths by ``rank``."""
        self._seed, self._rank = seed, rank
        self._drawn: Mapping[str, Tensor] = {}

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """How much of the epoch was drawn goes with its checkpoint."""
        checkpoint["generators"] = generator_states(pl_module.device)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """An earlier version wrote none, and only at the end of epochs, where nothing is left to draw."""
        self._drawn = checkpoint.get("generators", {})

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of an epoch that goes on, Lightning does not call the start."""
        restore_generators(self._drawn, pl_module.device)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Epochs count from 1 in seeds; 0 was the initialisation."""
        seed_epoch(self._seed, trainer.current_epoch + 1, self._rank)


class AverageWeights(Callback):
    """Move the averaged network after each step, if the trial has one."""

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """``global_step`` has counted the step just taken."""
        assert isinstance(pl_module, TrialModule)
        if pl_module.averaged is not None:
            pl_module.averaged.update(pl_module.network, trainer.global_step - 1)


class FiniteLoss(Callback):
    """End a training whose loss is nan or infinite, within ``every`` steps and before it is validated."""

    def __init__(self, every: int = 20) -> None:
        """Reading the loss makes a GPU wait for its queue, so not after each step."""
        self._every = every

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The running mean keeps a non-finite value, so no step between two readings is missed.

        Raises:
            Diverged: the mean is not finite.
        """
        assert isinstance(pl_module, TrialModule)
        steps = batch_idx + 1
        due = steps % self._every == 0 or steps == trainer.num_training_batches
        if due and not math.isfinite(pl_module.train_metrics.mean_loss):
            raise Diverged


class PreciseBatchNorm(Callback):
    """Before a validation, re-estimate the judged network's batch-norm statistics on training batches.

    The batches are the epoch's last ones, kept as they were trained on: reading others would cost loading
    and augmenting, and could disturb order and randomness. They stay on the device until the validation.
    Where an epoch goes on, those of them that were trained on before are made again.
    """

    def __init__(self, batches: int, *, done: int = 0) -> None:
        """``batches``: how many; 0 leaves training's running statistics alone.

        ``done``: batches of the first epoch that were trained on before.
        """
        self._batches = batches
        self._done = done
        self._kept: list[Tensor] = []

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A batch is a function of its place in the epoch."""
        first = max(0, int(trainer.num_training_batches) - self._batches)
        if self._done > first:
            data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning does not declare it
            assert isinstance(data, ImageDataModule)
            batches = data.train_batches(epoch=trainer.current_epoch, device=pl_module.device, first=first)
            self._kept = [images_BCHW for images_BCHW, _ in itertools.islice(batches, self._done - first)]

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Not every epoch is followed by a validation."""
        self._kept = []

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the images of the last batches."""
        images_BCHW, _ = batch
        if batch_idx >= trainer.num_training_batches - self._batches:
            self._kept.append(images_BCHW)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has put the module in eval mode by now, and puts it back afterwards."""
        assert isinstance(pl_module, TrialModule)
        pl_module.reestimate_batch_norm(self._kept)
        self._kept = []
