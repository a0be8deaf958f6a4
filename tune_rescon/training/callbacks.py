"""Callbacks of Lightning's training loop, one for each concern.

Their order in the Trainer matters: :meth:`tune_rescon.training.fit.FitAttempt.run` lists them in the order in
which they must run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from tune_rescon.data import ImageDataModule
from tune_rescon.metric_names import PEAK_MEMORY
from tune_rescon.training.device import generator_states, restore_generators, seed_epoch
from tune_rescon.training.distributed import SINGLE_PROCESS, ProcessGroup
from tune_rescon.training.memory import peak_memory_mb
from tune_rescon.training.messages import EpochReport, OnMessage
from tune_rescon.training.module import TrialModule
from tune_rescon.training.trial_files import CheckpointMetadata, CheckpointWriter

__all__ = [
    "AverageWeights",
    "Diverged",
    "EpochReporter",
    "FiniteLoss",
    "PreciseBatchNorm",
    "Preempted",
    "SeedEpochs",
    "StopOnPreemption",
]


class Preempted(Exception):  # noqa: N818 - a message to the caller that requested it, not an error
    """A preempted trial stopped after some batches of an epoch, where another process resumes."""

    def __init__(self, epoch: int, batches: int) -> None:
        """Create the exception.

        Args:
            epoch: the interrupted epoch, counted from 1.
            batches: batches of that epoch that were trained.
        """
        super().__init__(f"left after {batches} batches of epoch {epoch}")
        self.epoch = epoch
        self.batches = batches


class StopOnPreemption(Callback):
    """Stop the training between two steps and save its state when a preemption is requested.

    It must be the last of the callbacks, so that an epoch is reported first. It does not stop between an
    epoch's last step and the report: the validation runs to its end.
    """

    def __init__(
        self, leave: Callable[[], bool], keeper: CheckpointWriter | None, on_note: OnMessage
    ) -> None:
        """Create the callback.

        Args:
            leave: returns True when the training is to stop; called often.
            keeper: writes the checkpoint; None writes none.
            on_note: called with each message to the user.
        """
        self._leave = leave
        self._keeper = keeper
        self._on_note = on_note

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after this batch, if requested, unless it is the epoch's last.

        From a checkpoint written in this hook, Lightning resumes with the batch after this one.

        Raises:
            Preempted: a preemption was requested.
        """
        batches, epoch = batch_idx + 1, trainer.current_epoch + 1
        if batches == trainer.num_training_batches or not self._leave():
            return
        if self._keeper is not None:
            for note in self._keeper.save_mid_epoch(trainer, epoch, batches):
                self._on_note(note)
        raise Preempted(epoch, batches)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after this epoch, if requested; its checkpoint is written by now.

        Raises:
            Preempted: a preemption was requested, and there are epochs left.
        """
        epoch = trainer.current_epoch + 1
        if epoch != trainer.max_epochs and not trainer.should_stop and self._leave():
            raise Preempted(epoch + 1, 0)


class EpochReporter(Callback):
    """Turn Lightning's hooks into an :class:`EpochReport` for each epoch.

    It follows the callbacks that act on the network, because it closes the epoch: it writes the best network,
    then the checkpoint, then reports. A crash between two of these either repeats the epoch, which writes and
    reports the same values again, or leaves the report in the checkpoint's record.
    """

    def __init__(
        self,
        record: CheckpointMetadata,
        on_epoch: Callable[[EpochReport], None],
        on_note: OnMessage,
        *,
        keeper: CheckpointWriter | None,
        judged: str = "val",
        peers: ProcessGroup = SINGLE_PROCESS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Continue from the epochs trained before.

        Args:
            record: the trial and its epochs so far.
            on_epoch: called with the report of each epoch.
            on_note: called with each message to the user.
            keeper: writes the files; None writes none.
            judged: the split that validations evaluate: ``"val"``, or ``"test"``, which is evaluated only
                once.
            peers: the processes of the trial, each of which has a reporter. If the first one's report ends
                the trial, the trial ends in all of them.
            clock: returns seconds.
        """
        self.record = record
        self.stopped_by: BaseException | None = None
        self._on_epoch, self._on_note = on_epoch, on_note
        self._keeper = keeper
        self._judged = judged
        self._peers = peers
        self._clock = clock
        self._started = self._trained = clock()
        self._judging = self._judged_in = 0.0
        self._images = self._images_judged = 0
        self._learning_rate = math.nan

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the trial's identity and history, and the state of an unfinished epoch."""
        assert isinstance(pl_module, TrialModule)
        checkpoint["trial"] = self.record.to_dict()
        checkpoint["epoch_so_far"] = {
            "seconds": self._clock() - self._started,
            "trained_seconds": self._trained - self._started,
            "images": self._images,
            "train_metrics": pl_module.train_metrics.sums(),
        }

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the state of an unfinished epoch.

        If the epoch was finished, the next one's start resets all of it.
        """
        assert isinstance(pl_module, TrialModule)
        if so_far := checkpoint.get("epoch_so_far"):
            self._started = self._clock() - so_far["seconds"]
            self._trained = self._started + so_far["trained_seconds"]
            self._images = so_far["images"]
            pl_module.train_metrics.resume_from(so_far["train_metrics"])

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks."""
        self._started = self._trained = self._clock()
        self._images = 0

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the learning rate of this step, without the classifier's factor.

        After the epoch's last step the optimiser has the next step's.
        """
        rate, factor = trainer.optimizers[0].param_groups[0]["lr"], self.record.config.classifier_lr_mult
        self._learning_rate = float(rate) / factor

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch and stop the clock.

        On the epoch's last batch a GPU has finished by now, because FiniteLoss has read the epoch's loss.
        """
        self.record = dataclasses.replace(self.record, batches=batch_idx + 1)
        self._images += len(batch[0])
        self._trained = self._clock()

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; by now batch norm's statistics have been re-estimated for the validation."""
        self._judging, self._images_judged = self._clock(), 0

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images."""
        self._images_judged += len(batch[0])

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock, after a GPU has finished the test images."""
        if self._judged == "test" and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._judged_in = self._clock() - self._judging

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the epoch, whose validation is done: write its files and report it."""
        metrics = self._measure(pl_module)
        self.record = self.record.extended(metrics)
        unwritten: tuple[str, ...] = ()
        if self._keeper is not None:
            assert isinstance(pl_module, TrialModule)
            unwritten = self._keeper.keep(trainer, pl_module, len(self.record.history), metrics)
        try:
            for note in unwritten:
                self._on_note(note)
            self._report(metrics | {"epoch_seconds": self._clock() - self._started})
        except BaseException as error:
            # Do not raise inside Lightning, which replaces some exceptions; FitAttempt.run raises this one.
            self.stopped_by = error
        if self._peers.broadcast(self.stopped_by is not None):
            trainer.should_stop = True

    def report_diverged(self, pl_module: pl.LightningModule) -> None:
        """Report an epoch that ended with :class:`Diverged`; none of its files are written."""
        metrics = self._measure(pl_module) | {"train_loss": math.nan}
        self.record = self.record.extended(metrics)
        self._report(metrics)

    def _measure(self, pl_module: pl.LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, TrialModule)
        seconds = self._trained - self._started
        speed = self._peers.all_reduce_sum(self._images) / seconds if seconds > 0 else math.nan
        return {
            **{f"train_{name}": value for name, value in pl_module.train_metrics.compute().items()},
            **self._evaluation(pl_module),
            "learning_rate": self._learning_rate,
            "images_per_second": speed,
            "epoch_seconds": self._clock() - self._started,
            **self._memory(pl_module),
        }

    def _evaluation(self, module: TrialModule) -> dict[str, float]:
        """Return the validation's metrics; nothing for the test images until they are evaluated."""
        once = self._judged == "test"
        if once and not self._images_judged:
            return {}
        measured = module.val_metrics.compute()
        if once:
            measured["images_per_second"] = self._peers.all_reduce_sum(self._images_judged) / self._judged_in
        return {f"{self._judged}_{name}": value for name, value in measured.items()}

    def _memory(self, pl_module: pl.LightningModule) -> dict[str, float]:
        """Return the trial's peak memory.

        It includes the epochs that other processes trained before a resume.
        """
        peak = peak_memory_mb(pl_module.device)
        if peak is None:
            return {}
        before = [epoch[PEAK_MEMORY] for epoch in self.record.history if PEAK_MEMORY in epoch]
        return {PEAK_MEMORY: max([self._peers.all_reduce_max(peak), *before])}

    def _report(self, metrics: dict[str, float]) -> None:
        keeper = self._keeper
        self._on_epoch(
            EpochReport(
                epoch=len(self.record.history),
                metrics=metrics,
                checkpoint=keeper.checkpoint if keeper else None,
                best_checkpoint=keeper.best_checkpoint if keeper else None,
            )
        )


