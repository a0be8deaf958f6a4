"""A search in an S3 bucket: its machine dies with its disk, and another machine resumes it."""

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
from tune_rescon.search import main
from tune_rescon.storage import RemoteFolder, StorageUrl

#: Drivers are processes that train nothing, but import and wait.
pytestmark = [pytest.mark.s3, pytest.mark.timeout(300)]

TRIALS = 7

#: A driver as the command is one, but with trials that learn nothing, slowly: on Ray, or in its own process.
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
space = load_space("digits", ["budget.trials={TRIALS}", "scheduler.type=none", "budget.concurrent=2"])
options = RunOptions(name="s", storage=storage, cache_root=cache, resume=resume)
with trials:
    result = run_search(space, options, trainable=learn)
sys.exit(result.pending_uploads)
"""


class Machines:
    """Starts drivers on one URL, each with a disk of its own; their trials run ``on`` Ray, or in them."""

    def __init__(self, storage: str, disks: Path, ray_tmp: Path, on: str) -> None:
        self.storage = storage
        self.remote = RemoteFolder.connect(StorageUrl(url=storage)).folder("s")
        self._disks = disks
        self._env = {**os.environ, "RAY_TMPDIR": str(ray_tmp), "PYTHONPATH": str(ROOT)}
        self._on = on
        self.started: list[subprocess.Popen[str]] = []

    def start(self, disk: str, how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, self.storage, str(self._disks / disk), how, self._on]
        driver = subprocess.Popen(
            command, env=self._env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.started.append(driver)
        return driver

    def lose(self, disk: str) -> None:
        shutil.rmtree(self._disks / disk)

    def study(self) -> optuna.Study:
        """As the URL has it."""
        copy = self._disks / "look.db"
        assert self.remote.download("study.db", copy)
        return optuna.load_study(study_name="s", storage=f"sqlite:///{copy}")

    def wait_for_the_middle(self, driver: subprocess.Popen[str]) -> None:
        def there() -> bool:
            assert driver.poll() is None, driver.communicate()[0]
            if self.remote.read("space.yaml") is None:
                return False
            # The copy lags some seconds behind trials of three: by now the driver is further.
            trials = self.study().get_trials()
            return 3 <= len(trials) < TRIALS and any(t.state is OptunaState.RUNNING for t in trials)

        wait_until(there, every=0.1)


@pytest.fixture
def storage(s3: S3Server) -> str:
    return f"{s3.bucket()}/team/runs"


@pytest.fixture(params=["this process", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.nightly])])
def machines(
    request: pytest.FixtureRequest, storage: str, tmp_path: Path, short_tmp: Path
) -> Iterator[Machines]:
    group = Machines(storage, tmp_path, short_tmp, request.param)
    yield group
    for driver in group.started:
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


def test_a_machine_lost_with_its_disk_loses_no_trial_or_epoch(machines: Machines) -> None:
    driver = machines.start("first", "new")
    machines.wait_for_the_middle(driver)
    driver.kill()
    driver.communicate()
    before = {trial.number: dict(trial.intermediate_values) for trial in machines.study().trials}
    machines.lose("first")

    driver = machines.start("second", "resume")
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output

    trials = machines.study().trials
    assert [trial.number for trial in trials] == list(range(TRIALS))
    for trial in trials:
        assert trial.state is OptunaState.COMPLETE
        assert list(trial.intermediate_values) == list(range(1, 10))
        known = before.get(trial.number, {})
        assert {step: trial.intermediate_values[step] for step in known} == known
    assert_kept(machines, trials)
    assert_one_run_each(machines)


def assert_kept(machines: Machines, trials: list[optuna.trial.FrozenTrial]) -> None:
    """Every file is at the URL, and of checkpoints the best five trials'."""
    names = machines.remote.names()
    files = {name for name in names if "/" not in name}
    assert files >= {"space.yaml", "study.db", "trials.csv", "best.yaml", "search.json", "mlflow.db"}
    checkpoints = {name for name in names if name.startswith("checkpoints/")}
    assert len(checkpoints) == 5
    assert checkpoints == {t.user_attrs["checkpoint"] for t in trials if t.user_attrs["checkpoint"]}


def assert_one_run_each(machines: Machines) -> None:
    """MLflow's store has come along: no trial has two runs, and each run has every epoch."""
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
    copies: list[str] = []

    def refuses(method: str, path: str) -> bool:
        """Every copy of the study after the second, for ten times."""
        if method == "PUT" and path.endswith("/study.db"):
            copies.append(path)
            return 2 < len(copies) <= 12
        return False

    s3.refuses = refuses
    driver = machines.start("first", "new")
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, output
    assert s3.refused == 10
    trials = machines.study().trials
    assert [len(trial.intermediate_values) for trial in trials] == [9] * TRIALS
    assert_kept(machines, trials)


def test_an_unwritable_url_is_reported_before_the_search_starts(
    storage: str,
    s3: S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    s3.refuses = lambda method, _: method == "PUT"
    assert main(["--space", "digits", "--storage", storage, "--plain"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: --storage: must be a URL that can be read and written, but got s3://")
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()
