"""Searches on Ray: killed processes, paused trials, process reuse, multi-process trials and resources.

All tests share one Ray, because it takes long to start. Only multi-process trials train a network.
Tests that need no Ray are in test_run_search_in_process.py.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import mlflow
import optuna
import pytest
import ray
from optuna.trial import TrialState as OptunaState
from ray.air.execution import PlacementGroupResourceManager

from tests.mlflow_in_process import mlflow_in_process, no_network_exported
from tune_rescon.config import TrialState
from tune_rescon.search import main
from tune_rescon.spaces import load_space
from tune_rescon.testing import die_variously, end_together, learn_nothing
from tune_rescon.tuning import RunOptions, StudyResult, run_search
from tune_rescon.tuning.ray.session import ray_session

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _one_ray(short_tmp: Path, empty_store: Path) -> Iterator[None]:
    """Ray for all tests. MLflow is in this process, because its own would compete with Ray's processes."""
    with pytest.MonkeyPatch.context() as patch, mlflow_in_process(empty_store), no_network_exported():
        patch.setenv("RAY_TMPDIR", str(short_tmp))
        with ray_session(None):
            yield


def study(result: StudyResult) -> optuna.Study:
    return optuna.load_study(study_name=result.name, storage=f"sqlite:///{result.folder / 'study.db'}")


@pytest.fixture
def resource_requests() -> Iterator[mock.Mock]:
    """Counts the processes that Tune requests from Ray."""
    manager, request = PlacementGroupResourceManager, PlacementGroupResourceManager.request_resources
    with mock.patch.object(manager, "request_resources", autospec=True, side_effect=request) as requests:
        yield requests


def test_paused_trials_are_promoted_without_requesting_extra_processes(
    options: RunOptions, resource_requests: mock.Mock
) -> None:
    space = load_space(
        "digits", ["budget.trials=9", "sampler.n_startup_trials=3", "scheduler.variant=promote"]
    )
    # Some trials end while the process of the second slot starts.
    result = run_search(space, options, trainable=learn_nothing)
    assert resource_requests.call_count == 2
    assert [trial.number for trial in result.trials] == list(range(9))
    assert {trial.state for trial in result.trials} == {TrialState.FINISHED, TrialState.STOPPED}
    for trial in result.trials:
        assert trial.epochs in (1, 3, 9)
        message = "the curve rises: no epoch is missing or there twice"
        assert list(trial.values) == sorted(trial.values), message
    assert {trial.state for trial in study(result).trials} == {OptunaState.COMPLETE, OptunaState.PRUNED}


SHORT_TRIALS = ("budget.trials=12", "fidelity.max=1", "fixed.warmup_epochs=0", "scheduler={type: none}")


def test_each_slot_reuses_its_process_when_trials_end_together(
    options: RunOptions, resource_requests: mock.Mock
) -> None:
    result = run_search(load_space("digits", SHORT_TRIALS), options, trainable=end_together)
    processes = {note for trial in result.trials for note in trial.notes}
    assert len(result.trials) == 12
    assert len(processes) == 2, processes
    assert resource_requests.call_count == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the initial environment of a process")
def test_a_trial_process_starts_with_a_single_malloc_arena() -> None:
    # Ray pickles a lambda by value. For a function of this file, the process would import this file.
    read_environment = ray.remote(lambda: Path("/proc/self/environ").read_bytes().split(b"\0"))
    (environment,) = ray.get([read_environment.remote()])
    assert b"MALLOC_ARENA_MAX=1" in environment, "glibc reads the variable only at startup"


@pytest.fixture(scope="module")
def crashing_search(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A search of six trials whose processes die in different ways."""
    space = load_space("digits", ["budget.trials=6", "scheduler.type=none", "sampler.type=random"])
    options = RunOptions(name="s", storage=tmp_path_factory.mktemp("runs"), cache_root=cache_root)
    with pytest.MonkeyPatch.context() as patch:
        # Each further retry would cost the start of a process.
        patch.setattr("tune_rescon.tuning.coordinator.WORKER_RETRIES", 1)
        return run_search(space, options, trainable=die_variously)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
def test_a_trial_whose_process_died_once_resumes_from_its_checkpoint(
    number: int, crashing_search: StudyResult
) -> None:
    trial = crashing_search.trials[number]
    assert trial.state is TrialState.FINISHED, trial.error
    assert trial.epochs == 9
    assert sorted(set(trial.values)) == list(trial.values), "the curve rises: no epoch twice, none missing"


def test_a_trial_whose_process_keeps_dying_fails_and_keeps_its_epochs(crashing_search: StudyResult) -> None:
    trial = crashing_search.trials[4]
    assert trial.state is TrialState.FAILED
    assert trial.error is not None
    assert "process" in trial.error
    assert trial.epochs == 1


#: A small search: the paper's CIFAR-56 at a quarter of its width on a part of digits.
MULTI_PROCESS = [
    *("fixed.width=0.25", "scheduler.reduction_factor=2", "sampler.type=random"),
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    *("initial=[{learning_rate: 0.1}]", "budget.concurrent=1", "dataset.limit=600"),
]


def multi_process_search(options: RunOptions, *, workers: int, trials: int, epochs: int) -> StudyResult:
    more = [f"resources_per_trial.workers={workers}", f"budget.trials={trials}", f"fidelity.max={epochs}"]
    run_options = dataclasses.replace(options, name=f"of_{workers}")
    return run_search(load_space("digits", [*MULTI_PROCESS, *more]), run_options)


@pytest.mark.nightly
def test_a_two_process_trial_is_one_trial_and_one_mlflow_run(options: RunOptions) -> None:
    result = multi_process_search(options, workers=2, trials=1, epochs=2)
    assert result.state.value == "finished"
    assert [(trial.state, trial.epochs) for trial in result.trials] == [(TrialState.FINISHED, 2)]
    assert result.devices_per_trial == 2
    runs = mlflow.MlflowClient(result.tracking_uri).search_runs(["1"])
    assert sum(run.info.run_name.startswith("trial_") for run in runs) == 1


@pytest.mark.nightly
def test_two_processes_reach_the_accuracy_of_one(options: RunOptions) -> None:
    one, two = (
        multi_process_search(options, workers=count, trials=1, epochs=4).trials[0] for count in (1, 2)
    )
    assert one.parameters == two.parameters
    assert max(two.values) == pytest.approx(max(one.values), abs=0.15)
    assert max(two.values) > 0.5


@pytest.mark.parametrize(("kind", "unit", "amount"), [("gpu", "GPU", 1), ("cpu", "CPU", 99)])
def test_resources_beyond_the_machine_are_refused(
    kind: str, unit: str, amount: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    argv = ["--space", "digits", "--set", f"resources_per_trial.{kind}={amount}", "--storage", str(storage)]
    assert main(argv) == 2
    stderr = capsys.readouterr().err
    assert f"a trial asks for {amount} {unit}" in stderr
    assert f"--set resources_per_trial.{kind}=" in stderr
    assert not storage.exists()
