"""The end of a search: by its deadline, by an interrupt, by an exhausted space."""

from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState as OptunaState

from tests.tuning.coordinating import (
    EPOCHS,
    FakeCheckpoints,
    RecordingCallback,
    Study,
    coordinator,
    curve,
    metrics,
    next_number,
)
from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import simulate
from tune_rescon.tuning import (
    Coordinator,
    Decision,
    SearchPlan,
    SearchSampler,
    SuccessiveHalving,
)


def test_an_interrupt_stops_running_trials_after_their_epoch_for_a_resume() -> None:
    study = Study()
    search = coordinator(study)
    simulate(search, curve, reports=1)
    running = [trial.number for trial in study.trials]
    search.interrupt()
    assert search.next_trial() is None
    assert search.no_more_trials
    for number in running:
        epoch = len(study.trials[number].intermediate_values) + 1
        assert search.epoch_done(number, epoch, metrics(0.5), "x") is Decision.STOP
    assert {trial.state for trial in study.trials} == {OptunaState.RUNNING}
    assert {trial.user_attrs["state"] for trial in study.trials} == {"interrupted"}


@pytest.mark.parametrize(
    ("value", "decision", "state"),
    [(0.5, Decision.FINISH, "finished"), (math.nan, Decision.DIVERGED, "diverged")],
)
def test_a_last_epoch_after_an_interrupt_ends_the_trial(value: float, decision: Decision, state: str) -> None:
    study, callback = Study(), RecordingCallback()
    search = coordinator(study, total=1, callbacks=(callback,))
    number = next_number(search)
    for epoch in range(1, EPOCHS):
        search.epoch_done(number, epoch, metrics(0.5), None)
    search.interrupt()
    assert search.epoch_done(number, EPOCHS, metrics(value), None) is decision
    assert callback.events[-1] == f"0 {state}"
    assert study.record().trial(number).state.value == state


def test_after_the_deadline_no_trial_starts_and_running_trials_stop() -> None:
    now = [0.0]
    study = Study()
    search = coordinator(study, deadline=10.0, clock=lambda: now[0])
    trial = search.next_trial()
    assert trial is not None
    assert search.epoch_done(trial.number, 1, metrics(0.5), None) is Decision.CONTINUE
    now[0] = 10.0
    assert search.epoch_done(trial.number, 2, metrics(0.6), None) is Decision.STOP
    assert search.next_trial() is None
    assert study.trials[0].state is OptunaState.PRUNED


@pytest.mark.parametrize(
    ("value", "decision", "state"),
    [(0.5, Decision.FINISH, TrialState.FINISHED), (math.nan, Decision.DIVERGED, TrialState.DIVERGED)],
)
def test_a_last_epoch_after_the_deadline_is_judged_as_before_it(
    value: float, decision: Decision, state: TrialState
) -> None:
    now = [0.0]
    study = Study()
    search = coordinator(study, total=1, deadline=10.0, clock=lambda: now[0])
    number = next_number(search)
    for epoch in range(1, EPOCHS):
        search.epoch_done(number, epoch, metrics(0.5), None)
    now[0] = 10.0
    assert search.epoch_done(number, EPOCHS, metrics(value), None) is decision
    assert study.record().trial(number).state is state


def test_a_trial_that_reaches_a_rung_after_the_deadline_is_stopped_once() -> None:
    """The rule pauses it, and the deadline stops it: it must not wait any more."""
    now = [0.0]
    study, callback = Study(), RecordingCallback()
    search = coordinator(study, pauses=True, deadline=10.0, clock=lambda: now[0], callbacks=(callback,))
    number = next_number(search)
    now[0] = 11.0
    assert search.epoch_done(number, 1, metrics(0.5), None) is Decision.STOP
    search.interrupt_remaining()
    assert study.record().trial(number).state is TrialState.STOPPED
    assert callback.events.count(f"{number} stopped") == 1


@pytest.mark.parametrize(
    ("late", "interrupted", "state"),
    [
        (False, False, TrialState.PAUSED),
        (True, False, TrialState.STOPPED),
        (True, True, TrialState.PAUSED),
        (False, True, TrialState.PAUSED),
    ],
)
def test_paused_trials_are_stopped_at_the_end_only_after_the_deadline(
    late: bool, interrupted: bool, state: TrialState
) -> None:
    now = [0.0]
    study, checkpoints = Study(), FakeCheckpoints()
    search = coordinator(study, pauses=True, deadline=10.0, clock=lambda: now[0], checkpoints=checkpoints)
    paused, running = next_number(search), next_number(search)
    assert search.epoch_done(paused, 1, metrics(0.5), "best.ckpt") is Decision.PAUSE
    now[0] = 10.0 if late else 9.0
    if interrupted:
        search.interrupt()
    search.interrupt_remaining()
    assert study.record().trial(paused).state is state
    assert study.record().trial(paused).checkpoint == f"checkpoints/trial_{paused:04d}/best.ckpt"
    assert study.record().trial(running).state is TrialState.INTERRUPTED


def test_paused_trials_of_an_exhausted_search_are_closed_once() -> None:
    now = [0.0]
    study, callback = Study(), RecordingCallback()
    search = coordinator(
        study, total=3, pauses=True, deadline=10.0, clock=lambda: now[0], callbacks=(callback,)
    )
    while (trial := search.next_trial()) is not None:
        epoch, decision = trial.epochs, Decision.CONTINUE
        while decision is Decision.CONTINUE:
            epoch += 1
            decision = search.epoch_done(trial.number, epoch, metrics(trial.number / 10), None)
    assert search.no_more_trials
    now[0] = 11.0
    search.interrupt_remaining()
    ended = [line for line in callback.events if line.endswith((" stopped", " finished"))]
    assert sorted(line.split()[0] for line in ended) == ["0", "1", "2"]


def test_a_search_ends_when_its_space_is_exhausted() -> None:
    two = load_space(
        "digits",
        [
            "sampler.type=random",
            "initial=[]",
            "parameters={learning_rate: {type: categorical, choices: [0.2, 0.4]}}",
        ],
    )
    study = Study()
    record = study.record()
    search = Coordinator(
        SearchPlan(total=9),
        record,
        SuccessiveHalving(rungs=(1, 3, EPOCHS), reduction_factor=3, maximize=True),
        SearchSampler(two),
        prune=FakeCheckpoints().prune,
    ).start()
    simulate(search, curve)
    assert search.space_is_exhausted
    assert search.no_more_trials
    assert sorted(trial.params["learning_rate"] for trial in study.trials) == [0.2, 0.4]
    assert all(trial.state.is_finished() for trial in study.trials)
