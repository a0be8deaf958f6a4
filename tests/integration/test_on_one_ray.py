"""What only Ray shows of a search: processes that are killed, paused, kept, shared and too large.

One Ray for the whole file, because a Ray takes long to start. Only gangs train a real network;
the other trials learn nothing. What needs no Ray is in test_run_search_in_process.py.
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

from tune_rescon.config import TrialState
from tune_rescon.search import main
from tune_rescon.spaces import load_space
from tune_rescon.testing import die_variously, end_together, learn_nothing
from tune_rescon.tuning import RunOptions, StudyResult, run_search
from tune_rescon.tuning.ray.session import ray_session

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _one_ray(short_tmp: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_tmp))
        with ray_session(None):
            yield


def study(result: StudyResult) -> optuna.Study:
    return optuna.load_study(study_name=result.name, storage=f"sqlite:///{result.folder / 'study.db'}")


@pytest.fixture
def asked() -> Iterator[mock.Mock]:
    """Counts the processes that Tune asks Ray for."""
    places, ask = PlacementGroupResourceManager, PlacementGroupResourceManager.request_resources
    with mock.patch.object(places, "request_resources", autospec=True, side_effect=ask) as counted:
        yield counted


def test_paused_trials_are_promoted_without_requesting_extra_processes(
    options: RunOptions, asked: mock.Mock
) -> None:
    space = load_space(
        "digits", ["budget.trials=9", "sampler.n_startup_trials=3", "scheduler.variant=promote"]
    )
    # Some trials end while the second slot's process starts.
    result = run_search(space, options, trainable=learn_nothing)
    assert asked.call_count == 2
    assert [trial.number for trial in result.trials] == list(range(9))
    assert {trial.state for trial in result.trials} == {TrialState.FINISHED, TrialState.STOPPED}
    for trial in result.trials:
        assert trial.epochs in (1, 3, 9)
        rises = "the curve rises: no epoch is missing or there twice"
        assert list(trial.values) == sorted(trial.values), rises
    assert {trial.state for trial in study(result).trials} == {OptunaState.COMPLETE, OptunaState.PRUNED}


SHORT = ("budget.trials=12", "fidelity.max=1", "fixed.warmup_epochs=0", "scheduler={type: none}")


def test_each_slot_reuses_its_process_when_trials_end_together(options: RunOptions, asked: mock.Mock) -> None:
    result = run_search(load_space("digits", SHORT), options, trainable=end_together)
    processes = {note for trial in result.trials for note in trial.notes}
    assert len(result.trials) == 12
    assert len(processes) == 2, processes
    assert asked.call_count == 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what a process was started with")
def test_a_trial_process_starts_with_a_single_malloc_arena() -> None:
    # Ray sends a lambda as it is. For a function of this file, the process would import this file.
    first_environment = ray.remote(lambda: Path("/proc/self/environ").read_bytes().split(b"\0"))
    (began_with,) = ray.get([first_environment.remote()])
    assert b"MALLOC_ARENA_MAX=1" in began_with, "glibc reads it once, before anything else"


@pytest.fixture(scope="module")
def mortal(cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A search of six trials, which lose their processes in different ways."""
    space = load_space("digits", ["budget.trials=6", "scheduler.type=none", "sampler.type=random"])
    options = RunOptions(name="s", storage=tmp_path_factory.mktemp("runs"), cache_root=cache_root)
    return run_search(space, options, trainable=die_variously)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5])
def test_a_trial_whose_process_died_once_resumes_from_its_checkpoint(
    number: int, mortal: StudyResult
) -> None:
    trial = mortal.trials[number]
    assert trial.state is TrialState.FINISHED, trial.error
    assert trial.epochs == 9
    assert sorted(set(trial.values)) == list(trial.values), "the curve rises: no epoch twice, none missing"


def test_a_trial_whose_process_keeps_dying_fails_and_keeps_its_epochs(mortal: StudyResult) -> None:
    trial = mortal.trials[4]
    assert trial.state is TrialState.FAILED
    assert trial.error is not None
    assert "process" in trial.error
    assert trial.epochs == 1


#: A real search, small: the paper's CIFAR-56 at a quarter of its width on half of digits.
GANG = [
    *("fixed.width=0.25", "scheduler.reduction_factor=2", "sampler.type=random"),
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    *("initial=[{learning_rate: 0.1}]", "budget.concurrent=1", "dataset.limit=600"),
]


def gang_search(options: RunOptions, *, workers: int, trials: int, epochs: int) -> StudyResult:
    more = [f"resources_per_trial.workers={workers}", f"budget.trials={trials}", f"fidelity.max={epochs}"]
    named = dataclasses.replace(options, name=f"of_{workers}")
    return run_search(load_space("digits", [*GANG, *more]), named)


@pytest.mark.nightly
def test_a_two_process_trial_is_one_trial_and_one_mlflow_run(options: RunOptions) -> None:
    result = gang_search(options, workers=2, trials=1, epochs=2)
    assert result.state.value == "finished"
    assert [(trial.state, trial.epochs) for trial in result.trials] == [(TrialState.FINISHED, 2)]
    assert result.devices_per_trial == 2
    runs = mlflow.MlflowClient(result.tracking_uri).search_runs(["1"])
    assert sum(run.info.run_name.startswith("trial_") for run in runs) == 1


@pytest.mark.nightly
def test_two_processes_reach_the_accuracy_of_one(options: RunOptions) -> None:
    one, two = (gang_search(options, workers=count, trials=1, epochs=4).trials[0] for count in (1, 2))
    assert one.parameters == two.parameters
    assert max(two.values) == pytest.approx(max(one.values), abs=0.15)
    assert max(two.values) > 0.5


@pytest.mark.parametrize(("kind", "unit", "asked"), [("gpu", "GPU", 1), ("cpu", "CPU", 99)])
def test_resources_beyond_the_machine_are_refused(
    kind: str, unit: str, asked: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    argv = ["--space", "digits", "--set", f"resources_per_trial.{kind}={asked}", "--storage", str(storage)]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert f"a trial asks for {asked} {unit}" in said
    assert f"--set resources_per_trial.{kind}=" in said
    assert not storage.exists()
