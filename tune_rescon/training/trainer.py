"""Lightning's Trainer as this package wants it: silent, without files of its own, in any thread."""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback

from tune_rescon.training.checkpoint_io import DurableCheckpointIO
from tune_rescon.training.placement import Placement

__all__ = ["fit", "make_trainer"]


def make_trainer(
    *,
    epochs: int,
    placement: Placement,
    gradient_clip: float,
    callbacks: Sequence[Callback],
    validate_every: int = 1,
) -> pl.Trainer:
    """A Trainer of one device that only trains, validates, and calls ``callbacks`` in order."""
    with _quiet():
        return pl.Trainer(
            accelerator="gpu" if placement.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=epochs,
            check_val_every_n_epoch=validate_every,
            gradient_clip_val=gradient_clip or None,
            callbacks=list(callbacks),
            # Precision is the module's (Placement.autocast), so that the benchmarks' step has it too.
            precision="32-true",
            # Named, lest Lightning find SLURM around a Ray worker, take over its signals and wait for peers.
            plugins=[LightningEnvironment(), DurableCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path | None
) -> None:
    """``trainer.fit``, from ``checkpoint`` if there is one, with Ctrl-C as Python means it.

    Lightning turns KeyboardInterrupt into ``SystemExit(1)`` and leaves SIGINT ignored; a command must be able
    to answer it its own way.
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
    """Without Lightning's notes on devices, limits and its makers' services, which come with every trial."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 asks torch's pytrees in a way torch 2.13 and later deprecate.
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`", FutureWarning)
            # The data module knows by itself which batches come next.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
