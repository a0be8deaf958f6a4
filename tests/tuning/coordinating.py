"""Shared by the coordinator's tests: a study in memory, a coordinator on it, and recorders of its calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna
from typing_extensions import override

from tune_rescon.metric_names import METRICS
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import Assignment, SyntheticCurve
from tune_rescon.tuning import (
    Coordinator,
    SearchCallback,
    SearchPlan,
    SearchSampler,
    StudyRecord,
    SuccessiveHalving,
    TrialRecord,
    Verdict,
)

#: The last epoch of the trials.
EPOCHS = 9

SPACE = load_space(
    "digits",
    ["sampler.type=random", "initial=[]", "parameters={learning_rate: {type: float, low: 0.1, high: 0.99}}"],
)


class Study:
    """An Optuna study in memory, by default with one objective that is maximized."""

    def __init__(self, *directions: Literal["minimize", "maximize"]) -> None:
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, directions=directions or ["maximize"])

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.trials

    @property
    def best_trial(self) -> optuna.trial.FrozenTrial:
        return self._study.best_trial

    def request_stop(self, number: int) -> None:
        """Request the stop of a trial as another program would."""
        self._storage.set_trial_user_attr(self.trials[number]._trial_id, "stop_requested", True)

    def record(self, metric: str = "val_accuracy") -> StudyRecord:
        number = self._storage.get_study_id_from_name(self._study.study_name)
        return StudyRecord.on_storage(self._storage, number, metric=metric)


def curve(trial: Assignment) -> SyntheticCurve:
    return SyntheticCurve(limit=trial.parameters["learning_rate"])


class RecordingCallback(SearchCallback):
    """Records every event as a line."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @override
    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        self.events.append(f"{len(trials)} recorded")

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        self.events.append(f"{trial.number} starts at {trial.epochs}")

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        assert metrics["val_accuracy"] == trial.last_value or math.isnan(trial.last_value)
        self.events.append(f"{trial.number} epoch {trial.epochs} {verdict.decision.value}")

    @override
    def on_progress(self, trial: TrialRecord, share: float) -> None:
        self.events.append(f"{trial.number} at {share:.0%} of epoch {trial.epochs + 1}")

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        self.events.append(f"{trial.number} note {text}")

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        self.events.append(f"{trial.number} {trial.state.value}")


class FakeCheckpoints:
    """Records the checkpoint of each trial that the last ``prune`` kept."""

    def __init__(self) -> None:
        self.kept: dict[int, str | None] = {}

    def prune(self, number: int, keep: str | None) -> None:
        self.kept[number] = keep


def coordinator(
    study: Study,
    *,
    total: int = 30,
    callbacks: tuple[SearchCallback, ...] = (),
    checkpoints: FakeCheckpoints | None = None,
    deadline: float | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    pauses: bool = False,
    space: Space = SPACE,
    **plan: Any,
) -> Coordinator:
    record = study.record()
    return Coordinator(
        SearchPlan(total=total, deadline=deadline, **plan),
        record,
        SuccessiveHalving(rungs=(1, 3, EPOCHS), reduction_factor=3, maximize=True, pauses=pauses),
        SearchSampler(space, existing_trials=record.trials()),
        callbacks=callbacks,
        prune=(checkpoints or FakeCheckpoints()).prune,
        clock=clock,
    ).start()


def next_number(search: Coordinator) -> int:
    trial = search.next_trial()
    assert trial is not None
    return trial.number


def metrics(value: float) -> dict[str, float]:
    return {**dict.fromkeys(METRICS, 0.0), "val_accuracy": value}