class Diverged(Exception):  # noqa: N818 - a message to FitAttempt.run, not an error
    """The training loss is no longer finite, so the trial ends."""


class SeedEpochs(Callback):
    """Seed torch at the start of each epoch, independently of random numbers drawn before."""

    def __init__(self, seed: int, rank: int = 0) -> None:
        """Create the callback.

        Args:
            seed: the trial's seed.
            rank: of this process. Each process of a trial drops its own paths.
        """
        self._seed, self._rank = seed, rank
        self._drawn: Mapping[str, Tensor] = {}

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the generators' states, that is how many numbers the epoch has drawn."""
        checkpoint["generators"] = generator_states(pl_module.device)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the generators' states.

        An earlier version saved no states, but wrote checkpoints only at the end of epochs, when the epoch
        draws no more numbers.
        """
        self._drawn = checkpoint.get("generators", {})

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the generators. Lightning does not call ``on_train_epoch_start`` for a resumed epoch."""
        restore_generators(self._drawn, pl_module.device)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed the epoch, counted from 1; 0 is the seed of the initialisation."""
        seed_epoch(self._seed, trainer.current_epoch + 1, self._rank)


class AverageWeights(Callback):
    """Update the averaged network after each step, if the trial has one."""

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average; ``global_step`` already includes this step."""
        assert isinstance(pl_module, TrialModule)
        if pl_module.averaged is not None:
            pl_module.averaged.update(pl_module.network, trainer.global_step - 1)


class FiniteLoss(Callback):
    """Stop a training whose loss is nan or infinite, within ``every`` steps and before the validation."""

    def __init__(self, every: int = 20) -> None:
        """Create the callback.

        Args:
            every: steps between two readings. Each reading makes the host wait for a GPU's queue, so the loss
                is not read after each step.
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

    The batches are the epoch's last ones, kept on the device as the network was trained on them. Other ones
    would have to be loaded and augmented, and could change the order and the random numbers. When an epoch is
    resumed, those that were trained before are generated again.
    """

    def __init__(self, batches: int, *, done: int = 0, frozen: int = 0) -> None:
        """Create the callback.

        Args:
            batches: batches to estimate from; 0 leaves the running statistics of the training unchanged.
            done: batches of the first epoch that were trained before.
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
