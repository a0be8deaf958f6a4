"""Schedulers and samplers through simulated searches whose records are files, as in real searches."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, Assignment, SimulatedSearch, SyntheticCurve, simulate
from tune_rescon.tuning import SearchFolder, StudyResult

SMALL = ["budget.trials=9", "sampler.n_startup_trials=3", "fidelity.max=9"]

#: Each epoch is a commit to SQLite, which is slow on a busy disk.
pytestmark = pytest.mark.timeout(20)


def curve(trial: Assignment) -> SyntheticCurve:
    return LANDSCAPES["monotone"].curve(trial.number, trial.parameters)


def run_search(folder: Path, *overrides: str, workers: int = 2) -> StudyResult:
    """Run a search of the space ``digits`` to its end; its study is in ``folder``."""
    search_folder = SearchFolder(storage=folder, name="s")
    search = SimulatedSearch(load_space("digits", [*SMALL, *overrides]), folder=search_folder)
    simulate(search.policy(), curve, workers=workers)
    return search.result(search_folder.path)


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 's' / 'study.db'}")


def test_the_median_rule_stops_lagging_trials(tmp_path: Path) -> None:
    result = run_search(tmp_path, "scheduler={type: median}")
    stopped = [trial for trial in result.trials if trial.state is TrialState.STOPPED]
    finished = [trial for trial in result.trials if trial.state is TrialState.FINISHED]
    assert len(stopped) + len(finished) == 9
    assert stopped
    assert max(trial.value for trial in result.trials) == max(trial.value for trial in finished)


@pytest.mark.parametrize("against", ["gmacs", "compute_hours"])
def test_two_objectives_have_a_pareto_front_in_the_study(against: str, tmp_path: Path) -> None:
    result = run_search(tmp_path, "sampler.type=nsga2", f"metric.against={against}")
    optuna_study = study(tmp_path)
    assert [direction.name for direction in optuna_study.directions] == ["MAXIMIZE", "MINIMIZE"]
    finished = [trial for trial in optuna_study.trials if trial.state is OptunaState.COMPLETE]
    assert finished
    for trial in finished:
        assert trial.values == [result.trials[trial.number].value, result.trials[trial.number].cost]
    assert {trial.number for trial in optuna_study.best_trials} >= {trial.number for trial in result.front}


def test_paused_trials_that_are_not_promoted_end_stopped(tmp_path: Path) -> None:
    result = run_search(tmp_path, "scheduler.variant=promote")
    assert [trial.number for trial in result.trials] == list(range(9))
    assert {trial.state for trial in result.trials} == {TrialState.FINISHED, TrialState.STOPPED}
    assert {trial.epochs for trial in result.trials} <= {1, 3, 9}
    assert {trial.state for trial in study(tmp_path).trials} == {OptunaState.COMPLETE, OptunaState.PRUNED}


@pytest.mark.parametrize(("gpu", "runs"), [(0.5, False), (1.0, True)])
def test_trials_run_after_out_of_memory_only_with_a_larger_gpu_share(gpu: float, runs: bool) -> None:
    """All trials need the same memory. The resume changes their GPU share."""
    rate = "parameters={learning_rate: {type: float, low: 0.01, high: 0.1}}"
    overrides = [rate, "initial=[]", "budget.trials=2", "sampler.type=random"]
    search = SimulatedSearch(load_space("digits", [*overrides, "resources_per_trial={gpu: 0.5}"]))
    driver = search.policy()
    first = driver.next_trial()
    assert first is not None
    driver.close(first.number, TrialState.OUT_OF_MEMORY, error="out of memory")
    search.change(load_space("digits", [*overrides, f"resources_per_trial={{cpu: 2, gpu: {gpu}}}"]))
    second = search.policy().next_trial()
    assert (second is not None) is runs
    last = search.trials()[-1]
    assert (last.number, last.error is None) == (1, runs)
