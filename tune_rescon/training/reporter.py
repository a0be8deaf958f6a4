"""The end of an epoch: measure, keep, report."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from tune_rescon.config import PEAK_MEMORY
from tune_rescon.training.keeper import Keeper
from tune_rescon.training.memory import peak_memory_mb
from tune_rescon.training.module import TrialModule
from tune_rescon.training.notes import OnNote
from tune_rescon.training.peers import ALONE, Peers
from tune_rescon.training.record import TrialRecord
from tune_rescon.training.report import EpochReport

__all__ = ["EpochReporter"]


class EpochReporter(Callback):
    """Turns Lightning's hooks into :class:`EpochReport`; the last of the callbacks, for it closes the epoch.

    The order at the end is: best network, checkpoint, report. A crash between any two of them repeats the
    epoch, which writes and reports the same again, or leaves the report in the checkpoint's record.
    """

    def __init__(
        self,
        record: TrialRecord,
        on_epoch: Callable[[EpochReport], None],
        on_note: OnNote,
        *,
        keeper: Keeper | None,
        judged: str = "val",
        peers: Peers = ALONE,
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
