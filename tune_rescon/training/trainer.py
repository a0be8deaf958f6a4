"""Lightning's Trainer, as a trial uses it: one device, no extras, checkpoints that are durable."""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from torch import Tensor
from torch.amp import GradScaler
from typing_extensions import override

from tune_rescon.training.device import DeviceConfig

__all__ = ["fit", "make_trainer"]


def make_trainer(
    *,
    epochs: int,
    placement: DeviceConfig,
    gradient_clip: float,
    callbacks: Sequence[Callback],
    validate_every: int = 1,
    scaler: GradScaler | None = None,
) -> pl.Trainer:
    """Return a Trainer for one device that only trains and validates, and calls ``callbacks`` in order.

    Args:
        epochs: length of the whole training.
        placement: the device; the module itself applies the precision.
        gradient_clip: largest norm of the gradient; 0: no clipping.
        callbacks: called in this order.
        validate_every: epochs between two validations.
        scaler: steps the optimiser, if it is enabled, and is saved in the checkpoints. The module scales its
            gradients with it.
    """
    plugins: list[Any] = [LightningEnvironment(), CollectedCheckpoint()]
    if scaler is not None and scaler.is_enabled():
        plugins.append(ScaledPrecision("16-mixed", placement.device.type, scaler))
    with _quiet():
        return pl.Trainer(
            accelerator="gpu" if placement.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=epochs,
            check_val_every_n_epoch=validate_every,
            gradient_clip_val=gradient_clip or None,
            callbacks=list(callbacks),
            # Without an explicit environment, Lightning detects SLURM around a Ray worker, replaces the
            # worker's signal handlers and waits for peers. Lightning's precision stays fp32: the module
            # applies its own (DeviceConfig.autocast), so the benchmarks' step has it too.
            plugins=plugins,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path | None
) -> None:
    """Run ``trainer.fit`` from a ``checkpoint``, or from the start, and let Ctrl-C raise KeyboardInterrupt.

    Lightning turns KeyboardInterrupt into ``SystemExit(1)`` and leaves SIGINT ignored. A command must be able
    to handle Ctrl-C itself.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _quiet():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise error.__context__ from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages about devices, limits and services that Lightning repeats for every trial."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 checks torch's pytrees in a way that torch 2.13 and later deprecate.
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`", FutureWarning)
            # The schedule also counts the first steps that the gradient scaler skips.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            # The data module itself resumes at the next batch.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class ScaledPrecision(MixedPrecision):
    """Let a gradient scaler step the optimiser and save its state, but neither cast nor scale.

    The module does both, so that a step that is recorded as a CUDA graph contains them.
    """

    @override
    def forward_context(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]  # wider
        """Return a context that does nothing: the module's own autocast follows its placement."""
        return contextlib.nullcontext()

    @override
    def pre_backward(self, tensor: Tensor, module: pl.LightningModule) -> Tensor:  # type: ignore[override]
        """Return the loss as it is: the module scales each micro-batch, also in a recorded step."""
        return Precision.pre_backward(self, tensor, module)


class CollectedCheckpoint(TorchCheckpointIO):
    """Pass the state of a checkpoint to the caller instead of writing it.

    Lightning has no public way to collect that state.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Call ``storage_options``, a function, with ``checkpoint``; :class:`.CheckpointWriter` gives it."""
        storage_options(checkpoint)
