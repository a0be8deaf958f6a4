"""The checkpoints that the coordinator keeps and deletes."""

from __future__ import annotations

import pytest

from tests.tuning.coordinating import (
    EPOCHS,
    SPACE,
    FakeCheckpoints,
    Study,
    coordinator,
    curve,
    metrics,
    next_number,
)
from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import Simulation, SyntheticCurve, simulate
from tune_rescon.tuning import (
    Coordinator,
    Decision,
    SearchPlan,
    SearchSampler,
    SuccessiveHalving,
    TrialRecord,
    best_trial,
)
from tune_rescon.tuning.result import best_in_hand


def test_the_five_best_trials_keep_one_checkpoint_each() -> None:
    study, checkpoints = Study(), FakeCheckpoints()
    simulate(coordinator(study, checkpoints=checkpoints), curve)
    kept = {number for number, file in checkpoints.kept.items() if file is not None}
    best = sorted(study.record().trials(), key=TrialRecord.rank_key)[:5]
    assert kept == {trial.number for trial in best}
    expected_files = {f"checkpoints/trial_{t.number:04d}/best_{t.number}.ckpt" for t in best}
    assert {trial.checkpoint for trial in best} == expected_files
    assert set(checkpoints.kept) == {trial.number for trial in study.trials}


def test_a_winner_that_reports_no_checkpoint_keeps_its_files() -> None:
    """Its best network could not be written or sent, so that the last checkpoint may be the only one."""
    study, checkpoints = Study(), FakeCheckpoints()
    search = coordinator(study, total=7, checkpoints=checkpoints)
    for value in (0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.01):
        number = next_number(search)
        for epoch in range(1, EPOCHS + 1):
            named = None if number in (1, 6) else f"best_{number}.ckpt"
            if search.epoch_done(number, epoch, metrics(value), named) is not Decision.CONTINUE:
                break
    assert study.record().trial(1).state is TrialState.FINISHED
    assert 1 not in checkpoints.kept, "the best trial"
    assert checkpoints.kept[6] is None, "a trial that is not among the best"


def test_of_equal_trials_the_cheaper_one_keeps_its_checkpoint() -> None:
    """It is the winner of a search with a second objective."""
    study, checkpoints = Study("maximize", "minimize"), FakeCheckpoints()
    costs = {0: 2.0, 1: 3.0, 2: 1.0}
    search = coordinator(
        study,
        keep=1,
        total=3,
        checkpoints=checkpoints,
        space=load_space("digits", ["initial=[]", "sampler.type=random", "metric.against=gmacs"]),
        cost=lambda trial, _: costs[trial.number],
    )
    for number in costs:
        assert next_number(search) == number
        for epoch in range(1, EPOCHS + 1):
            search.epoch_done(number, epoch, metrics(0.5), "best.ckpt")
    trials = study.record().trials()
    winner = best_trial(trials)
    assert winner == trials[2]
    assert {number for number, file in checkpoints.kept.items() if file is not None} == {2}


def test_a_running_trial_does_not_count_among_the_best() -> None:
    """A resumed search ranks ended trials only, like the search before."""
    study = Study()
    search = coordinator(study, keep=1, total=5)
    runs, ended = next_number(search), next_number(search)
    for epoch in range(1, 4):
        search.epoch_done(runs, epoch, metrics(0.9), f"last_{epoch}.ckpt")
    search.epoch_done(ended, 1, metrics(0.1), "a.ckpt")
    search.close(ended, TrialState.STOPPED)
    checkpoints = FakeCheckpoints()
    resumed = coordinator(study, keep=1, total=5, checkpoints=checkpoints)
    assert next_number(resumed) == runs
    better = next_number(resumed)
    assert resumed.epoch_done(better, 1, metrics(0.2), "b.ckpt") is Decision.STOP
    assert checkpoints.kept == {ended: None, better: f"checkpoints/trial_{better:04d}/b.ckpt"}


def test_the_best_in_hand_keeps_its_checkpoint_after_the_deadline() -> None:
    now = [0.0]
    study, checkpoints = Study(), FakeCheckpoints()
    search = coordinator(study, keep=1, total=4, deadline=10.0, clock=lambda: now[0], checkpoints=checkpoints)
    complete, better, best, failed = (next_number(search) for _ in range(4))
    for epoch in range(1, EPOCHS + 1):
        search.epoch_done(complete, epoch, metrics(0.4), "done.ckpt")
    now[0] = 10.0
    assert search.epoch_done(better, 1, metrics(0.45), "better.ckpt") is Decision.STOP
    assert checkpoints.kept == {
        complete: f"checkpoints/trial_{complete:04d}/done.ckpt",
        better: f"checkpoints/trial_{better:04d}/better.ckpt",
    }
    assert search.epoch_done(best, 1, metrics(0.5), "best.ckpt") is Decision.STOP
    search.close(failed, TrialState.FAILED, error="died")
    assert checkpoints.kept[better] is None
    kept = {number for number, file in checkpoints.kept.items() if file is not None}
    assert kept == {complete, best}
    trials = study.record().trials()
    assert all(trials[number].checkpoint == checkpoints.kept[number] for number in kept)
    in_hand = best_in_hand(trials, best_trial(trials))
    assert (in_hand and in_hand.number) == best


