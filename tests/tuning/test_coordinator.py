"""The life of trials, simulated: no Ray, no training, an in-memory study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna
import pytest
from optuna.trial import TrialState as OptunaState
from typing_extensions import override

from tune_rescon.config import TrialState
from tune_rescon.metric_names import METRICS
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import Assignment, Simulation, SyntheticCurve, simulate
from tune_rescon.tuning import (
    Coordinator,
    Decision,
    MedianRule,
    SearchCallback,
    SearchPlan,
    SearchSampler,
    StoppingRule,
    StudyRecord,
    SuccessiveHalving,
    TrialRecord,
    Verdict,
    best_trial,
)
from tune_rescon.tuning.callbacks import CallbackList
from tune_rescon.tuning.result import best_in_hand
from tune_rescon.tuning.trial import TrialOrigin

EPOCHS = 9


SPACE = load_space(
    "digits",
    ["sampler.type=random", "initial=[]", "parameters={learning_rate: {type: float, low: 0.1, high: 0.99}}"],
)


class Study:
    """An Optuna study in memory, and its record as another driver opens it."""

    def __init__(self, *directions: Literal["minimize", "maximize"]) -> None:
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, directions=directions)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.trials

    @property
    def best_trial(self) -> optuna.trial.FrozenTrial:
        return self._study.best_trial

    def request_stop(self, number: int) -> None:
        """As another program does."""
        self._storage.set_trial_user_attr(self.trials[number]._trial_id, "stop_requested", True)

    def record(self, metric: str = "val_accuracy") -> StudyRecord:
        number = self._storage.get_study_id_from_name(self._study.study_name)
        return StudyRecord.on(self._storage, number, metric=metric)


def study() -> Study:
    return Study("maximize")


def record(of: Study) -> StudyRecord:
    return of.record()


def curve(trial: Assignment) -> SyntheticCurve:
    return SyntheticCurve(limit=trial.parameters["learning_rate"])


class Diary(SearchCallback):
    """A callback that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @override
    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        self.lines.append(f"{len(trials)} recorded")

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        self.lines.append(f"{trial.number} starts at {trial.epochs}")

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        assert metrics["val_accuracy"] == trial.last_value or math.isnan(trial.last_value)
        self.lines.append(f"{trial.number} epoch {trial.epochs} {verdict.decision.value}")

    @override
    def on_progress(self, trial: TrialRecord, share: float) -> None:
        self.lines.append(f"{trial.number} at {share:.0%} of epoch {trial.epochs + 1}")

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        self.lines.append(f"{trial.number} note {text}")

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        self.lines.append(f"{trial.number} {trial.state.value}")


class Shelf:
    """Where checkpoints would be: what each ``prune`` call left."""

    def __init__(self) -> None:
        self.left: dict[int, str | None] = {}

    def prune(self, number: int, keep: str | None) -> None:
        self.left[number] = keep


def coordinator(
    of: Study,
    *,
    total: int = 30,
    callbacks: tuple[SearchCallback, ...] = (),
    shelf: Shelf | None = None,
    deadline: float | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    pauses: bool = False,
    space: Space = SPACE,
    **plan: Any,
) -> Coordinator:
    kept = record(of)
    return Coordinator(
        SearchPlan(total=total, deadline=deadline, **plan),
        kept,
        SuccessiveHalving(levels=(1, 3, EPOCHS), reduction_factor=3, maximize=True, pauses=pauses),
        SearchSampler(space, known=kept.trials()),
        callbacks=callbacks,
        prune=(shelf or Shelf()).prune,
        clock=clock,
    ).start()


def first(search: Coordinator) -> int:
    trial = search.next_trial()
    assert trial is not None
    return trial.number


def metrics(value: float) -> dict[str, float]:
    return {**dict.fromkeys(METRICS, 0.0), "val_accuracy": value}


def test_a_search_saves_epochs_and_keeps_the_best() -> None:
    of = study()
    spent = simulate(coordinator(of), curve).epochs_spent
    best_of_all = max(trial.params["learning_rate"] for trial in of.trials)
    assert spent < 0.6 * 30 * EPOCHS
    assert of.best_trial.params["learning_rate"] == best_of_all


def test_optuna_is_told_what_became_of_each_trial() -> None:
    of = study()
    simulate(coordinator(of), curve)
    for trial in of.trials:
        epochs = sorted(trial.intermediate_values)
        assert epochs == list(range(1, len(epochs) + 1))
        if trial.user_attrs["state"] == "finished":
            assert trial.state is OptunaState.COMPLETE
            assert trial.value == trial.intermediate_values[EPOCHS]
        else:
            assert trial.user_attrs["state"] == "stopped"
            assert trial.state is OptunaState.PRUNED
            assert len(epochs) in (1, 3)


def test_listeners_hear_everything_in_order() -> None:
    diary = Diary()
    simulate(coordinator(study(), total=1, callbacks=(diary,)), curve)
    epochs = [f"0 epoch {epoch} continue" for epoch in range(1, EPOCHS)]
    assert diary.lines == ["0 recorded", "0 starts at 0", *epochs, f"0 epoch {EPOCHS} finish", "0 finished"]


