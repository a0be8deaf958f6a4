"""Callbacks of Lightning's Trainer, one for each concern, in the order in which the Trainer calls them.

:class:`.EpochReporter`, which runs before :class:`StopOnPreemption`, is in another file.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from tune_rescon.data import ImageDataModule
from tune_rescon.errors import counted
from tune_rescon.training.device import generator_states, restore_generators, seed_epoch
from tune_rescon.training.layers import Trunk
from tune_rescon.training.messages import OnMessage
from tune_rescon.training.module import TrialModule
from tune_rescon.training.trial_files import CheckpointWriter

__all__ = [
    "PROGRESS_SECONDS",
    "AverageWeights",
    "Diverged",
    "EpochProgress",
    "FiniteLoss",
    "FreezeTrunk",
    "PreciseBatchNorm",
    "Preempted",
    "SeedEpochs",
    "StopOnPreemption",
]


class SeedEpochs(Callback):
    """Seed torch at the start of each epoch, independently of random numbers drawn before."""

    def __init__(self, seed: int, rank: int = 0) -> None:
        """Create the callback. Each ``rank`` of a trial has other random numbers."""
        self._seed, self._rank = seed, rank
        self._states: Mapping[str, Tensor] = {}

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the states of the random generators."""
        checkpoint["generators"] = generator_states(pl_module.device)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the states of the random generators.

        An earlier version saved none. It wrote checkpoints only at the end of epochs, and each epoch is
        seeded.
        """
        self._states = checkpoint.get("generators", {})

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the generators. Lightning does not call ``on_train_epoch_start`` for a resumed epoch.

        The states are those of rank 0. Other ranks, which had no part in an unfinished epoch, are seeded.
        """
        if self._rank:
            self.on_train_epoch_start(trainer, pl_module)
        else:
            restore_generators(self._states, pl_module.device)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the epoch, counted from 1; 0 is the seed of the initialisation."""
        seed_epoch(self._seed, trainer.current_epoch + 1, self._rank)


class FreezeTrunk(Callback):
    """Train only the classifier in the first epochs.

    The layers before it have pretrained weights, and the gradients of a random classifier would spoil them.
    They stay unchanged until the classifier has learned, and so do the running statistics of their batch
    norms, by which they normalise.

    Lightning restores the modes of a network's modules after a validation. A captured step is captured again
    when the trunk is unfrozen, because other weights have gradients then.
    """

    def __init__(self, epochs: int) -> None:
        """Create the callback; 0 ``epochs`` freeze nothing."""
        self._epochs = epochs
        self._trunk: Trunk | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the trunk. Lightning does not call ``on_train_epoch_start`` for a resumed epoch."""
        if self._epochs:
            assert isinstance(pl_module, TrialModule)
            self._trunk = Trunk(pl_module.network)
            self._trunk.freeze(trainer.current_epoch < self._epochs)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Unfreeze the trunk in the first epoch after the frozen ones."""
        if self._trunk is not None and trainer.current_epoch == self._epochs:
            self._trunk.freeze(False)


class AverageWeights(Callback):
    """Update the averaged network after each step, if there is one."""

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average; ``global_step`` already includes this step."""
        assert isinstance(pl_module, TrialModule)
        if pl_module.averaged is not None:
            pl_module.averaged.update(pl_module.network, trainer.global_step - 1)


class Diverged(Exception):  # noqa: N818 - a message to FitAttempt.run, not an error
    """The training loss is no longer finite, so the trial ends."""