def test_a_failed_trial_does_not_displace_the_best_in_hand() -> None:
    study, checkpoints = Study(), FakeCheckpoints()
    search = coordinator(study, keep=1, total=3, checkpoints=checkpoints)
    complete, stopped, failed = (next_number(search) for _ in range(3))
    for epoch in range(1, EPOCHS + 1):
        search.epoch_done(complete, epoch, metrics(0.4), "done.ckpt")
    search.epoch_done(stopped, 1, metrics(0.5), "stopped.ckpt")
    search.close(stopped, TrialState.STOPPED)
    search.epoch_done(failed, 1, metrics(0.9), "failed.ckpt")
    search.close(failed, TrialState.FAILED, error="died")
    assert {number for number, file in checkpoints.kept.items() if file is not None} == {complete, stopped}


def test_a_failed_trial_does_not_displace_the_winner_if_none_finished() -> None:
    study, checkpoints = Study(), FakeCheckpoints()
    search = coordinator(study, keep=1, total=3, checkpoints=checkpoints)
    best, further, failed = (next_number(search) for _ in range(3))
    for epoch in range(1, 4):
        search.epoch_done(failed, epoch, metrics(0.9), "failed.ckpt")
    for epoch in range(1, 3):
        search.epoch_done(further, epoch, metrics(0.4), "further.ckpt")
    search.close(failed, TrialState.FAILED, error="died")
    search.close(further, TrialState.STOPPED)
    search.epoch_done(best, 1, metrics(0.5), "best.ckpt")
    search.close(best, TrialState.STOPPED)
    trials = study.record().trials()
    assert best_trial(trials) == trials[further]
    assert {number for number, file in checkpoints.kept.items() if file is not None} == {further, best}


@pytest.mark.parametrize("pauses", [False, True])
def test_the_winner_and_the_best_in_hand_have_checkpoints_at_any_deadline(pauses: bool) -> None:
    deadline_states = set()
    for hours in range(2, 60, 3):
        study, checkpoints = Study(), FakeCheckpoints()
        # Later trials are better, so that they are running at the deadline.
        simulation = Simulation(lambda trial: SyntheticCurve(limit=0.1 + trial.number / 50), workers=4)
        search = coordinator(
            study,
            keep=1,
            total=40,
            pauses=pauses,
            deadline=float(hours),
            clock=simulation.clock,
            checkpoints=checkpoints,
        )
        simulation.drive(search)
        search.interrupt_remaining()
        trials = study.record().trials()
        winner = best_trial(trials)
        in_hand = best_in_hand(trials, winner)
        assert winner is not None
        kept_numbers = {record.number for record in (winner, in_hand) if record is not None}
        assert kept_numbers <= {number for number, file in checkpoints.kept.items() if file is not None}
        assert kept_numbers <= {trial.number for trial in trials if trial.checkpoint}
        deadline_states.add(in_hand is not None)
    assert deadline_states == {True, False}


def test_a_failed_trial_keeps_no_checkpoint() -> None:
    study, checkpoints = Study(), FakeCheckpoints()
    search = coordinator(study, checkpoints=checkpoints)
    number = next_number(search)
    search.epoch_done(number, 1, metrics(0.9), "best.ckpt")
    search.close(number, TrialState.FAILED, error="died")
    assert checkpoints.kept == {number: None}
    assert study.record().trial(number).checkpoint is None


def test_the_study_forgets_a_deleted_checkpoint() -> None:
    record = Study().record()
    rule = SuccessiveHalving(rungs=(1,), reduction_factor=3, maximize=True)
    plan = SearchPlan(total=3, keep=1)
    search = Coordinator(plan, record, rule, SearchSampler(SPACE), prune=FakeCheckpoints().prune).start()
    for value in (0.5, 0.9, 0.7):
        search.epoch_done(next_number(search), 1, metrics(value), "best.ckpt")
    assert [trial.checkpoint for trial in record.trials()] == [None, "checkpoints/trial_0001/best.ckpt", None]
