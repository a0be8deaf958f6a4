"""Tells MLflow's writer what the trials are, and the record which run shows which."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tune_rescon.config import PEAK_MEMORY, TEST_METRICS, is_test_metric
from tune_rescon.spaces import Space
from tune_rescon.tracking import (
    Champion,
    Destination,
    Images,
    MlflowWriter,
    SearchRunState,
    TrialRunState,
    now_ms,
)
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.identity import Identity
from tune_rescon.tuning.options import RunOptions, sync_command
from tune_rescon.tuning.prepare import Prepared
from tune_rescon.tuning.result import CostModel, SearchState, StudyResult, TrialCost, compute_hours
from tune_rescon.tuning.schedulers import Verdict
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "ParentRun",
    "TrackingListener",
    "closing_metrics",
    "closing_words",
    "destination",
]


#: Seconds that exporting and registering a network takes on two slow cores (benchmarks/own_time.py).
REGISTRATION_SECONDS: Final = 10


def destination(space: Space, folder: SearchFolder, tracking_uri: str | None) -> Destination:
    """Where a search's runs go: ``tracking_uri``, or the store of its storage."""
    return Destination(
        uri=tracking_uri or folder.mlflow_uri,
        experiment=space.dataset.name,
        search=folder.name,
        metric=space.metric.name,
        maximize=space.metric.mode == "max",
        artifacts=None if tracking_uri else folder.mlflow_artifacts,
    )


def closing_words(champion: Champion | None, options: RunOptions) -> str:
    """What is still to be done once the result is shown, how long it takes, and how to go without it."""
    if champion is None:
        return "Writing the report and completing MLflow"
    return (
        f"Writing the report and registering the model of trial_{champion.number:04d} in MLflow: about"
        f" {REGISTRATION_SECONDS} s. Ctrl-C puts MLflow off until: {sync_command(options)}"
    )


class ParentRun:
    """Leaves the search's newest view with the writer."""

    def __init__(
        self,
        writer: MlflowWriter,
        *,
        identity: Identity,
        known_runs: Iterable[str],
        tags: dict[str, str],
        datasets: Iterable[Prepared],
        files: Sequence[Path],
        uploads: bool,
    ) -> None:
        """Show the search as it begins.

        Args:
            writer: takes the views.
            identity: the search's; its runs are found by it.
            known_runs: ids of the trials' runs that the record has.
            tags: what the run carries.
            datasets: what the trials train on.
            files: to be kept as artifacts from the beginning.
            uploads: whether MLflow is given any; not where its store travels with the search, for its
                artifacts do not.
        """
        self._writer = writer
        self._identity = identity
        self._uploads = uploads
        self._view = SearchRunState(
            id=identity.id,
            place=identity.place,
            known_runs=tuple(known_runs),
            tags=tags,
            note=_placed(identity, ""),
            images=tuple(map(_images, datasets)),
            files=tuple(files) if uploads else (),
        )
        writer.show(self._view)

    def note(self, text: str) -> None:
        """Show another note."""
        self._show(note=_placed(self._identity, text))

    def expect_champion(self) -> None:
        """Say that :meth:`end` is near, and what it will have to register."""
        if self._uploads:
            self._show(champion_is_near=True)

    def end(self, result: StudyResult, files: Sequence[Path], note: str) -> None:
        """Show how the search ended, and have its :meth:`champion` registered."""
        self._show(
            state=result.state.value,
            note=_placed(self._identity, note),
            closing={f"best_{result.metric}": result.best.value} if result.best else {},
            champion=self.champion(result),
            files=tuple(files) if self._uploads else (),
            ended_ms=now_ms(),
        )

    def _show(self, **changes: Any) -> None:
        self._view = dataclasses.replace(self._view, **changes)
        self._writer.show(self._view)

    def champion(self, result: StudyResult) -> Champion | None:
        """Whose network is registered at the end; None: no trial's."""
        best = result.best
        over = result.state is SearchState.FINISHED
        checkpoint = result.kept_checkpoint(best) if best else None
        if not over or best is None or checkpoint is None or not self._uploads:
            return None
        return Champion(
            number=best.number,
            epoch=best.value_epoch,
            checkpoint=checkpoint,
            value=f"{best.metric} {best.value:.4g} (metric.at: {best.at})",
        )


def _placed(identity: Identity, note: str) -> str:
    """A note that also says which search this is: several may have the same name."""
    return f"{note}\n\nSearch `{identity.id[:8]}`, in `{identity.place}`".strip()


def _images(prepared: Prepared) -> Images:
    facts = prepared.facts
    counts = {"train": facts.train_images, "val": facts.val_images, "test": facts.test_images}
    return Images(name=facts.name, digest=prepared.digest, counts=counts)


#: A parameter a trial does not have: MLflow's parallel coordinates drop runs that lack one.
INACTIVE: Final = "none"

