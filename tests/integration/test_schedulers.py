"""Schedulers, samplers and what a search begins with, through real Ray, with trials that learn nothing."""

from __future__ import annotations

import dataclasses

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import learn_nothing
from tune_rescon.tuning import RunOptions, StudyResult, run_search

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]

SMALL = ["budget.trials=9", "sampler.n_startup_trials=3"]


def search(options: RunOptions, *overrides: str) -> StudyResult:
    return run_search(load_space("digits", [*SMALL, *overrides]), options, trainable=learn_nothing)


def study(result: StudyResult) -> optuna.Study:
    return optuna.load_study(study_name=result.name, storage=f"sqlite:///{result.folder / 'study.db'}")


def test_paused_trials_are_promoted_and_go_on(options: RunOptions) -> None:
    result = search(options, "scheduler.variant=promote")
    assert [trial.number for trial in result.trials] == list(range(9))
    assert {trial.state for trial in result.trials} == {TrialState.FINISHED, TrialState.STOPPED}
    for trial in result.trials:
        assert trial.epochs in (1, 3, 9)
        assert list(trial.values) == sorted(trial.values), (
            "the curve rises: no epoch is missing or there twice"
        )
    at_3 = [trial for trial in result.trials if trial.epochs >= 3]
    assert len(at_3) <= 4
    assert {trial.state for trial in study(result).trials} == {OptunaState.COMPLETE, OptunaState.PRUNED}


def test_the_median_rule_stops_what_lags_behind(options: RunOptions) -> None:
    result = search(options, "scheduler={type: median}")
    stopped = [trial for trial in result.trials if trial.state is TrialState.STOPPED]
    finished = [trial for trial in result.trials if trial.state is TrialState.FINISHED]
    assert len(stopped) + len(finished) == 9
    assert stopped
    assert max(t.value for t in result.trials) == max(t.value for t in finished)


@pytest.mark.parametrize("against", ["gmacs", "compute_hours"])
def test_two_objectives_have_a_front(against: str, options: RunOptions) -> None:
    result = search(options, "sampler.type=nsga2", f"metric.against={against}")
    of = study(result)
    assert [d.name for d in of.directions] == ["MAXIMIZE", "MINIMIZE"]
    finished = [trial for trial in of.trials if trial.state is OptunaState.COMPLETE]
    assert finished
    for trial in finished:
        assert trial.values == [result.trials[trial.number].value, result.trials[trial.number].cost]
    assert {trial.number for trial in of.best_trials} >= {trial.number for trial in result.front}


def test_a_finished_search_that_is_extended_is_the_search_in_one(options: RunOptions) -> None:
    """So the same seed, one at a time, searches the same."""
    one_at_a_time = "budget.concurrent=1"
    whole = search(options, one_at_a_time)
    half = dataclasses.replace(options, name="half")
    before = search(half, one_at_a_time, "budget.trials=4")
    resumed = search(dataclasses.replace(half, resume=True), one_at_a_time)
    # All but the checkpoints: more trials were better since than five.
    first, then = (
        [dataclasses.replace(t, checkpoint=None) for t in trials[:4]]
        for trials in (before.trials, resumed.trials)
    )
    assert then == first
    assert len(resumed.trials) == 9
    assert [t.parameters for t in resumed.trials] == [t.parameters for t in whole.trials]
    assert [t.values for t in resumed.trials] == [t.values for t in whole.trials]


def test_a_warm_search_learns_from_an_earlier_one_also_after_a_resume(options: RunOptions) -> None:
    search(options, "budget.trials=6")
    heard: list[str] = []
    warm = dataclasses.replace(options, name="warm", warm_start="s")
    space = load_space("digits", [*SMALL, "budget.concurrent=1", "parameters.learning_rate.high=0.2"])
    whole = run_search(space, warm, trainable=learn_nothing, say=heard.append)
    assert any(text.startswith("used ") and " of 6 trials of s" in text for text in heard)

    again = dataclasses.replace(warm, name="again")
    few = load_space("digits", [*SMALL, *("budget.concurrent=1", "parameters.learning_rate.high=0.2")])
    few = few.model_copy(update={"budget": few.budget.model_copy(update={"trials": 4})})
    run_search(few, again, trainable=learn_nothing)
    resumed = run_search(
        space, dataclasses.replace(again, warm_start=None, resume=True), trainable=learn_nothing
    )
    assert [t.parameters for t in resumed.trials] == [t.parameters for t in whole.trials]
    cold = search(dataclasses.replace(options, name="cold"), "budget.concurrent=1")
    assert cold.trials[-1].parameters != whole.trials[-1].parameters
