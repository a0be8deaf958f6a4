"""A search in an S3 bucket: its machine is lost with its disk, and another machine resumes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from tests.conftest import ROOT, S3Server
from tests.waiting import wait_until
from tests.without_ray import search_without_ray
from tune_rescon.search import main
from tune_rescon.spaces import load_space
from tune_rescon.storage import RemoteFolder, StorageUrl
from tune_rescon.testing import learn_nothing
from tune_rescon.tuning import RunOptions, run_search

# Each driver is a subprocess, which imports the package and waits.
pytestmark = [pytest.mark.s3, pytest.mark.timeout(300)]

TRIALS = 7

SPACE = [f"budget.trials={TRIALS}", "scheduler.type=none", "budget.concurrent=2"]

#: A driver like the command's, with slow trials that train nothing, on Ray or in the driver's process.
DRIVER = f"""
import sys
from contextlib import nullcontext
from pathlib import Path
from tests.without_ray import search_without_ray
from tune_rescon.spaces import load_space
from tune_rescon.storage import parse_storage
from tune_rescon.testing import learn_nothing, learn_slowly
from tune_rescon.tuning import RunOptions, run_search

storage, cache, resume = parse_storage(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "resume"
learn = learn_nothing if resume else learn_slowly
trials = nullcontext() if sys.argv[4] == "ray" else search_without_ray()
space = load_space("digits", {SPACE})
options = RunOptions(name="s", storage=storage, cache_root=cache, resume=resume)
with trials:
    result = run_search(space, options, trainable=learn)
sys.exit(result.pending_uploads)
"""


class Machines:
    """Starts drivers on one URL, each with its own disk. Trials run on Ray or in the driver's process."""

    def __init__(self, storage: str, disks: Path, ray_tmp: Path, runner: str) -> None:
        self.storage = storage
        self.remote = RemoteFolder.connect(StorageUrl(url=storage)).folder("s")
        self._disks = disks
        self._env = {**os.environ, "RAY_TMPDIR": str(ray_tmp), "PYTHONPATH": str(ROOT)}
        self._runner = runner
        self.started: list[subprocess.Popen[str]] = []

    def start(self, disk: str, mode: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, self.storage, str(self._disks / disk), mode, self._runner]
        driver = subprocess.Popen(
            command, env=self._env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.started.append(driver)
        return driver

    def resume(self, disk: str) -> None:
        """Resume the search, and run it to its end; without Ray in this process, which saves the imports."""
        if self._runner == "ray":
            driver = self.start(disk, "resume")
            output, _ = driver.communicate(timeout=240)
            assert driver.returncode == 0, output
            return
        storage = StorageUrl(url=self.storage)
        options = RunOptions(name="s", storage=storage, cache_root=self._disks / disk, resume=True)
        with search_without_ray():
            result = run_search(load_space("digits", SPACE), options, trainable=learn_nothing)
        assert result.pending_uploads == 0

    def lose(self, disk: str) -> None:
        shutil.rmtree(self._disks / disk)

    def study(self) -> optuna.Study:
        """Load the study from the URL."""
        copy = self._disks / "look.db"
        assert self.remote.download("study.db", copy)
        return optuna.load_study(study_name="s", storage=f"sqlite:///{copy}")

    def wait_until_half_done(self, driver: subprocess.Popen[str]) -> None:
        def is_half_done() -> bool:
            assert driver.poll() is None, driver.communicate()[0]
            if self.remote.read("space.yaml") is None:
                return False
            # The copy is some seconds old, and trials take about three, so the driver is further.
            trials = self.study().get_trials()
            return 3 <= len(trials) < TRIALS and any(t.state is OptunaState.RUNNING for t in trials)

        wait_until(is_half_done, every=0.1)


@pytest.fixture
def storage(s3: S3Server) -> str:
    return f"{s3.bucket()}/team/runs"


@pytest.fixture(params=["this process", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.nightly])])
def machines(
    request: pytest.FixtureRequest, storage: str, tmp_path: Path, short_tmp: Path
) -> Iterator[Machines]:
    machines = Machines(storage, tmp_path, short_tmp, request.param)
    yield machines
    for driver in machines.started:
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


def test_a_machine_lost_with_its_disk_loses_no_trial_or_epoch(machines: Machines) -> None:
    driver = machines.start("first", "new")
    machines.wait_until_half_done(driver)
    driver.kill()
    driver.communicate()
    before = {trial.number: dict(trial.intermediate_values) for trial in machines.study().trials}
    machines.lose("first")

    machines.resume("second")

    trials = machines.study().trials
    assert [trial.number for trial in trials] == list(range(TRIALS))
    for trial in trials:
        assert trial.state is OptunaState.COMPLETE
        assert list(trial.intermediate_values) == list(range(1, 10))
        recorded = before.get(trial.number, {})
        assert {step: trial.intermediate_values[step] for step in recorded} == recorded
    assert_files_are_uploaded(machines, trials)
    assert_one_mlflow_run_per_trial(machines)


def assert_files_are_uploaded(machines: Machines, trials: list[optuna.trial.FrozenTrial]) -> None:
    """Assert that the URL has every file, and the checkpoints of the best five trials."""
    names = machines.remote.names()
    files = {name for name in names if "/" not in name}
    assert files >= {"space.yaml", "study.db", "trials.csv", "best.yaml", "search.json", "mlflow.db"}
    checkpoints = {name for name in names if name.startswith("checkpoints/")}
    assert len(checkpoints) == 5
    assert checkpoints == {t.user_attrs["checkpoint"] for t in trials if t.user_attrs["checkpoint"]}


def assert_one_mlflow_run_per_trial(machines: Machines) -> None:
    """Assert that the uploaded MLflow store has one run for each trial, with every epoch."""
    copy = machines._disks / "mlflow.db"
    assert machines.remote.download("mlflow.db", copy)
    client = mlflow.MlflowClient(f"sqlite:///{copy}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "tune_rescon.trial" in run.data.tags]
    assert sorted(int(run.data.tags["tune_rescon.trial"]) for run in children) == list(range(TRIALS))
    for run in children:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val_accuracy")]
        assert sorted(steps) == list(range(1, 10))


@pytest.mark.nightly
def test_temporary_bucket_errors_lose_no_epoch(machines: Machines, s3: S3Server) -> None:
    uploads: list[str] = []

    def should_reject(method: str, path: str) -> bool:
        """Reject ten uploads of the study after the second one."""
        if method == "PUT" and path.endswith("/study.db"):
            uploads.append(path)
            return 2 < len(uploads) <= 12
        return False

    s3.should_reject = should_reject
    driver = machines.start("first", "new")
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output
    assert s3.rejected == 10
    trials = machines.study().trials
    assert [len(trial.intermediate_values) for trial in trials] == [9] * TRIALS
    assert_files_are_uploaded(machines, trials)


def test_an_unwritable_url_is_reported_before_the_search_starts(
    storage: str,
    s3: S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    s3.should_reject = lambda method, _: method == "PUT"
    assert main(["--space", "digits", "--storage", storage, "--plain"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: --storage: must be a URL that can be read and written, but got s3://")
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()
