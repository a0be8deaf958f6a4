"""Rivals with an ask-and-tell interface: the epochs that are trained and the values that are told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from contest.ask_tell import AskTellRival, Question
from contest.contestant import Contest
from contest.recorded import load_table

from tune_rescon.testing import Assignment, Simulation, SyntheticCurve
from tune_rescon.tuning import Decision

ROOT = Path(__file__).parents[2]


class ScriptedRival(AskTellRival):
    """Asks for the configurations and epochs of a list, and records the told values."""

    def __init__(self, questions: Sequence[tuple[str, float]]) -> None:
        # A table of 20 epochs.
        table = load_table(ROOT / "benchmarks" / "curves" / "cifar10_metaqnn.csv.gz")
        super().__init__(Contest(table=table, seed=0, workers=1, clock=lambda: 0.0))
        self._questions = list(questions)
        self.told: list[tuple[str, float, float | None]] = []

    def ask(self) -> Question:
        name, fidelity = self._questions.pop(0)
        return Question(configuration=name, parameters={"name": name}, fidelity=fidelity, job=name)

    def tell(self, question: Question, value: float | None) -> None:
        self.told.append((question.job, question.fidelity, value))


def report(policy: AskTellRival, trial: Assignment, epochs: Sequence[int]) -> list[Decision]:
    """Report epochs whose value is their number / 100."""
    return [policy.epoch_done(trial.number, epoch, {"val_accuracy": epoch / 100}, None) for epoch in epochs]


def test_a_trial_pauses_at_the_epochs_that_were_asked_for() -> None:
    policy = ScriptedRival([("a", 2.22), ("a", 6.67), ("a", 20.0)])
    trial = policy.next_trial()
    assert report(policy, trial, [1, 2]) == [Decision.CONTINUE, Decision.PAUSE]
    assert policy.told == [("a", 2.22, 0.02)]
    resumed = policy.next_trial()
    assert (resumed.number, resumed.epochs) == (trial.number, 2)
    # A resumed trial repeats the epoch of its checkpoint.
    assert report(policy, resumed, range(2, 8)) == [Decision.CONTINUE] * 5 + [Decision.PAUSE]
    assert report(policy, policy.next_trial(), range(7, 21))[-1] is Decision.FINISH
    assert [result[2] for result in policy.told] == [0.02, 0.07, 0.2]


def test_a_running_configuration_that_is_asked_for_again_trains_longer() -> None:
    policy = ScriptedRival([("a", 1), ("a", 3), ("b", 1)])
    first, second = policy.next_trial(), policy.next_trial()
    assert (first.parameters["name"], second.parameters["name"]) == ("a", "b")
    assert report(policy, first, [1, 2, 3]) == [Decision.CONTINUE, Decision.CONTINUE, Decision.PAUSE]
    assert policy.told == [("a", 1, 0.01), ("a", 3, 0.03)]


def test_an_already_trained_fidelity_is_told_without_training() -> None:
    policy = ScriptedRival([("a", 5), ("a", 3), ("a", 5), ("b", 1)])
    report(policy, policy.next_trial(), range(1, 6))
    assert policy.next_trial().parameters["name"] == "b"
    assert policy.told == [("a", 5, 0.05), ("a", 3, 0.03), ("a", 5, 0.05)]


def test_a_diverged_trial_is_told_as_failed_and_not_trained_again() -> None:
    policy = ScriptedRival([("a", 3), ("a", 9), ("b", 1)])
    trial = policy.next_trial()
    assert policy.epoch_done(trial.number, 1, {"val_accuracy": math.nan}, None) is Decision.DIVERGED
    assert policy.next_trial().parameters["name"] == "b"
    assert policy.told == [("a", 3, None), ("a", 9, None)]


@pytest.mark.parametrize(("fidelity", "epochs"), [(0.3, 1), (1.49, 1), (6.67, 7), (40.0, 20)])
def test_a_fidelity_is_rounded_to_an_epoch_of_the_table(fidelity: float, epochs: int) -> None:
    policy = ScriptedRival([("a", fidelity)])
    trial = policy.next_trial()
    assert all(decision is Decision.CONTINUE for decision in report(policy, trial, range(1, epochs)))
    assert report(policy, trial, [epochs])[0] is not Decision.CONTINUE


def test_the_simulator_counts_each_epoch_of_a_promoted_trial_once() -> None:
    policy = ScriptedRival([("a", 2), ("b", 2), ("a", 6), ("c", 2), ("a", 20), ("b", 6), ("d", 9)])
    simulation = Simulation(lambda _: SyntheticCurve(limit=0.5), workers=1)
    simulation.drive(policy, until=lambda _, reported: reported >= 25)
    epochs = [(run.number, run.epoch) for run in simulation.trace.runs]
    assert len(epochs) == len(set(epochs)) == 25
    assert [epoch for number, epoch in epochs if number == 0] == list(range(1, 21))
