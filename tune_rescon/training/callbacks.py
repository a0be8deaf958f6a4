"""What happens around Lightning's loop, one concern a callback. Their order in the Trainer matters:
:func:`tune_rescon.training.trial.train_trial` lists them in the order they must run.
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

from tune_rescon.config import PEAK_MEMORY
from tune_rescon.data import ImageDataModule
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
    "never",
]


def never() -> bool:
    """There is nobody to ask."""
    return False


class Preempted(Exception):  # noqa: N818 - a message to who has asked for it, not an error
    """A trial was left after so many batches of an epoch, which is where another process goes on."""

    def __init__(self, epoch: int, batches: int) -> None:
        """``epoch`` is counted from 1."""
        super().__init__(f"left after {batches} batches of epoch {epoch}")
        self.epoch = epoch
        self.batches = batches


class StopOnPreemption(Callback):
    """Ends a training between two steps, its state kept. The last of the callbacks: a report comes first.

    Not between an epoch's last step and its report: the validation is waited for.
    """

    def __init__(
        self, leave: Callable[[], bool], keeper: CheckpointWriter | None, on_note: OnMessage
    ) -> None:
        """``leave``: whether to; it is asked often. ``keeper``: None keeps nothing."""
        self._leave = leave
        self._keeper = keeper
        self._on_note = on_note

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning takes a checkpoint that is written here for one after this batch.

        Raises:
            Preempted: it was asked for.
        """
        batches, epoch = batch_idx + 1, trainer.current_epoch + 1
        if batches == trainer.num_training_batches or not self._leave():
            return
        if self._keeper is not None:
            for note in self._keeper.keep_amid(trainer, epoch, batches):
                self._on_note(note)
        raise Preempted(epoch, batches)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's own checkpoint is written.

        Raises:
            Preempted: it was asked for, and there are epochs left.
        """
        epoch = trainer.current_epoch + 1
        if epoch != trainer.max_epochs and not trainer.should_stop and self._leave():
            raise Preempted(epoch + 1, 0)


class EpochReporter(Callback):
    """Turns Lightning's hooks into :class:`EpochReport`; the last of the callbacks, for it closes the epoch.

    The order at the end is: best network, checkpoint, report. A crash between any two of them repeats the
    epoch, which writes and reports the same again, or leaves the report in the checkpoint's record.
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
        """Go on from what was trained before.

        Args:
            record: of the epochs so far.
            on_epoch: told of each epoch.
            on_note: told what the user should know.
            keeper: None keeps nothing.
            judged: the part of the images that validations are of: ``"val"``, or ``"test"``, which is looked
                at once.
            peers: each has a reporter; where the first one's report ends the trial, it ends for all.
            clock: seconds.
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
        """The trial's identity and history travel in its checkpoint, and what there is of another epoch."""
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
        """Go on with an epoch under way. Where none is, the next one's start forgets all of it."""
        assert isinstance(pl_module, TrialModule)
        if so_far := checkpoint.get("epoch_so_far"):
            self._started = self._clock() - so_far["seconds"]
            self._trained = self._started + so_far["trained_seconds"]
            self._images = so_far["images"]
            pl_module.train_metrics.go_on_from(so_far["train_metrics"])

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks."""
        self._started = self._trained = self._clock()
        self._images = 0

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the rate of the step about to be taken: after an epoch's last step it is the next one's."""
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count. Before the last call the epoch's loss was read (FiniteLoss), so a GPU has caught up."""
        self.record = dataclasses.replace(self.record, batches=batch_idx + 1)
        self._images += len(batch[0])
        self._trained = self._clock()

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; statistics that are estimated for the validation are by now."""
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
        """Count."""
        self._images_judged += len(batch[0])

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock, once a GPU has caught up."""
        if self._judged == "test" and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._judged_in = self._clock() - self._judging

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the epoch; its validation is done."""
        metrics = self._measure(pl_module)
        self.record = self.record.extended(metrics)
        unkept: tuple[str, ...] = ()
        if self._keeper is not None:
            assert isinstance(pl_module, TrialModule)
            unkept = self._keeper.keep(trainer, pl_module, len(self.record.history), metrics)
        try:
            for note in unkept:
                self._on_note(note)
            self._report(metrics | {"epoch_seconds": self._clock() - self._started})
        except BaseException as error:
            # Not through Lightning, which makes another exception of some; train_trial raises it.
            self.stopped_by = error
        if self._peers.told(self.stopped_by is not None):
            trainer.should_stop = True

    def report_diverged(self, pl_module: pl.LightningModule) -> None:
        """Close an epoch that :class:`Diverged` has ended: nothing is kept of it but the report."""
        metrics = self._measure(pl_module) | {"train_loss": math.nan}
        self.record = self.record.extended(metrics)
        self._report(metrics)

    def _measure(self, pl_module: pl.LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, TrialModule)
        seconds = self._trained - self._started
        return {
            **{f"train_{name}": value for name, value in pl_module.train_metrics.compute().items()},
            **self._judgement(pl_module),
            "learning_rate": self._learning_rate,
            "images_per_second": self._peers.total(self._images) / seconds if seconds > 0 else math.nan,
            "epoch_seconds": self._clock() - self._started,
            **self._memory(pl_module),
        }

    def _judgement(self, module: TrialModule) -> dict[str, float]:
        """What the validation measured; of the test images nothing until they are looked at."""
        once = self._judged == "test"
        if once and not self._images_judged:
            return {}
        measured = module.val_metrics.compute()
        if once:
            measured["images_per_second"] = self._peers.total(self._images_judged) / self._judged_in
        return {f"{self._judged}_{name}": value for name, value in measured.items()}

    def _memory(self, pl_module: pl.LightningModule) -> dict[str, float]:
        """The trial's peak: also of what it trained in another process, before it was resumed."""
        peak = peak_memory_mb(pl_module.device)
        if peak is None:
            return {}
        before = [epoch[PEAK_MEMORY] for epoch in self.record.history if PEAK_MEMORY in epoch]
        return {PEAK_MEMORY: max([self._peers.most(peak), *before])}

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
