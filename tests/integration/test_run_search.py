"""Whole searches through real Ray, with trials that learn nothing: killed, paused and kept processes."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import optuna
import pytest
import ray
from optuna.trial import TrialState as OptunaState
from ray.air.execution import PlacementGroupResourceManager

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import die_once, end_together, learn_nothing
from tune_rescon.tuning import RunOptions, StudyResult, run_search

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]


def study(result: StudyResult) -> optuna.Study:
    return optuna.load_study(study_name=result.name, storage=f"sqlite:///{result.folder / 'study.db'}")


def test_a_trial_whose_process_is_killed_goes_on_in_another(small_space: Space, options: RunOptions) -> None:
    result = run_search(small_space, options, trainable=die_once)
    first = result.trials[0]
    assert first.values == tuple(sorted(first.values)), "the curve rises: no epoch is missing or there twice"
    assert first.epochs >= 3
    assert all(trial.state in (TrialState.FINISHED, TrialState.STOPPED) for trial in result.trials)


def test_paused_trials_are_promoted_and_continue(options: RunOptions) -> None:
    space = load_space(
        "digits", ["budget.trials=9", "sampler.n_startup_trials=3", "scheduler.variant=promote"]
    )
    result = run_search(space, options, trainable=learn_nothing)
    assert [trial.number for trial in result.trials] == list(range(9))
    assert {trial.state for trial in result.trials} == {TrialState.FINISHED, TrialState.STOPPED}
    for trial in result.trials:
        assert trial.epochs in (1, 3, 9)
        rises = "the curve rises: no epoch is missing or there twice"
        assert list(trial.values) == sorted(trial.values), rises
    assert sum(trial.epochs >= 3 for trial in result.trials) <= 4
    assert {trial.state for trial in study(result).trials} == {OptunaState.COMPLETE, OptunaState.PRUNED}


SHORT = ("budget.trials=12", "fidelity.max=1", "fixed.warmup_epochs=0", "scheduler={type: none}")


def test_each_slot_keeps_its_process_also_where_trials_end_together(options: RunOptions) -> None:
    result = run_search(load_space("digits", SHORT), options, trainable=end_together)
    processes = {note for trial in result.trials for note in trial.notes}
    assert len(result.trials) == 12
    assert len(processes) == 2, processes


def test_no_process_is_asked_for_and_then_not_used(options: RunOptions) -> None:
    places, ask = PlacementGroupResourceManager, PlacementGroupResourceManager.request_resources
    with mock.patch.object(places, "request_resources", autospec=True, side_effect=ask) as asked:
        # Some end while the second slot's process starts.
        result = run_search(load_space("digits", SHORT), options, trainable=learn_nothing)
    assert len(result.trials) == 12
    assert asked.call_count == 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what a process was started with")
def test_a_trial_process_has_one_heap_from_its_first_moment_on() -> None:
    (began_with,) = ray.get([ray.remote(_first_environment).remote()])
    assert b"MALLOC_ARENA_MAX=1" in began_with, "glibc reads it once, before anything else"


def _first_environment() -> list[bytes]:
    return Path("/proc/self/environ").read_bytes().split(b"\0")
