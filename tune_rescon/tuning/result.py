"""What a search returns, and what its ``best.yaml`` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_rescon.config import TrialState
from tune_rescon.tuning.summary import TrialSummary

__all__ = ["StudyResult", "TrialCost", "best_file", "best_trial", "compute_hours"]


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """What a trial's network costs, counted from its numbers."""

    params_m: float
    """Parameters, millions."""
    gmacs: float
    """Multiply-adds of one image's forward pass, billions."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A search as it stands when the command ends."""

    name: str
    folder: Path
    metric: str
    maximize: bool
    trials: tuple[TrialSummary, ...]
    costs: Mapping[int, TrialCost]
    devices_per_trial: float
    """GPUs a trial held, or CPU cores where it held no GPU."""
    device: str
    """``"GPU"`` or ``"CPU"``: what that counts."""
    levels: tuple[int, ...]
    """The rungs, epochs."""
    best: TrialSummary | None
    best_config: Mapping[str, Any]
    interrupted: bool
    tracking_uri: str
    unsent: int
    """Updates MLflow did not take in time."""

    def compute_hours(self, trial: TrialSummary) -> float:
        """Device-hours of one trial: see :func:`compute_hours`."""
        return compute_hours(trial, self.devices_per_trial)


def compute_hours(trial: TrialSummary, devices: float) -> float:
    """Hours of training times the GPUs (or, without any, CPU cores) the trial held."""
    return trial.seconds / 3600 * devices


def best_trial(trials: tuple[TrialSummary, ...]) -> TrialSummary | None:
    """The winner: the best final value among trials that reached the last epoch.

    An early-stopped trial is never compared as if it had finished. Only where none has finished is it the one
    that got furthest, and of those the best there (Optuna's order of pruned trials).
    """
    judged = [trial for trial in trials if trial.best_epoch]
    finished = [trial for trial in judged if trial.state is TrialState.FINISHED]
    return min(finished or judged, key=TrialSummary.rank_key, default=None)


def best_file(result: StudyResult) -> dict[str, Any]:
    """What ``best.yaml`` says of the winner, in plain values."""
    best = result.best
    assert best is not None, "written only where there is a best trial"
    config = {name: list(v) if isinstance(v, tuple) else v for name, v in result.best_config.items()}
    return {
        "search": result.name,
        "trial": best.number,
        "state": best.state.value,
        "metric": result.metric,
        "value": best.value,
        "epochs": best.epochs,
        "best_value": best.best_value,
        "best_epoch": best.best_epoch,
        "checkpoint": best.checkpoint,
        "parameters": dict(best.parameters),
        "config": config,
    }
