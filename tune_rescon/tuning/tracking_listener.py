"""Tells MLflow's writer what happens to trials, and the record which run shows which."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tune_rescon.spaces import Space
from tune_rescon.tracking import MlflowWriter, RunEnded, RunMetrics, RunStarted
from tune_rescon.tuning.record import StudyRecord
from tune_rescon.tuning.summary import TrialSummary
from tune_rescon.tuning.result import TrialCost, compute_hours
from tune_rescon.tuning.stopping import Verdict

__all__ = ["TrackingListener", "closing_metrics"]

INACTIVE = "none"
"""A parameter a trial does not have: MLflow's parallel coordinates drop runs that lack one."""


class TrackingListener:
    """A :class:`.SearchListener` that only queues."""

    def __init__(
        self,
        writer: MlflowWriter,
        record: StudyRecord,
        space: Space,
        cost: Callable[[TrialSummary], TrialCost],
        devices: float,
    ) -> None:
        """Connect ``writer`` and ``record``; ``cost`` prices a network, ``devices`` is what a trial holds."""
        self._writer = writer
        self._record = record
        self._space = space
        self._cost = cost
        self._devices = devices

    def search_started(self, trials: Sequence[TrialSummary]) -> None:
        """Nothing: runs of earlier trials are there already."""

    def trial_started(self, trial: TrialSummary) -> None:
        """Open or re-open the trial's run."""
        chosen = {name: trial.parameters.get(name, INACTIVE) for name in self._space.parameters}
        params = {name: _word(value) for name, value in {**self._space.fixed, **chosen}.items()}
        self._writer.put(RunStarted(number=trial.number, params=params, run_id=trial.mlflow_run_id))
        self.note_runs()

    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """One batch of metrics."""
        del verdict
        self._writer.put(RunMetrics(number=trial.number, step=trial.epochs, metrics=dict(metrics)))
        self.note_runs()

    def trial_ended(self, trial: TrialSummary) -> None:
        """The figures logged once, and the run's end."""
        metrics = closing_metrics(trial, self._cost(trial), self._devices)
        state = trial.state.value
        self._writer.put(
            RunEnded(number=trial.number, state=state, metrics=metrics, step=trial.epochs, error=trial.error)
        )
        self.note_runs()

    def note_runs(self) -> None:
        """Write down the runs opened meanwhile; the record has one writing thread, this one."""
        for number, run_id in self._writer.opened_runs():
            self._record.set_run_id(number, run_id)


def closing_metrics(trial: TrialSummary, cost: TrialCost, devices: float) -> dict[str, float]:
    """What is logged once at a trial's end, so that MLflow's table shows it: the best values and the cost."""
    metrics = {
        "compute_hours": compute_hours(trial, devices),
        "params_m": cost.params_m,
        "gmacs": cost.gmacs,
    }
    if trial.best_epoch:
        accuracy = [value for value in trial.history.get("val_accuracy", ()) if math.isfinite(value)]
        metrics["best_epoch"] = float(trial.best_epoch)
        if accuracy:
            metrics["best_val_accuracy"] = max(accuracy)
        metrics[f"best_{trial.metric}"] = trial.best_value
    return metrics


def _word(value: object) -> str:
    return INACTIVE if value is None else str(value)