def test_a_diverged_trial_ends_within_the_epoch_and_is_no_result() -> None:
    of = study()
    simulate(coordinator(of, total=1), lambda _: SyntheticCurve(limit=0.9, diverges_at=2))
    (trial,) = of.trials
    assert trial.state is OptunaState.FAIL
    assert trial.user_attrs["state"] == "diverged"
    assert math.isnan(trial.intermediate_values[2])


def test_checkpoints_of_the_five_best_are_kept_one_each() -> None:
    of, shelf = study(), Shelf()
    simulate(coordinator(of, shelf=shelf), curve)
    kept = {number for number, file in shelf.left.items() if file is not None}
    best = sorted(record(of).trials(), key=TrialRecord.rank_key)[:5]
    assert kept == {trial.number for trial in best}
    wanted = {f"checkpoints/trial_{t.number:04d}/best_{t.number}.ckpt" for t in best}
    assert {trial.checkpoint for trial in best} == wanted
    assert set(shelf.left) == {trial.number for trial in of.trials}


def test_a_winner_that_names_no_checkpoint_keeps_what_it_has() -> None:
    """Its best network could not be written or sent, so its last checkpoint may be all that is left."""
    of, shelf = study(), Shelf()
    search = coordinator(of, total=7, shelf=shelf)
    for value in (0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.01):
        number = first(search)
        for epoch in range(1, EPOCHS + 1):
            named = None if number in (1, 6) else f"best_{number}.ckpt"
            if search.epoch_done(number, epoch, metrics(value), named) is not Decision.CONTINUE:
                break
    assert record(of).trial(1).state is TrialState.FINISHED
    assert 1 not in shelf.left, "the best of all"
    assert shelf.left[6] is None, "a loser"


def test_an_epoch_reported_again_after_a_retry_is_not_judged_twice() -> None:
    of = study()
    search = coordinator(of, total=1)
    number = first(search)
    for epoch in (1, 2, 2, 1, 3):
        assert search.epoch_done(number, epoch, metrics(0.5), None) is Decision.CONTINUE
    assert list(of.trials[0].intermediate_values) == [1, 2, 3]


def test_a_closed_trial_that_still_reports_is_told_to_stop() -> None:
    search = coordinator(study(), total=1)
    number = first(search)
    search.close(number, TrialState.FAILED, error="died")
    assert search.epoch_done(number, 1, metrics(0.5), None) is Decision.STOP


def test_a_machine_that_cannot_run_a_trial_ends_the_search_and_no_trial() -> None:
    of = study()
    search = coordinator(of, total=9)
    first_one, second_one = first(search), first(search)
    search.epoch_done(first_one, 1, metrics(0.5), None)
    search.abort(second_one, "no GPU")
    search.abort(second_one, "a later reason")
    assert search.failure == "no GPU"
    assert search.exhausted
    assert search.next_trial() is None
    assert search.epoch_done(first_one, 2, metrics(0.5), None) is Decision.STOP
    search.interrupt_remaining()
    assert [trial.user_attrs["state"] for trial in of.trials] == ["interrupted"] * 2
    again = coordinator(of, total=9)
    assert again.failure is None
    assert {first(again), first(again)} == {first_one, second_one}, "on a machine that can"


def test_a_trial_whose_worker_dies_is_handed_out_again_three_times() -> None:
    of, diary = study(), Diary()
    search = coordinator(of, total=2, callbacks=(diary,))
    number = first(search)
    search.epoch_done(number, 1, metrics(0.5), None)
    for _ in range(3):
        search.worker_failed(number)
        assert first(search) == number
    assert diary.lines.count(f"{number} starts at 1") == 3
    search.worker_failed(number)
    assert of.trials[number].state is OptunaState.FAIL
    assert list(of.trials[number].intermediate_values) == [1]
    assert first(search) != number
    search.worker_failed(number)
    assert diary.lines[-1] == "1 starts at 0", "a trial that has ended is not handed out again"


def test_a_trial_that_waits_to_be_handed_out_again_is_still_to_come() -> None:
    of = study()
    search = coordinator(of, total=1)
    number = first(search)
    assert search.next_trial() is None
    search.worker_failed(number)
    assert not search.exhausted
    search.interrupt()
    search.interrupt_remaining()
    assert of.trials[number].user_attrs["state"] == "interrupted"


def patient(epochs: int) -> Space:
    parameters = "parameters={learning_rate: {type: float, low: 0.1, high: 0.99}}"
    changes = ["sampler.type=random", "initial=[]", parameters, f"fixed.patience={epochs}"]
    return load_space("digits", changes)


@pytest.mark.parametrize("pauses", [False, True])
def test_a_trial_out_of_patience_is_stopped_and_not_finished(pauses: bool) -> None:
    of, diary = study(), Diary()
    search = coordinator(of, total=1, callbacks=(diary,), space=patient(2), pauses=pauses)
    number = first(search)
    decisions = []
    for epoch, value in enumerate((0.5, 0.7, 0.6, 0.7), 1):
        decisions.append(search.epoch_done(number, epoch, metrics(value), f"best_{epoch}.ckpt"))
        if decisions[-1] is Decision.PAUSE:
            assert first(search) == number
    assert decisions[-1] is Decision.STOP
    assert Decision.STOP not in decisions[:-1]
    trial = record(of).trial(number)
    assert (trial.state, trial.epochs) == (TrialState.STOPPED, 4)
    assert trial.checkpoint == f"checkpoints/trial_{number:04d}/best_4.ckpt"
    assert of.trials[number].state is OptunaState.PRUNED
    assert f"{number} note stopped after epoch 4: val_accuracy was best at epoch 2" in diary.lines
    assert search.next_trial() is None
    assert search.exhausted


