"""Reports how much of an epoch is done while it is trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

__all__ = ["PROGRESS_SECONDS", "EpochProgress"]

#: Seconds between two reports. A shorter epoch reports no progress, because its end is a report itself.
PROGRESS_SECONDS: Final = 15.0


class EpochProgress(Callback):
    """Calls a function with the share of the epoch's batches that are trained, in long epochs."""

    def __init__(
        self, on_progress: Callable[[float], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create the callback.

        Args:
            on_progress: called with the share, between 0 and 1.
            clock: returns seconds.
        """
        self._on_progress = on_progress
        self._clock = clock
        self._last = clock()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._last = self._clock()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the share, unless the last report is recent."""
        now = self._clock()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._on_progress((batch_idx + 1) / trainer.num_training_batches)
