"""Trials of two processes on one machine. On two machines, and with one killed: test_four_nodes.py."""

from __future__ import annotations

import dataclasses

import mlflow
import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, StudyResult, run_search

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]

#: A real search, small: the paper's CIFAR-56 at a quarter of its width on half of digits.
SMALL = [
    *("fixed.width=0.25", "scheduler.reduction_factor=2", "sampler.type=random"),
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    *("initial=[{learning_rate: 0.1}]", "budget.concurrent=1", "dataset.limit=1000"),
]


def search(options: RunOptions, *, workers: int, trials: int, epochs: int) -> StudyResult:
    more = [f"resources_per_trial.workers={workers}", f"budget.trials={trials}", f"fidelity.max={epochs}"]
    named = dataclasses.replace(options, name=f"of_{workers}")
    return run_search(load_space("digits", [*SMALL, *more]), named)


def test_trials_of_two_are_trials_like_others(options: RunOptions) -> None:
    result = search(options, workers=2, trials=2, epochs=2)
    assert result.state.value == "finished"
    assert all(trial.state in (TrialState.FINISHED, TrialState.STOPPED) for trial in result.trials)
    assert result.trials[0].epochs == 2
    assert result.devices_per_trial == 2
    runs = mlflow.MlflowClient(result.tracking_uri).search_runs(["1"])
    assert sum(run.info.run_name.startswith("trial_") for run in runs) == 2


@pytest.mark.nightly
def test_two_learn_what_one_learns(options: RunOptions) -> None:
    one, two = (search(options, workers=count, trials=1, epochs=4).trials[0] for count in (1, 2))
    assert one.parameters == two.parameters
    assert max(two.values) == pytest.approx(max(one.values), abs=0.15)
    assert max(two.values) > 0.5
