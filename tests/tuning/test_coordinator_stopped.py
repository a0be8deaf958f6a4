"""Trials that end early although their rule continues them: out of patience, or on request."""

from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState as OptunaState

from tests.tuning.coordinating import (
    EPOCHS,
    SPACE,
    RecordingCallback,
    Study,
    coordinator,
    metrics,
    next_number,
)
from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import (
    Decision,
    TrialRecord,
)
from tune_rescon.tuning.trial import TrialOrigin


def space_with_patience(epochs: int) -> Space:
    parameters = "parameters={learning_rate: {type: float, low: 0.1, high: 0.99}}"
    changes = ["sampler.type=random", "initial=[]", parameters, f"fixed.patience={epochs}"]
    return load_space("digits", changes)


@pytest.mark.parametrize("pauses", [False, True])
def test_a_trial_out_of_patience_is_stopped_with_a_note(pauses: bool) -> None:
    study, callback = Study(), RecordingCallback()
    search = coordinator(study, total=1, callbacks=(callback,), space=space_with_patience(2), pauses=pauses)
    number = next_number(search)
    decisions = []
    for epoch, value in enumerate((0.5, 0.7, 0.6, 0.7), 1):
        decisions.append(search.epoch_done(number, epoch, metrics(value), f"best_{epoch}.ckpt"))
        if decisions[-1] is Decision.PAUSE:
            assert next_number(search) == number
    assert decisions[-1] is Decision.STOP
    assert Decision.STOP not in decisions[:-1]
    trial = study.record().trial(number)
    assert (trial.state, trial.epochs) == (TrialState.STOPPED, 4)
    assert trial.checkpoint == f"checkpoints/trial_{number:04d}/best_4.ckpt"
    assert study.trials[number].state is OptunaState.PRUNED
    assert f"{number} note stopped after epoch 4: val_accuracy was best at epoch 2" in callback.events
    assert search.next_trial() is None
    assert search.no_more_trials


def test_a_trial_that_improves_or_has_no_patience_is_not_stopped() -> None:
    for space in (space_with_patience(2), SPACE):
        study = Study()
        search = coordinator(study, total=1, space=space)
        number = next_number(search)
        values = (0.1, 0.05, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5) if space is not SPACE else (0.5,) * EPOCHS
        decisions = [search.epoch_done(number, n, metrics(value), None) for n, value in enumerate(values, 1)]
        assert decisions == [Decision.CONTINUE] * (EPOCHS - 1) + [Decision.FINISH]


def test_patience_counts_the_epochs_before_a_resume() -> None:
    study = Study()
    search = coordinator(study, total=1, space=space_with_patience(3))
    number = next_number(search)
    for epoch, value in enumerate((0.5, 0.4), 1):
        search.epoch_done(number, epoch, metrics(value), None)
    search.interrupt()
    search.interrupt_remaining()
    resumed = coordinator(study, total=1, space=space_with_patience(3))
    assert next_number(resumed) == number
    decisions = [resumed.epoch_done(number, epoch, metrics(0.4), None) for epoch in (3, 4)]
    assert decisions == [Decision.CONTINUE, Decision.STOP]


def test_patience_ignores_epochs_without_the_metric() -> None:
    trial = TrialRecord(
        number=0,
        state=TrialState.RUNNING,
        parameters={},
        metric="test_accuracy",
        maximize=True,
        values=(math.nan,) * 5,
        origin=TrialOrigin(config={"patience": 1}, space=1, seed=0),
    )
    assert not trial.out_of_patience


def test_a_running_trial_stops_after_its_epoch_on_request() -> None:
    study, callback = Study(), RecordingCallback()
    search = coordinator(study, total=2, callbacks=(callback,))
    number, second = next_number(search), next_number(search)
    assert search.epoch_done(number, 1, metrics(0.5), "best_1.ckpt") is Decision.CONTINUE
    study.request_stop(number)
    assert search.epoch_done(second, 1, metrics(0.4), None) is Decision.CONTINUE
    assert search.epoch_done(number, 2, metrics(0.6), "best_2.ckpt") is Decision.STOP
    trial = study.record().trial(number)
    assert (trial.state, trial.epochs, trial.value) == (TrialState.STOPPED, 2, 0.6)
    assert trial.checkpoint == f"checkpoints/trial_{number:04d}/best_2.ckpt"
    assert study.trials[number].state is OptunaState.PRUNED
    assert f"{number} note stopped after epoch 2, as `tune-rescon stop` requested" in callback.events
    # Another driver reads the decision from the record.
    resumed = coordinator(study, total=2)
    assert next_number(resumed) == second


def test_a_stop_request_before_the_last_epoch_leaves_the_trial_finished() -> None:
    study = Study()
    search = coordinator(study, total=1)
    number = next_number(search)
    for epoch in range(1, EPOCHS):
        search.epoch_done(number, epoch, metrics(0.5), None)
    study.request_stop(number)
    assert search.epoch_done(number, EPOCHS, metrics(0.5), None) is Decision.FINISH


@pytest.mark.parametrize("pauses", [False, True])
def test_a_paused_or_interrupted_trial_is_closed_on_request(pauses: bool) -> None:
    study = Study()
    search = coordinator(study, total=1, pauses=pauses)
    number = next_number(search)
    search.epoch_done(number, 1, metrics(0.5), "best_1.ckpt")
    search.interrupt()
    search.interrupt_remaining()
    waiting = TrialState.PAUSED if pauses else TrialState.INTERRUPTED
    assert study.record().trial(number).state is waiting
    study.request_stop(number)
    resumed = coordinator(study, total=1, pauses=pauses)
    assert resumed.next_trial() is None
    assert resumed.no_more_trials
    trial = study.record().trial(number)
    assert (trial.state, trial.epochs) == (TrialState.STOPPED, 1)
    assert trial.checkpoint == f"checkpoints/trial_{number:04d}/best_1.ckpt"