def test_a_trial_that_becomes_better_keeps_its_patience_and_so_does_one_without_any() -> None:
    for space in (patient(2), SPACE):
        of = study()
        search = coordinator(of, total=1, space=space)
        number = first(search)
        values = (0.1, 0.05, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5) if space is not SPACE else (0.5,) * EPOCHS
        decisions = [search.epoch_done(number, n, metrics(value), None) for n, value in enumerate(values, 1)]
        assert decisions == [Decision.CONTINUE] * (EPOCHS - 1) + [Decision.FINISH]


def test_patience_survives_a_resume() -> None:
    of = study()
    search = coordinator(of, total=1, space=patient(3))
    number = first(search)
    for epoch, value in enumerate((0.5, 0.4), 1):
        search.epoch_done(number, epoch, metrics(value), None)
    search.interrupt()
    search.interrupt_remaining()
    again = coordinator(of, total=1, space=patient(3))
    assert first(again) == number
    decisions = [again.epoch_done(number, epoch, metrics(0.4), None) for epoch in (3, 4)]
    assert decisions == [Decision.CONTINUE, Decision.STOP]


def test_a_metric_of_the_last_epoch_alone_needs_no_patience() -> None:
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


def test_a_running_trial_that_another_program_stops_ends_after_its_epoch() -> None:
    of, diary = study(), Diary()
    search = coordinator(of, total=2, callbacks=(diary,))
    number, other = first(search), first(search)
    assert search.epoch_done(number, 1, metrics(0.5), "best_1.ckpt") is Decision.CONTINUE
    of.request_stop(number)
    assert search.epoch_done(other, 1, metrics(0.4), None) is Decision.CONTINUE
    assert search.epoch_done(number, 2, metrics(0.6), "best_2.ckpt") is Decision.STOP
    trial = record(of).trial(number)
    assert (trial.state, trial.epochs, trial.value) == (TrialState.STOPPED, 2, 0.6)
    assert trial.checkpoint == f"checkpoints/trial_{number:04d}/best_2.ckpt"
    assert of.trials[number].state is OptunaState.PRUNED
    assert f"{number} note stopped after epoch 2, as `tune-rescon stop` requested" in diary.lines
    # Another driver reads the decision from the record.
    again = coordinator(of, total=2)
    assert first(again) == other


def test_one_that_reaches_its_last_epoch_has_finished_all_the_same() -> None:
    of = study()
    search = coordinator(of, total=1)
    number = first(search)
    for epoch in range(1, EPOCHS):
        search.epoch_done(number, epoch, metrics(0.5), None)
    of.request_stop(number)
    assert search.epoch_done(number, EPOCHS, metrics(0.5), None) is Decision.FINISH


@pytest.mark.parametrize("pauses", [False, True])
def test_one_that_waits_is_closed_instead_of_resumed(pauses: bool) -> None:
    of = study()
    search = coordinator(of, total=1, pauses=pauses)
    number = first(search)
    search.epoch_done(number, 1, metrics(0.5), "best_1.ckpt")
    search.interrupt()
    search.interrupt_remaining()
    waiting = TrialState.PAUSED if pauses else TrialState.INTERRUPTED
    assert record(of).trial(number).state is waiting
    of.request_stop(number)
    again = coordinator(of, total=1, pauses=pauses)
    assert again.next_trial() is None
    assert again.exhausted
    trial = record(of).trial(number)
    assert (trial.state, trial.epochs) == (TrialState.STOPPED, 1)
    assert trial.checkpoint == f"checkpoints/trial_{number:04d}/best_1.ckpt"


@pytest.mark.parametrize("reports", [1, 7, 20, 45])
def test_a_killed_search_goes_on_from_its_record(reports: int) -> None:
    of, diary = study(), Diary()
    simulate(coordinator(of, total=12), curve, reports=reports)
    before = {t.number: dict(t.intermediate_values) for t in of.trials}
    unfinished = [t.number for t in of.trials if t.state is OptunaState.RUNNING]

    simulate(coordinator(of, total=12, callbacks=(diary,)), curve)

    assert len(of.trials) == 12
    assert all(trial.state.is_finished() for trial in of.trials)
    for number, values in before.items():
        assert dict(of.trials[number].intermediate_values).items() >= values.items()
    starts = [line for line in diary.lines if "starts" in line]
    assert starts[: len(unfinished)] == [f"{n} starts at {len(before[n])}" for n in unfinished]


def test_a_finished_search_is_extended_by_a_larger_total() -> None:
    of = study()
    simulate(coordinator(of, total=4), curve)
    simulate(coordinator(of, total=7), curve)
    assert [trial.number for trial in of.trials] == list(range(7))


