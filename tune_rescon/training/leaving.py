"""A trial that is left for another process to go on with, between two of its steps: an epoch can be long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from tune_rescon.training.keeper import Keeper
from tune_rescon.training.notes import OnNote

__all__ = ["LeaveWhenAsked", "Left", "never"]


def never() -> bool:
    """There is nobody to ask."""
    return False


class Left(Exception):  # noqa: N818 - a message to who has asked for it, not an error
    """A trial was left after so many batches of an epoch, which is where another process goes on."""

    def __init__(self, epoch: int, batches: int) -> None:
        """``epoch`` is counted from 1."""
        super().__init__(f"left after {batches} batches of epoch {epoch}")
        self.epoch = epoch
        self.batches = batches


class LeaveWhenAsked(Callback):
    """Ends a training between two steps, its state kept. The last of the callbacks: a report comes first.

    Not between an epoch's last step and its report: the validation is waited for.
    """

    def __init__(self, leave: Callable[[], bool], keeper: Keeper | None, on_note: OnNote) -> None:
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
            Left: it was asked for.
        """
        batches, epoch = batch_idx + 1, trainer.current_epoch + 1
        if batches == trainer.num_training_batches or not self._leave():
            return
        if self._keeper is not None:
            for note in self._keeper.keep_amid(trainer, epoch, batches):
                self._on_note(note)
        raise Left(epoch, batches)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's own checkpoint is written.

        Raises:
            Left: it was asked for, and there are epochs left.
        """
        epoch = trainer.current_epoch + 1
        if epoch != trainer.max_epochs and not trainer.should_stop and self._leave():
            raise Left(epoch + 1, 0)
