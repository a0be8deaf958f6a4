"""Tells MLflow's writer what happens to trials, and the record which run shows which."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tune_rescon.spaces import Space
from tune_rescon.tracking import MlflowWriter, RunEnded, RunMetrics, RunRecalled, RunStarted, now_ms
from tune_rescon.tuning.record.study import StudyRecord
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.result import TrialCost, compute_hours
from tune_rescon.tuning.rules.stopping import Verdict

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
        """Have the writer complete what a driver that died had not sent; the record has it all."""
        for trial in trials:
            self._writer.put(
                RunRecalled(
                    start=self._run_started(trial),
                    epochs=tuple(self._epoch(trial, epoch) for epoch in range(1, trial.epochs + 1)),
                    end=self._run_ended(trial) if trial.state.is_final else None,
                )
            )

    def trial_started(self, trial: TrialSummary) -> None:
        """Open or re-open the trial's run."""
        self._writer.put(self._run_started(trial))
        self.note_runs()

    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """One batch of metrics."""
        del metrics, verdict
        self._writer.put(self._epoch(trial, trial.epochs))
        self.note_runs()

    def trial_noted(self, trial: TrialSummary, text: str) -> None:
        """Nothing now: the notes go with the run's end."""

    def trial_ended(self, trial: TrialSummary) -> None:
        """The figures logged once, and the run's end; of a paused or interrupted one only its state."""
        self._writer.put(self._run_ended(trial))
        self.note_runs()

    def note_runs(self) -> None:
        """Write down the runs opened meanwhile; the record has one writing thread, this one."""
        for number, run_id in self._writer.opened_runs():
            self._record.set_run_id(number, run_id)

    def _run_started(self, trial: TrialSummary) -> RunStarted:
        chosen = {name: trial.parameters.get(name, INACTIVE) for name in self._space.parameters}
        params = {name: _word(value) for name, value in {**self._space.fixed, **chosen}.items()}
        return RunStarted(number=trial.number, params=params, run_id=trial.mlflow_run_id)

    def _epoch(self, trial: TrialSummary, epoch: int) -> RunMetrics:
        return RunMetrics(
            number=trial.number,
            step=epoch,
            metrics={name: series[epoch - 1] for name, series in trial.history.items()},
            time_ms=trial.times_ms[epoch - 1],
        )

    def _run_ended(self, trial: TrialSummary) -> RunEnded:
        final = trial.state.is_final
        # The trial's own time: sent twice it is one point to MLflow, not two.
        when = int(trial.ended.timestamp() * 1000) if trial.ended else now_ms()
        return RunEnded(
            number=trial.number,
            state=trial.state.value,
            metrics=closing_metrics(trial, self._cost(trial), self._devices) if final else {},
            step=trial.epochs,
            error=trial.error,
            notes=trial.notes,
            time_ms=when,
        )


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