def test_an_interrupt_ends_running_trials_after_their_epoch_and_leaves_them_open() -> None:
    of = study()
    search = coordinator(of)
    simulate(search, curve, reports=1)
    running = [trial.number for trial in of.trials]
    search.interrupt()
    assert search.next_trial() is None
    assert search.exhausted
    for number in running:
        epoch = len(of.trials[number].intermediate_values) + 1
        assert search.epoch_done(number, epoch, metrics(0.5), "x") is Decision.STOP
    assert {trial.state for trial in of.trials} == {OptunaState.RUNNING}
    assert {trial.user_attrs["state"] for trial in of.trials} == {"interrupted"}


def test_after_the_deadline_no_trial_starts_and_running_ones_stop() -> None:
    now = [0.0]
    of = study()
    search = coordinator(of, deadline=10.0, clock=lambda: now[0])
    trial = search.next_trial()
    assert trial is not None
    assert search.epoch_done(trial.number, 1, metrics(0.5), None) is Decision.CONTINUE
    now[0] = 10.0
    assert search.epoch_done(trial.number, 2, metrics(0.6), None) is Decision.STOP
    assert search.next_trial() is None
    assert of.trials[0].state is OptunaState.PRUNED


def test_a_paused_trial_frees_its_slot_and_goes_on_when_it_is_promoted() -> None:
    of, diary = study(), Diary()
    trace = simulate(coordinator(of, total=9, pauses=True, callbacks=(diary,)), curve)
    finished = [t for t in of.trials if t.state is OptunaState.COMPLETE]
    stopped = [t for t in of.trials if t.state is OptunaState.PRUNED]
    assert len(finished) + len(stopped) == 9
    assert [len(t.intermediate_values) for t in finished] == [EPOCHS]
    assert {len(t.intermediate_values) for t in stopped} <= {1, 3}
    best = max(t.params["learning_rate"] for t in of.trials)
    assert finished[0].params["learning_rate"] == best
    again = [line for line in diary.lines if "starts at" in line and not line.endswith("at 0")]
    assert again
    # No epoch was trained twice.
    assert len(trace.runs) == sum(len(t.intermediate_values) for t in of.trials)


def test_a_promoting_search_too_small_for_its_rungs_still_finishes_its_best() -> None:
    of = study()
    simulate(coordinator(of, total=2, pauses=True), curve)
    states = sorted((len(t.intermediate_values), t.state.name) for t in of.trials)
    assert states == [(1, "PRUNED"), (EPOCHS, "COMPLETE")]


