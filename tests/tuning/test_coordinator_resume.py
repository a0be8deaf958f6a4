"""The state that a resumed search restores from its study."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState as OptunaState

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
from tune_rescon.testing import simulate
from tune_rescon.tuning import (
    Coordinator,
    Decision,
    MedianRule,
    SearchPlan,
    SearchSampler,
    StoppingRule,
    SuccessiveHalving,
)


@pytest.mark.parametrize("reports", [1, 7, 20, 45])
def test_a_killed_search_resumes_its_unfinished_trials_first(reports: int) -> None:
    study, callback = Study(), RecordingCallback()
    simulate(coordinator(study, total=12), curve, reports=reports)
    before = {t.number: dict(t.intermediate_values) for t in study.trials}
    unfinished = [t.number for t in study.trials if t.state is OptunaState.RUNNING]

    simulate(coordinator(study, total=12, callbacks=(callback,)), curve)

    assert len(study.trials) == 12
    assert all(trial.state.is_finished() for trial in study.trials)
    for number, values in before.items():
        assert dict(study.trials[number].intermediate_values).items() >= values.items()
    starts = [line for line in callback.events if "starts" in line]
    assert starts[: len(unfinished)] == [f"{n} starts at {len(before[n])}" for n in unfinished]


def test_a_finished_search_is_extended_by_a_larger_total() -> None:
    study = Study()
    simulate(coordinator(study, total=4), curve)
    simulate(coordinator(study, total=7), curve)
    assert [trial.number for trial in study.trials] == list(range(7))


@pytest.mark.parametrize("pauses", [False, True])
def test_a_recorded_decision_is_carried_out_on_resume(pauses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study()
    search = coordinator(study, total=3, pauses=pauses)
    for _ in range(3):
        search.next_trial()
    search.epoch_done(0, 1, metrics(0.9), "a")
    search.epoch_done(1, 1, metrics(0.8), "b")
    with monkeypatch.context() as patch:
        # The driver dies after the third trial's verdict is written and before it is applied.
        patch.setattr(Coordinator, "_apply_decision", lambda *_: None)
        search.epoch_done(2, 1, metrics(0.1), "c")
    callback = RecordingCallback()
    resumed = coordinator(study, total=3, pauses=pauses, callbacks=(callback,))
    assert ("2 stopped" in callback.events) is not pauses
    resumed_numbers = []
    while (trial := resumed.next_trial()) is not None:
        resumed_numbers.append(trial.number)
    assert resumed_numbers == ([0] if pauses else [0, 1])


@pytest.mark.parametrize(
    ("rule", "decision"),
    [
        (
            SuccessiveHalving(rungs=(2, EPOCHS), reduction_factor=3, maximize=True, pauses=True),
            Decision.PAUSE,
        ),
        (SuccessiveHalving(rungs=(EPOCHS,), reduction_factor=3, maximize=True), Decision.CONTINUE),
        (MedianRule(first=1, last=EPOCHS, maximize=True), Decision.CONTINUE),
    ],
    ids=["another first rung", "no rungs", "median"],
)
def test_a_paused_trial_without_a_rung_in_a_changed_rule_continues(
    rule: StoppingRule, decision: Decision
) -> None:
    study = Study()
    search = coordinator(study, total=1, pauses=True)
    number = next_number(search)
    assert search.epoch_done(number, 1, metrics(0.5), None) is Decision.PAUSE
    record = study.record()
    resumed = Coordinator(
        SearchPlan(total=1),
        record,
        rule,
        SearchSampler(SPACE, existing_trials=record.trials()),
        prune=FakeCheckpoints().prune,
    ).start()
    assert next_number(resumed) == number
    assert resumed.epoch_done(number, 2, metrics(0.5), None) is decision


def test_reports_of_an_interrupted_trial_are_ignored() -> None:
    study = Study()
    search = coordinator(study, total=1)
    number = next_number(search)
    search.interrupt()
    for epoch in (1, 2):
        assert search.epoch_done(number, epoch, metrics(0.5), None) is Decision.STOP
    assert list(study.trials[number].intermediate_values) == [1]


def test_remaining_trials_are_interrupted_in_the_order_of_their_numbers() -> None:
    callback = RecordingCallback()
    search = coordinator(Study(), callbacks=(callback,))
    for _ in range(12):
        search.next_trial()
    search.interrupt_remaining()
    assert callback.events[-12:] == [f"{number} interrupted" for number in range(12)]


@pytest.mark.parametrize("resumed", [0, 2])
def test_trials_that_a_dead_driver_left_running_are_interrupted_unless_they_are_resumed(resumed: int) -> None:
    study, callback = Study(), RecordingCallback()
    killed = coordinator(study)
    for _ in range(4):
        next_number(killed)
    search = coordinator(study, callbacks=(callback,))
    assert [next_number(search) for _ in range(resumed)] == list(range(resumed))
    search.interrupt()
    assert search.next_trial() is None
    search.interrupt_remaining()
    assert callback.events[-4:] == [f"{number} interrupted" for number in range(4)]
    assert {trial.state for trial in study.record().trials()} == {TrialState.INTERRUPTED}
