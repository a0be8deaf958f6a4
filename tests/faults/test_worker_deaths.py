"""Trial processes that end before their time: killed, or by an exit, early and late."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import die_variously
from tune_rescon.tuning import RunOptions, StudyResult, run_search

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def result(ray_here: None, fault_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    del ray_here
    space = load_space("digits", ["budget.trials=6", "scheduler.type=none", "sampler.type=random"])
    options = RunOptions(name="s", storage=tmp_path_factory.mktemp("runs"), cache_root=fault_cache)
    return run_search(space, options, trainable=die_variously)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
def test_a_trial_whose_process_ended_once_goes_on_from_its_checkpoint(
    number: int, result: StudyResult
) -> None:
    trial = result.trials[number]
    assert trial.state is TrialState.FINISHED, trial.error
    assert trial.epochs == 9
    assert sorted(set(trial.values)) == list(trial.values), "the curve rises: no epoch twice, none missing"


def test_a_trial_whose_process_ends_each_time_fails_and_keeps_what_it_reported(result: StudyResult) -> None:
    trial = result.trials[4]
    assert trial.state is TrialState.FAILED
    assert trial.error is not None
    assert "process" in trial.error
    assert trial.epochs == 1