#: Fixed values that each trial's run shows too: what searches on one dataset, side by side in MLflow, are
#: told apart by. All of them are in ``space.yaml``, which the search's run holds.
SHOWN_FIXED: Final = frozenset(
    {
        "batch_size",
        "depth",
        "image_size",
        "layout",
        "learning_rate",
        "optimizer",
        "preset",
        "width",
    }
)


class TrackingListener:
    """A :class:`.SearchListener` that leaves each trial's newest view with the writer."""

    def __init__(
        self,
        writer: MlflowWriter,
        record: StudyRecord,
        pricing: CostModel,
        *,
        near_end: Callable[[], object] | None = None,
    ) -> None:
        """Connect ``writer`` and ``record``; ``pricing`` knows the space and what its networks cost.

        ``near_end`` is called once, when all trials have begun and one of them has a network to show.
        """
        self._writer = writer
        self._record = record
        self._space = pricing.space
        self._fixed = {name: value for name, value in self._space.fixed.items() if name in SHOWN_FIXED}
        self._pricing = pricing
        self._near_end = near_end

    def search_started(self, trials: Sequence[TrialRecord]) -> None:
        """Have the writer complete what a driver that died had not sent; the record has it all."""
        for trial in trials:
            self._writer.show(self.view(trial))

    def trial_started(self, trial: TrialRecord) -> None:
        """Open or re-open the trial's run."""
        self._show(trial)

    def epoch_done(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """One more epoch."""
        del metrics, verdict
        # The workers have imported what they need: MLflow's process no longer delays the first epochs.
        self._writer.wake()
        self._show(trial)
        if self._near_end and trial.checkpoint and len(self._record) >= self._space.budget.trials:
            self._near_end()
            self._near_end = None

    def trial_noted(self, trial: TrialRecord, text: str) -> None:
        """Nothing now: the notes go with the run's end."""

    def trial_ended(self, trial: TrialRecord) -> None:
        """The figures logged once, and the run's end; of a paused or interrupted one only its state."""
        self._show(trial)

    def note_runs(self) -> None:
        """Write down the runs opened meanwhile; the record has one writing thread, this one."""
        for number, run_id in self._writer.opened_runs():
            if self._record.trial(number).mlflow_run_id != run_id:
                self._record.set_run_id(number, run_id)

    def view(self, trial: TrialRecord) -> TrialRunState:
        """All that MLflow is to show of a trial."""
        names = (*self._space.parameters, *trial.parameters)
        chosen = {name: trial.setting(name, INACTIVE) for name in names}
        # A field that is fixed now may have been searched when the trial was drawn.
        fixed = {name: trial.setting(name, value) for name, value in self._fixed.items()}
        final = trial.state.is_final
        return TrialRunState(
            number=trial.number,
            run_id=trial.mlflow_run_id,
            state=trial.state.value,
            params={name: _word(value) for name, value in {**fixed, **chosen}.items()},
            history={name: series for name, series in trial.history.items() if not _closes(name)},
            times_ms=trial.times_ms,
            closing=closing_metrics(trial, self._pricing.cost(trial), self._pricing.devices) if final else {},
            error=trial.error,
            notes=trial.notes,
            **_times(started_ms=trial.started, ended_ms=trial.ended),
        )

    def _show(self, trial: TrialRecord) -> None:
        self._writer.show(self.view(trial))
        self.note_runs()


def _closes(name: str) -> bool:
    """Whether a metric is shown once, at the end: a peak only grows, and the test images are seen once."""
    return name == PEAK_MEMORY or is_test_metric(name)


def _times(**moments: datetime | None) -> dict[str, int]:
    # The trial's own, so that what is sent twice is one point to MLflow, not two.
    return {name: int(moment.timestamp() * 1000) for name, moment in moments.items() if moment}


def closing_metrics(trial: TrialRecord, cost: TrialCost, devices: float) -> dict[str, float]:
    """What is logged once at a trial's end, so that MLflow's table shows it: the best values and the cost."""
    metrics = {
        "compute_hours": compute_hours(trial, devices),
        "params_m": cost.params_m,
        "gmacs": cost.gmacs,
    }
    if peaks := _finite(trial, PEAK_MEMORY):
        metrics[PEAK_MEMORY] = max(peaks)
    if rates := _finite(trial, "images_per_second"):
        # All images over all seconds, for each epoch trains on the same number of images.
        metrics["mean_images_per_second"] = statistics.harmonic_mean(rates)
    for name in TEST_METRICS:
        if seen := _finite(trial, name):
            metrics[name] = seen[-1]
    if trial.best_epoch:
        accuracy = _finite(trial, "val_accuracy")
        metrics["best_epoch"] = float(trial.best_epoch)
        if accuracy:
            metrics["best_val_accuracy"] = max(accuracy)
        metrics[f"best_{trial.metric}"] = trial.best_value
    return metrics


def _finite(trial: TrialRecord, name: str) -> list[float]:
    return [value for value in trial.history.get(name, ()) if math.isfinite(value)]


def _word(value: object) -> str:
    return INACTIVE if value is None else str(value)
