"""What a search without training consists of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METRICS", "Figures", "Load"]

#: What a trial of this package reports each epoch, and so does a plain one.
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Load:
    """How many trials of how many epochs, and what a search does beside running them."""

    trials: int
    epochs: int
    slots: int = 2
    cpus: int | None = None
    """Processors that Ray believes in; None: those of the machine."""
    pace: float = 0.0
    """Seconds an epoch sleeps."""
    judged: bool = False
    """Optuna's TPE draws and ASHA compares, with its only rung at the last epoch, so that every trial
    finishes and both sides do the same work; else random draws and no scheduler."""
    tracking: str | None = None
    """``none``, or MLflow's URI; None: where this package puts it."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What came of it."""

    seconds: float
    """From the first trial's start to the last one's end."""
    lag: float
    """Seconds that MLflow's writer took after that."""
    trials: int
    processes: int = 0
    """That Ray began for them; two of them, when it starts, are never used."""
