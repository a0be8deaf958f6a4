"""The coordinator's decisions, simulated: no Ray, no training, an in-memory study."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from optuna.trial import TrialState as OptunaState
from typing_extensions import override

from tests.tuning.coordinating import (
    EPOCHS,
    SPACE,
    FakeCheckpoints,
    RecordingCallback,
    Study,
    coordinator,
    curve,
    metrics,
    next_number,
)
from tune_rescon.config import TrialState
from tune_rescon.testing import SyntheticCurve, simulate
from tune_rescon.tuning import (
    Coordinator,
    Decision,
    SearchPlan,
    SearchSampler,
    SuccessiveHalving,
    TrialRecord,
)


def test_a_search_saves_epochs_and_finds_the_best_trial() -> None:
    study = Study()
    epochs_spent = simulate(coordinator(study), curve).epochs_spent
    overall_best = max(trial.params["learning_rate"] for trial in study.trials)
    assert epochs_spent < 0.6 * 30 * EPOCHS
    assert study.best_trial.params["learning_rate"] == overall_best


def test_the_study_has_each_trials_epochs_and_optunas_state() -> None:
    study = Study()
    simulate(coordinator(study), curve)
    for trial in study.trials:
        epochs = sorted(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1))
        if trial.user_attrs["state"] == "finished":
            assert trial.state is OptunaState.COMPLETE
            assert trial.value == trial.intermediate_values[EPOCHS]
        else:
            assert trial.user_attrs["state"] == "stopped"
            assert trial.state is OptunaState.PRUNED
            assert len(epochs) in (1, 3)


def test_a_trial_with_a_nan_is_closed_as_diverged_and_fails_in_optuna() -> None:
    study = Study()
    simulate(coordinator(study, total=1), lambda _: SyntheticCurve(limit=0.9, diverges_at=2))
    (trial,) = study.trials
    assert trial.state is OptunaState.FAIL
    assert trial.user_attrs["state"] == "diverged"
    assert math.isnan(trial.intermediate_values[2])


def test_an_epoch_reported_again_after_a_retry_is_not_judged_twice() -> None:
    study = Study()
    search = coordinator(study, total=1)
    number = next_number(search)
    for epoch in (1, 2, 2, 1, 3):
        assert search.epoch_done(number, epoch, metrics(0.5), None) is Decision.CONTINUE
    assert list(study.trials[0].intermediate_values) == [1, 2, 3]


def test_a_closed_trial_that_still_reports_is_stopped() -> None:
    search = coordinator(Study(), total=1)
    number = next_number(search)
    search.close(number, TrialState.FAILED, error="died")
    assert search.epoch_done(number, 1, metrics(0.5), None) is Decision.STOP


@pytest.mark.parametrize("resumed", [False, True])
def test_a_trial_is_judged_at_a_rung_by_its_value_there(resumed: bool) -> None:
    study = Study()
    search = coordinator(study, total=3)
    curves = {
        next_number(search): values for values in ((0.5, 0.0, 0.5, 0.0), (0.5, 0.0, 0.5, 0.0), (0.9, 0.1))
    }
    for number, values in curves.items():
        for epoch, value in enumerate(values, 1):
            assert search.epoch_done(number, epoch, metrics(value), None) is Decision.CONTINUE
    if resumed:
        search = coordinator(study, total=3)
        assert {next_number(search) for _ in curves} == set(curves)
    # Better than the other trials after epochs 2 and 4, but not at the rung.
    assert search.epoch_done(2, 3, metrics(0.2), None) is Decision.STOP


def test_a_paused_trial_frees_its_slot_and_continues_when_promoted() -> None:
    study, callback = Study(), RecordingCallback()
    trace = simulate(coordinator(study, total=9, pauses=True, callbacks=(callback,)), curve)
    finished = [t for t in study.trials if t.state is OptunaState.COMPLETE]
    stopped = [t for t in study.trials if t.state is OptunaState.PRUNED]
    assert len(finished) + len(stopped) == 9
    assert [len(t.intermediate_values) for t in finished] == [EPOCHS]
    assert {len(t.intermediate_values) for t in stopped} <= {1, 3}
    best = max(t.params["learning_rate"] for t in study.trials)
    assert finished[0].params["learning_rate"] == best
    restarts = [line for line in callback.events if "starts at" in line and not line.endswith("at 0")]
    assert restarts
    # No epoch is trained twice.
    assert len(trace.runs) == sum(len(t.intermediate_values) for t in study.trials)


def test_a_search_too_small_for_its_rungs_still_finishes_its_best_trial() -> None:
    study = Study()
    simulate(coordinator(study, total=2, pauses=True), curve)
    states = sorted((len(t.intermediate_values), t.state.name) for t in study.trials)
    assert states == [(1, "PRUNED"), (EPOCHS, "COMPLETE")]


class RecordingSampler(SearchSampler):
    """A sampler that records the reported trials."""

    def __init__(self) -> None:
        super().__init__(SPACE)
        self.reported: list[tuple[int, int, str]] = []

    @override
    def on_epoch(self, trial: TrialRecord) -> None:
        self.reported.append((trial.number, trial.epochs, trial.state.value))
        super().on_epoch(trial)


def test_the_sampler_gets_each_epoch_and_each_end() -> None:
    sampler = RecordingSampler()
    rule = SuccessiveHalving(rungs=(1, 3), reduction_factor=3, maximize=True, pauses=True)
    search = Coordinator(
        SearchPlan(total=2), Study().record(), rule, sampler, prune=FakeCheckpoints().prune
    ).start()
    number = next_number(search)
    search.epoch_done(number, 1, metrics(0.5), None)
    assert sampler.reported == [(0, 1, "running"), (0, 1, "paused")]
    second = next_number(search)
    search.close(second, TrialState.FAILED, error="died")
    assert sampler.reported[2:] == [(1, 0, "failed")]


def test_the_second_objective_covers_all_epochs_of_the_trial() -> None:
    study = Study("maximize", "minimize")
    search = coordinator(study, total=1, cost=lambda trial, epochs: sum(trial.device_seconds(1)[:epochs]))
    number = next_number(search)
    for epoch in range(1, EPOCHS + 1):
        search.epoch_done(number, epoch, metrics(0.5) | {"epoch_seconds": 2.0}, None)
    assert study.trials[0].values == [0.5, 2.0 * EPOCHS]


def final_metric_search(study: Study) -> Coordinator:
    """A search whose metric is reported after the last epoch only."""
    record = study.record("test_accuracy")
    return Coordinator(
        SearchPlan(total=3, keep=None),
        record,
        SuccessiveHalving(rungs=(2,), reduction_factor=3, maximize=True, pauses=False),
        SearchSampler(SPACE, existing_trials=record.trials()),
        prune=FakeCheckpoints().prune,
    ).start()


def test_a_metric_of_the_last_epoch_is_not_required_before() -> None:
    study = Study()
    search = final_metric_search(study)
    number = next_number(search)
    assert search.epoch_done(number, 1, {"train_loss": 2.0}, None) is Decision.CONTINUE
    # Another driver resumes the search.
    search = final_metric_search(study)
    assert next_number(search) == number
    assert search.epoch_done(number, 2, {"train_loss": 1.0, "test_accuracy": 0.5}, "b") is Decision.FINISH
    assert (study.trials[0].state, study.trials[0].value) == (OptunaState.COMPLETE, 0.5)


def test_a_nan_loss_ends_a_trial_whose_metric_is_not_known_yet() -> None:
    study = Study()
    search = final_metric_search(study)
    assert search.epoch_done(next_number(search), 1, {"train_loss": math.nan}, None) is Decision.DIVERGED
    assert study.trials[0].state is OptunaState.FAIL


class GuardError(Exception):
    pass


def test_nothing_is_written_if_check_lease_raises() -> None:
    study = Study()
    allowed = [True]

    def check_lease() -> None:
        if not allowed[0]:
            raise GuardError

    search = coordinator(study, check_lease=check_lease)
    number = next_number(search)
    allowed[0] = False
    calls: list[Callable[[], object]] = [
        search.next_trial,
        lambda: search.epoch_done(number, 1, metrics(0.5), None),
        lambda: search.note(number, "beware"),
        lambda: search.close(number, TrialState.FAILED, error="died"),
        search.interrupt_remaining,
    ]
    for call in calls:
        with pytest.raises(GuardError):
            call()
    (trial,) = study.trials
    assert (trial.state, trial.intermediate_values) == (OptunaState.RUNNING, {})
    assert trial.user_attrs == {"state": "running"}
