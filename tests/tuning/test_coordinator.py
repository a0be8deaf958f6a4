"""The life of trials, simulated: no Ray, no training, an in-memory study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import METRICS, TrialState
from tune_rescon.testing import Assignment, SyntheticCurve, simulate
from tune_rescon.tuning.coordinator import Coordinator, SearchPlan
from tune_rescon.tuning.record import StudyRecord, TrialSummary
from tune_rescon.tuning.rungs import Decision, RungLadder, Verdict

EPOCHS = 9


def study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))


def suggest(trial: optuna.trial.Trial) -> Mapping[str, float]:
    return {"limit": trial.suggest_float("limit", 0.1, 0.99)}


def curve(trial: Assignment) -> SyntheticCurve:
    return SyntheticCurve(limit=trial.parameters["limit"])


class Diary:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def search_started(self, trials: Sequence[TrialSummary]) -> None:
        self.lines.append(f"{len(trials)} recorded")

    def trial_started(self, trial: TrialSummary) -> None:
        self.lines.append(f"{trial.number} starts at {trial.epochs}")

    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        assert metrics["val_accuracy"] == trial.value or math.isnan(trial.value)
        self.lines.append(f"{trial.number} epoch {trial.epochs} {verdict.decision.value}")

    def trial_ended(self, trial: TrialSummary) -> None:
        self.lines.append(f"{trial.number} {trial.state.value}")


class Shelf:
    """Where checkpoints would be: what each ``prune`` call left."""

    def __init__(self) -> None:
        self.left: dict[int, str | None] = {}

    def prune(self, number: int, keep: str | None) -> None:
        self.left[number] = keep


def coordinator(
    of: optuna.Study,
    *,
    total: int = 30,
    listeners: tuple[Diary, ...] = (),
    shelf: Shelf | None = None,
    deadline: float | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Coordinator:
    return Coordinator(
        SearchPlan(suggest=suggest, total=total, deadline=deadline),
        StudyRecord(of, metric="val_accuracy"),
        RungLadder(levels=(1, 3, EPOCHS), reduction_factor=3, maximize=True),
        listeners=listeners,
        prune=(shelf or Shelf()).prune,
        clock=clock,
    )


def first(search: Coordinator) -> int:
    trial = search.next_trial()
    assert trial is not None
    return trial.number


def metrics(value: float) -> dict[str, float]:
    return {**dict.fromkeys(METRICS, 0.0), "val_accuracy": value}


def test_a_search_saves_epochs_and_keeps_the_best() -> None:
    of = study()
    spent = simulate(coordinator(of), curve).epochs_spent
    best_of_all = max(trial.params["limit"] for trial in of.trials)
    assert spent < 0.6 * 30 * EPOCHS
    assert of.best_trial.params["limit"] == best_of_all


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
    simulate(coordinator(study(), total=1, listeners=(diary,)), curve)
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
    record = StudyRecord(of, metric="val_accuracy")
    best = sorted(record.trials(), key=TrialSummary.rank_key)[:5]
    assert kept == {trial.number for trial in best}
    assert {trial.checkpoint for trial in best} == {f"best_{trial.number}.ckpt" for trial in best}
    assert set(shelf.left) == {trial.number for trial in of.trials}


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


@pytest.mark.parametrize("reports", [1, 7, 20, 45])
def test_a_killed_search_goes_on_from_its_record(reports: int) -> None:
    of, diary = study(), Diary()
    simulate(coordinator(of, total=12), curve, reports=reports)
    before = {t.number: dict(t.intermediate_values) for t in of.trials}
    unfinished = [t.number for t in of.trials if t.state is OptunaState.RUNNING]

    simulate(coordinator(of, total=12, listeners=(diary,)), curve)

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