@pytest.mark.parametrize("pauses", [False, True])
def test_what_was_decided_but_not_done_is_done_on_resume(
    pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = study()
    search = coordinator(of, total=3, pauses=pauses)
    for _ in range(3):
        search.next_trial()
    search.epoch_done(0, 1, metrics(0.9), "a")
    search.epoch_done(1, 1, metrics(0.8), "b")
    with monkeypatch.context() as patch:
        # The driver dies with the third trial's verdict written, and nothing done about it.
        patch.setattr(Coordinator, "_act", lambda *_: None)
        search.epoch_done(2, 1, metrics(0.1), "c")
    diary = Diary()
    resumed = coordinator(of, total=3, pauses=pauses, callbacks=(diary,))
    assert ("2 stopped" in diary.lines) is not pauses
    handed = []
    while (trial := resumed.next_trial()) is not None:
        handed.append(trial.number)
    assert handed == ([0] if pauses else [0, 1])


def test_notes_are_kept_and_told() -> None:
    of, diary = study(), Diary()
    search = coordinator(of, total=1, callbacks=(diary,))
    search.note(first(search), "beware")
    assert diary.lines[-1] == "0 note beware"
    assert record(of).trial(0).notes == ("beware",)


def same_third(parameters: Mapping[str, Any]) -> int:
    """Two kinds of trial, of which one needs too much memory."""
    return int(parameters["learning_rate"] > 0.3)


def test_what_ran_out_of_memory_once_is_not_run_again() -> None:
    of = study()
    search = coordinator(of, total=10, same_memory=same_third)
    while (trial := search.next_trial()) is not None:
        if same_third(trial.parameters):
            search.close(trial.number, TrialState.OUT_OF_MEMORY, error="out of memory")
        else:
            search.epoch_done(trial.number, 1, metrics(math.nan), None)
    states = [trial.user_attrs["state"] for trial in of.trials]
    assert states.count("out_of_memory") == 1
    assert states.count("diverged") == 9


def test_where_nothing_else_can_be_drawn_a_trial_is_closed_unrun() -> None:
    of = study()
    search = coordinator(of, total=3, same_memory=lambda _: 1)
    search.close(first(search), TrialState.OUT_OF_MEMORY, error="out of memory")
    assert search.next_trial() is None
    assert search.exhausted
    assert [trial.user_attrs["state"] for trial in of.trials] == ["out_of_memory"] * 3
    assert of.trials[1].user_attrs["error"].startswith("not run: trial 0, ")


def test_too_many_failures_in_a_row_end_the_search_and_running_trials_wait_for_a_resume() -> None:
    of = study()
    search = coordinator(of)
    running = first(search)
    for _ in range(5):
        search.close(first(search), TrialState.FAILED, error="Traceback\nValueError: no such layer")
    assert search.failure is not None
    assert "all said: ValueError: no such layer" in search.failure
    assert search.exhausted
    assert search.next_trial() is None
    assert search.epoch_done(running, 1, metrics(0.5), None) is Decision.STOP
    assert of.trials[running].user_attrs["state"] == "interrupted"


class LeaseLostError(Exception):
    pass


def test_nothing_is_written_where_the_guard_objects() -> None:
    of = study()
    allowed = [True]

    def guard() -> None:
        if not allowed[0]:
            raise LeaseLostError

    search = coordinator(of, guard=guard)
    number = first(search)
    allowed[0] = False
    calls: list[Callable[[], object]] = [
        search.next_trial,
        lambda: search.epoch_done(number, 1, metrics(0.5), None),
        lambda: search.note(number, "beware"),
        lambda: search.close(number, TrialState.FAILED, error="died"),
        search.interrupt_remaining,
    ]
    for call in calls:
        with pytest.raises(LeaseLostError):
            call()
    (trial,) = of.trials
    assert (trial.state, trial.intermediate_values) == (OptunaState.RUNNING, {})
    assert trial.user_attrs == {"state": "running"}


def test_the_second_objective_is_measured_up_to_the_epoch() -> None:
    of = Study("maximize", "minimize")
    search = coordinator(of, total=1, cost=lambda trial, epochs: trial.seconds_of(epochs))
    number = first(search)
    for epoch in range(1, EPOCHS + 1):
        search.epoch_done(number, epoch, metrics(0.5) | {"epoch_seconds": 2.0}, None)
    assert of.trials[0].values == [0.5, 2.0 * EPOCHS]


def judged_once(of: Study) -> Coordinator:
    """Trials whose objective is known after the last epoch only."""
    kept = of.record("test_accuracy")
    return Coordinator(
        SearchPlan(total=3, keep=None),
        kept,
        SuccessiveHalving(levels=(2,), reduction_factor=3, maximize=True, pauses=False),
        SearchSampler(SPACE, known=kept.trials()),
        prune=Shelf().prune,
    ).start()


def test_what_is_measured_only_at_the_end_is_not_missed_before() -> None:
    of = study()
    search = judged_once(of)
    number = first(search)
    assert search.epoch_done(number, 1, {"train_loss": 2.0}, None) is Decision.CONTINUE
    # Another driver continues it.
    search = judged_once(of)
    assert first(search) == number
    assert search.epoch_done(number, 2, {"train_loss": 1.0, "test_accuracy": 0.5}, "b") is Decision.FINISH
    assert (of.trials[0].state, of.trials[0].value) == (OptunaState.COMPLETE, 0.5)


def test_a_loss_that_is_not_finite_ends_it_there_too() -> None:
    of = study()
    search = judged_once(of)
    assert search.epoch_done(first(search), 1, {"train_loss": math.nan}, None) is Decision.DIVERGED
    assert of.trials[0].state is OptunaState.FAIL


@pytest.mark.parametrize(
    ("rule", "then"),
    [
        (
            SuccessiveHalving(levels=(2, EPOCHS), reduction_factor=3, maximize=True, pauses=True),
            Decision.PAUSE,
        ),
        (SuccessiveHalving(levels=(EPOCHS,), reduction_factor=3, maximize=True), Decision.CONTINUE),
        (MedianRule(first=1, last=EPOCHS, maximize=True), Decision.CONTINUE),
    ],
    ids=["another first rung", "no rungs", "median"],
)
def test_a_paused_trial_for_which_a_changed_rule_has_no_rung_is_trained_on(
    rule: StoppingRule, then: Decision
) -> None:
    of = study()
    search = coordinator(of, total=1, pauses=True)
    number = first(search)
    assert search.epoch_done(number, 1, metrics(0.5), None) is Decision.PAUSE
    kept = record(of)
    resumed = Coordinator(
        SearchPlan(total=1), kept, rule, SearchSampler(SPACE, known=kept.trials()), prune=Shelf().prune
    ).start()
    assert first(resumed) == number
    assert resumed.epoch_done(number, 2, metrics(0.5), None) is then


def test_a_search_whose_space_is_exhausted_ends_when_its_last_trial_does() -> None:
    two = load_space(
        "digits",
        [
            "sampler.type=random",
            "initial=[]",
            "parameters={learning_rate: {type: categorical, choices: [0.2, 0.4]}}",
        ],
    )
    of = study()
    kept = record(of)
    search = Coordinator(
        SearchPlan(total=9),
        kept,
        SuccessiveHalving(levels=(1, 3, EPOCHS), reduction_factor=3, maximize=True),
        SearchSampler(two),
        prune=Shelf().prune,
    ).start()
    simulate(search, curve)
    assert search.space_is_exhausted
    assert search.exhausted
    assert sorted(trial.params["learning_rate"] for trial in of.trials) == [0.2, 0.4]
    assert all(trial.state.is_finished() for trial in of.trials)


@pytest.mark.parametrize(
    ("node_is_gone", "times", "what"), [(True, 20, "node"), (False, 3, "worker process")]
)
def test_a_lost_node_is_forgiven_more_often_than_a_dead_worker(
    node_is_gone: bool, times: int, what: str
) -> None:
    of = study()
    search = coordinator(of, total=1)
    number = first(search)
    for _ in range(times):
        search.worker_failed(number, node_is_gone=node_is_gone)
        assert first(search) == number
    search.worker_failed(number, node_is_gone=node_is_gone)
    assert of.trials[number].user_attrs["state"] == "failed"
    error = of.trials[number].user_attrs["error"]
    assert what in error
    assert f"{times} times" in error


def test_a_worker_that_left_in_order_is_followed_by_another_however_often() -> None:
    search = coordinator(study(), total=1)
    number = first(search)
    for _ in range(30):
        search.worker_preempted(number)
        assert first(search) == number
    search.close(number, TrialState.FAILED, error="died")
    search.worker_preempted(number)
    assert search.next_trial() is None, "it has ended"


@pytest.mark.parametrize(
    ("value", "decision", "state"),
    [(0.5, Decision.FINISH, "finished"), (math.nan, Decision.DIVERGED, "diverged")],
)
def test_a_trial_whose_last_epoch_comes_after_an_interrupt_has_ended(
    value: float, decision: Decision, state: str
) -> None:
    of, diary = study(), Diary()
    search = coordinator(of, total=1, callbacks=(diary,))
    number = first(search)
    for epoch in range(1, EPOCHS):
        search.epoch_done(number, epoch, metrics(0.5), None)
    search.interrupt()
    assert search.epoch_done(number, EPOCHS, metrics(value), None) is decision
    assert diary.lines[-1] == f"0 {state}"
    assert record(of).trial(number).state.value == state


@pytest.mark.parametrize(
    ("late", "interrupted", "state"),
    [
        (False, False, TrialState.PAUSED),
        (True, False, TrialState.STOPPED),
        (True, True, TrialState.PAUSED),
        (False, True, TrialState.PAUSED),
    ],
)
def test_what_pauses_when_the_trials_end_is_stopped_only_if_the_time_is_up(
    late: bool, interrupted: bool, state: TrialState
) -> None:
    now = [0.0]
    of, shelf = study(), Shelf()
    search = coordinator(of, pauses=True, deadline=10.0, clock=lambda: now[0], shelf=shelf)
    paused, running = first(search), first(search)
    assert search.epoch_done(paused, 1, metrics(0.5), "best.ckpt") is Decision.PAUSE
    now[0] = 10.0 if late else 9.0
    if interrupted:
        search.interrupt()
    search.interrupt_remaining()
    assert record(of).trial(paused).state is state
    assert record(of).trial(paused).checkpoint == f"checkpoints/trial_{paused:04d}/best.ckpt"
    assert record(of).trial(running).state is TrialState.INTERRUPTED


def test_a_trial_that_reaches_a_rung_after_the_deadline_ends_once() -> None:
    """The rule pauses it, and the deadline stops it: it must not wait any more."""
    now = [0.0]
    of, diary = study(), Diary()
    search = coordinator(of, pauses=True, deadline=10.0, clock=lambda: now[0], callbacks=(diary,))
    number = first(search)
    now[0] = 11.0
    assert search.epoch_done(number, 1, metrics(0.5), None) is Decision.STOP
    search.interrupt_remaining()
    assert record(of).trial(number).state is TrialState.STOPPED
    assert diary.lines.count(f"{number} stopped") == 1


def test_paused_trials_of_an_exhausted_search_end_once_though_the_deadline_follows() -> None:
    now = [0.0]
    of, diary = study(), Diary()
    search = coordinator(of, total=3, pauses=True, deadline=10.0, clock=lambda: now[0], callbacks=(diary,))
    while (trial := search.next_trial()) is not None:
        epoch, decision = trial.epochs, Decision.CONTINUE
        while decision is Decision.CONTINUE:
            epoch += 1
            decision = search.epoch_done(trial.number, epoch, metrics(trial.number / 10), None)
    assert search.exhausted
    now[0] = 11.0
    search.interrupt_remaining()
    ended = [line for line in diary.lines if line.endswith((" stopped", " finished"))]
    assert sorted(line.split()[0] for line in ended) == ["0", "1", "2"]


def test_trials_that_were_cut_short_are_set_aside_by_number() -> None:
    diary = Diary()
    search = coordinator(study(), callbacks=(diary,))
    for _ in range(12):
        search.next_trial()
    search.interrupt_remaining()
    assert diary.lines[-12:] == [f"{number} interrupted" for number in range(12)]


class Pupil(SearchSampler):
    """A sampler that remembers what it was taught."""

    def __init__(self) -> None:
        super().__init__(SPACE)
        self.learnt: list[tuple[int, int, str]] = []

    @override
    def on_epoch(self, trial: TrialRecord) -> None:
        self.learnt.append((trial.number, trial.epochs, trial.state.value))
        super().on_epoch(trial)


def test_the_sampler_learns_from_each_epoch_and_from_each_end() -> None:
    pupil = Pupil()
    rule = SuccessiveHalving(levels=(1, 3), reduction_factor=3, maximize=True, pauses=True)
    search = Coordinator(SearchPlan(total=2), record(study()), rule, pupil, prune=Shelf().prune).start()
    number = first(search)
    search.epoch_done(number, 1, metrics(0.5), None)
    assert pupil.learnt == [(0, 1, "running"), (0, 1, "paused")]
    second = first(search)
    search.close(second, TrialState.FAILED, error="died")
    assert pupil.learnt[2:] == [(1, 0, "failed")]


def test_a_trial_that_still_runs_takes_no_checkpoint_from_those_that_ended() -> None:
    """A resumed search counts the best few among those that have ended, as it did before."""
    of = study()
    search = coordinator(of, keep=1, total=5)
    runs, ended = first(search), first(search)
    for epoch in range(1, 4):
        search.epoch_done(runs, epoch, metrics(0.9), f"last_{epoch}.ckpt")
    search.epoch_done(ended, 1, metrics(0.1), "a.ckpt")
    search.close(ended, TrialState.STOPPED, checkpoint="a.ckpt")
    shelf = Shelf()
    resumed = coordinator(of, keep=1, total=5, shelf=shelf)
    assert first(resumed) == runs
    better = first(resumed)
    assert resumed.epoch_done(better, 1, metrics(0.2), "b.ckpt") is Decision.STOP
    assert shelf.left == {ended: None, better: f"checkpoints/trial_{better:04d}/b.ckpt"}


def test_the_best_in_hand_keeps_its_checkpoint_when_the_deadline_stops_it() -> None:
    now = [0.0]
    of, shelf = study(), Shelf()
    search = coordinator(of, keep=1, total=4, deadline=10.0, clock=lambda: now[0], shelf=shelf)
    done, better, best, failed = (first(search) for _ in range(4))
    for epoch in range(1, EPOCHS + 1):
        search.epoch_done(done, epoch, metrics(0.4), "done.ckpt")
    now[0] = 10.0
    assert search.epoch_done(better, 1, metrics(0.45), "better.ckpt") is Decision.STOP
    assert shelf.left == {
        done: f"checkpoints/trial_{done:04d}/done.ckpt",
        better: f"checkpoints/trial_{better:04d}/better.ckpt",
    }
    assert search.epoch_done(best, 1, metrics(0.5), "best.ckpt") is Decision.STOP
    search.close(failed, TrialState.FAILED, error="died")
    assert shelf.left[better] is None
    kept = {number for number, file in shelf.left.items() if file is not None}
    assert kept == {done, best}
    trials = record(of).trials()
    assert all(trials[number].checkpoint == shelf.left[number] for number in kept)
    in_hand = best_in_hand(trials, best_trial(trials))
    assert (in_hand and in_hand.number) == best


def test_a_failed_trial_does_not_take_the_checkpoint_of_the_best_in_hand() -> None:
    of, shelf = study(), Shelf()
    search = coordinator(of, keep=1, total=3, shelf=shelf)
    done, stopped, failed = (first(search) for _ in range(3))
    for epoch in range(1, EPOCHS + 1):
        search.epoch_done(done, epoch, metrics(0.4), "done.ckpt")
    search.epoch_done(stopped, 1, metrics(0.5), "stopped.ckpt")
    search.close(stopped, TrialState.STOPPED, checkpoint="stopped.ckpt")
    search.epoch_done(failed, 1, metrics(0.9), "failed.ckpt")
    search.close(failed, TrialState.FAILED, error="died")
    assert {number for number, file in shelf.left.items() if file is not None} == {done, stopped}


@pytest.mark.parametrize("pauses", [False, True])
def test_whenever_the_time_is_up_the_winner_and_the_best_in_hand_have_their_checkpoints(pauses: bool) -> None:
    found = set()
    for hours in range(2, 60, 3):
        of, shelf = study(), Shelf()
        # Later trials are better, so that the deadline finds them underway.
        simulation = Simulation(lambda trial: SyntheticCurve(limit=0.1 + trial.number / 50), workers=4)
        search = coordinator(
            of,
            keep=1,
            total=40,
            pauses=pauses,
            deadline=float(hours),
            clock=simulation.clock,
            shelf=shelf,
        )
        simulation.drive(search)
        search.interrupt_remaining()
        trials = record(of).trials()
        winner = best_trial(trials)
        in_hand = best_in_hand(trials, winner)
        assert winner is not None
        needed = {one.number for one in (winner, in_hand) if one is not None}
        assert needed <= {number for number, file in shelf.left.items() if file is not None}
        assert needed <= {trial.number for trial in trials if trial.checkpoint}
        found.add(in_hand is not None)
    assert found == {True, False}


def test_a_resumed_search_knows_what_ran_out_of_memory_and_what_did_not() -> None:
    of = study()
    search = coordinator(of, total=4, same_memory=same_third)
    kinds = set()
    for _ in range(4):
        trial = search.next_trial()
        if trial is None:
            break
        kind = same_third(trial.parameters)
        kinds.add(kind)
        if kind:
            search.close(trial.number, TrialState.OUT_OF_MEMORY, error="out of memory")
        else:
            search.epoch_done(trial.number, 1, metrics(math.nan), None)
    assert kinds == {0, 1}, "one ran out of memory, others diverged"
    resumed = coordinator(of, total=12, same_memory=same_third)
    later = []
    while (trial := resumed.next_trial()) is not None:
        later.append(same_third(trial.parameters))
        resumed.close(trial.number, TrialState.DIVERGED)
    assert later
    assert set(later) == {0}


def test_where_nothing_is_known_of_memory_one_that_ran_out_of_it_rules_out_no_other() -> None:
    of = study()
    search = coordinator(of, total=3)
    search.close(first(search), TrialState.OUT_OF_MEMORY, error="out of memory")
    assert [first(search), first(search)] == [1, 2]


@pytest.mark.parametrize(
    ("value", "decision", "state"),
    [(0.5, Decision.FINISH, TrialState.FINISHED), (math.nan, Decision.DIVERGED, TrialState.DIVERGED)],
)
def test_after_the_deadline_a_last_epoch_is_judged_as_before_it(
    value: float, decision: Decision, state: TrialState
) -> None:
    now = [0.0]
    of = study()
    search = coordinator(of, total=1, deadline=10.0, clock=lambda: now[0])
    number = first(search)
    for epoch in range(1, EPOCHS):
        search.epoch_done(number, epoch, metrics(0.5), None)
    now[0] = 10.0
    assert search.epoch_done(number, EPOCHS, metrics(value), None) is decision
    assert record(of).trial(number).state is state


@pytest.mark.parametrize("resumed", [False, True])
def test_a_trial_is_judged_at_a_rung_by_its_value_there(resumed: bool) -> None:
    of = study()
    search = coordinator(of, total=3)
    curves = {first(search): values for values in ((0.5, 0.0, 0.5, 0.0), (0.5, 0.0, 0.5, 0.0), (0.9, 0.1))}
    for number, values in curves.items():
        for epoch, value in enumerate(values, 1):
            assert search.epoch_done(number, epoch, metrics(value), None) is Decision.CONTINUE
    if resumed:
        search = coordinator(of, total=3)
        assert {first(search) for _ in curves} == set(curves)
    # Better than the others were after the second epoch and are after the fourth, but not at the rung.
    assert search.epoch_done(2, 3, metrics(0.2), None) is Decision.STOP


def test_listeners_hear_of_a_pause() -> None:
    diary = Diary()
    search = coordinator(study(), pauses=True, callbacks=(diary,))
    search.epoch_done(first(search), 1, metrics(0.5), None)
    assert diary.lines[-2:] == ["0 epoch 1 pause", "0 paused"]


def test_a_trial_that_ends_well_does_not_call_off_the_failure_of_the_search() -> None:
    search = coordinator(study())
    running = first(search)
    for _ in range(5):
        search.close(first(search), TrialState.FAILED, error="died")
    said = search.failure
    search.close(running, TrialState.STOPPED)
    assert said is not None
    assert search.failure == said


def test_what_a_trial_reports_after_it_was_set_aside_is_left_to_the_resume() -> None:
    of = study()
    search = coordinator(of, total=1)
    number = first(search)
    search.interrupt()
    for epoch in (1, 2):
        assert search.epoch_done(number, epoch, metrics(0.5), None) is Decision.STOP
    assert list(of.trials[number].intermediate_values) == [1]


def test_one_of_the_best_that_failed_keeps_no_checkpoint() -> None:
    of, shelf = study(), Shelf()
    search = coordinator(of, shelf=shelf)
    number = first(search)
    search.epoch_done(number, 1, metrics(0.9), "best.ckpt")
    search.close(number, TrialState.FAILED, error="died")
    assert shelf.left == {number: None}
    assert record(of).trial(number).checkpoint is None


def test_the_record_forgets_a_checkpoint_that_a_better_trial_has_taken_the_place_of() -> None:
    kept = record(study())
    rule = SuccessiveHalving(levels=(1,), reduction_factor=3, maximize=True)
    plan = SearchPlan(total=3, keep=1)
    search = Coordinator(plan, kept, rule, SearchSampler(SPACE), prune=Shelf().prune).start()
    for value in (0.5, 0.9, 0.7):
        search.epoch_done(first(search), 1, metrics(value), "best.ckpt")
    assert [trial.checkpoint for trial in kept.trials()] == [None, "checkpoints/trial_0001/best.ckpt", None]


def test_a_users_callback_that_raises_is_not_called_again_and_the_others_are(progress: list[str]) -> None:
    class Faulty(SearchCallback):
        calls = 0

        @override
        def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
            self.calls += 1
            raise ValueError("no connection")

    faulty, diary = Faulty(), Diary()
    search = coordinator(study(), total=2, callbacks=(CallbackList([faulty, diary], safe=True),))
    simulate(search, curve)
    assert faulty.calls == 1
    assert [line for line in progress if "Faulty" in line] == [
        "The callback Faulty raised ValueError: no connection. It is not called again; the search continues."
    ]
    assert sum(" epoch " in line for line in diary.lines) > 2


def test_a_callback_of_the_search_itself_may_not_fail_in_silence() -> None:
    class Faulty(SearchCallback):
        @override
        def on_trial_start(self, trial: TrialRecord) -> None:
            raise ValueError("no connection")

    search = coordinator(study(), total=2, callbacks=(Faulty(),))
    with pytest.raises(ValueError, match="no connection"):
        search.next_trial()


def test_the_progress_of_an_epoch_is_passed_on_while_its_trial_runs() -> None:
    diary = Diary()
    search = coordinator(study(), total=1, callbacks=(diary,))
    number = first(search)
    search.progress(number, 0.25)
    search.close(number, TrialState.FAILED, error="gone")
    search.progress(number, 0.5)
    assert [line for line in diary.lines if "%" in line] == ["0 at 25% of epoch 1"]
