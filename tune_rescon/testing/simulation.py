"""A whole search without Ray: the coordinator driven by slots that take one epoch a turn."""

from __future__ import annotations

from collections.abc import Callable

from tune_rescon.config import METRICS
from tune_rescon.testing.curves import SyntheticCurve
from tune_rescon.tuning import Coordinator, Decision, TrialSummary

__all__ = ["simulate"]


def simulate(
    coordinator: Coordinator,
    curve: Callable[[TrialSummary], SyntheticCurve],
    *,
    slots: int = 2,
    turns: int | None = None,
) -> int:
    """Run trials along their curves until the coordinator has none left, or for ``turns`` epochs.

    Returns the epochs run: what the search cost.
    """
    running: list[tuple[TrialSummary, int]] = []
    spent = 0
    while turns is None or spent < turns:
        while len(running) < slots and (trial := coordinator.next_trial()) is not None:
            running.append((trial, trial.epochs))
        if not running:
            break
        trial, epochs = running.pop(0)
        spent += 1
        if _epoch(coordinator, trial, epochs + 1, curve(trial)) is Decision.CONTINUE:
            running.append((trial, epochs + 1))
    return spent


def _epoch(coordinator: Coordinator, trial: TrialSummary, epoch: int, curve: SyntheticCurve) -> Decision:
    value = curve.at(epoch)
    metrics = {**dict.fromkeys(METRICS, 1.0), "val_accuracy": value, "train_loss": 1 - value}
    return coordinator.epoch_done(trial.number, epoch, metrics, f"best_{trial.number}.ckpt")