class FiniteLoss(Callback):
    """Stop the training within ``every`` steps, and before the validation, if the loss is nan or infinite."""

    def __init__(self, every: int = 20) -> None:
        """Create the callback.

        Reading the loss makes the host wait for a GPU's queue, so it is read once in ``every`` steps.
        """
        self._every = every

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the running mean of the loss.

        The mean stays non-finite once one loss was, so no step between two readings is missed.

        Raises:
            Diverged: the mean is not finite.
        """
        assert isinstance(pl_module, TrialModule)
        steps = batch_idx + 1
        due = steps % self._every == 0 or steps == trainer.num_training_batches
        if due and not math.isfinite(pl_module.train_metrics.mean_loss):
            raise Diverged


class PreciseBatchNorm(Callback):
    """Before a validation, re-estimate the evaluated network's batch-norm statistics on training batches.

    The batches are the epoch's last ones, which are kept on the device. Other batches would have to be loaded
    and augmented, and could change the order and the random numbers. When an epoch is resumed, the batches
    before the resume are generated again.
    """

    def __init__(self, batches: int, *, done: int = 0, frozen: int = 0) -> None:
        """Create the callback.

        Args:
            batches: batches to estimate from; 0 leaves the running statistics of the training unchanged.
            done: batches of the first epoch that were trained before the resume.
            frozen: epochs at the start whose statistics must stay as they are.
        """
        self._batches = batches
        self._done = done
        self._frozen = frozen
        self._kept: list[Tensor] = []

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Generate the batches trained before the resume.

        A batch depends only on its position in the epoch.
        """
        first = max(0, int(trainer.num_training_batches) - self._batches)
        if self._done > first:
            data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning does not declare it
            assert isinstance(data, ImageDataModule)
            batches = data.train_batches(epoch=trainer.current_epoch, device=pl_module.device, first=first)
            self._kept = [images_BCHW for images_BCHW, _ in itertools.islice(batches, self._done - first)]

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the batches kept in the previous epoch. Not every epoch is followed by a validation."""
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
        """Re-estimate the statistics; Lightning has set eval mode by now and restores the mode afterwards."""
        assert isinstance(pl_module, TrialModule)
        if trainer.current_epoch >= self._frozen:
            pl_module.reestimate_batch_norm(self._kept)
        self._kept = []

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Average the statistics over the trial's processes, so that all continue with the checkpoint's.

        A validation averages only those of the evaluated network, and not every epoch is followed by one.
        """
        assert isinstance(pl_module, TrialModule)
        if trainer.current_epoch >= self._frozen:
            pl_module.average_batch_norm()


#: Seconds between two reports. A shorter epoch reports no progress, because its end is a report itself.
PROGRESS_SECONDS: Final = 15.0


class EpochProgress(Callback):
    """Report the trained share of the epoch's batches, in long epochs."""

    def __init__(
        self, on_progress: Callable[[float], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create the callback; ``on_progress`` is called with a share of 0..1, ``clock`` returns seconds."""
        self._on_progress = on_progress
        self._clock = clock
        self._last = clock()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = self._clock()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self._clock()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._on_progress((batch_idx + 1) / trainer.num_training_batches)


class Preempted(Exception):  # noqa: N818 - a message to the caller that requested it, not an error
    """A preempted trial has stopped after some batches of an epoch. Another process resumes there.

    >>> print(Preempted(3, 117))
    its process was asked to end, after 117 batches of epoch 3; another process continues
    >>> print(Preempted(3, 1))
    its process was asked to end, after 1 batch of epoch 3; another process continues
    >>> print(Preempted(3, 0))
    its process was asked to end, after epoch 2; another process continues
    """

    def __init__(self, epoch: int, batches: int) -> None:
        """Create the exception: ``epoch`` is counted from 1, and ``batches`` of it were trained."""
        trained = (
            f"{counted(batches, 'batch', 'batches')} of epoch {epoch}" if batches else f"epoch {epoch - 1}"
        )
        super().__init__(f"its process was asked to end, after {trained}; another process continues")
        self.epoch = epoch
        self.batches = batches


class StopOnPreemption(Callback):
    """Stop the training between two steps and save its state when a preemption is requested.

    It comes after the reporter, so that a finished epoch is reported before training stops. Between an
    epoch's last step and its report it does not stop: the validation runs to its end.
    """

    def __init__(
        self,
        is_preempted: Callable[[], bool],
        writer: CheckpointWriter | None,
        on_message: OnMessage,
        *,
        report_pending: Callable[[], None],
    ) -> None:
        """Create the callback.

        Args:
            is_preempted: returns True if the training is to stop; called after each step.
            writer: writes the checkpoint; None writes none.
            on_message: called with each message to the user.
            report_pending: :meth:`.EpochReporter.report_pending`.
        """
        self._is_preempted = is_preempted
        self._writer = writer
        self._on_message = on_message
        self._report_pending = report_pending

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after this batch, if requested, unless it is the epoch's last.

        From a checkpoint written in this hook, Lightning resumes with the batch after this one.

        Raises:
            Preempted: a preemption was requested.
            StoppedByReport: the previous epoch's report, which was still pending, ended the trial.
        """
        batches, epoch = batch_idx + 1, trainer.current_epoch + 1
        if batches == trainer.num_training_batches or not self._is_preempted():
            return
        self._report_pending()
        if self._writer is not None:
            for note in self._writer.save_mid_epoch(trainer, epoch, batches):
                self._on_message(note)
        raise Preempted(epoch, batches)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after this epoch, if requested.

        Raises:
            Preempted: a preemption was requested, and there are epochs left.
            StoppedByReport: this epoch's report, which was still pending, ended the trial.
        """
        epoch = trainer.current_epoch + 1
        if epoch != trainer.max_epochs and not trainer.should_stop and self._is_preempted():
            self._report_pending()
            raise Preempted(epoch + 1, 0)
