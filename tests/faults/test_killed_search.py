"""End to end: the command trains real networks, and its driver is killed repeatedly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import FrozenTrial

from tests.conftest import ROOT
from tests.mlflow_in_process import no_network_exported
from tests.waiting import LONGEST_WAIT, wait_until
from tests.without_ray import search_without_ray
from tune_rescon.search import main

pytestmark = pytest.mark.timeout(600)

#: The command, with trials in the driver's process.
WITHOUT_RAY = """
import sys
from tests.without_ray import search_without_ray
from tune_rescon.search import main
with search_without_ray():
    sys.exit(main(sys.argv[1:]))
"""

#: Three trials, one at a time, of small networks on digits, with rungs at 1 and 2 of 4 epochs.
SEARCH = [
    "--trials=3",
    "--concurrent=1",
    "--set=scheduler.reduction_factor=2",
    "--set=fidelity.max=4",
    "--set=fixed.width=0.125",
    "--set=initial=[]",
    "--set=dataset.limit=160",
    "--set=parameters.depth.choices=[56]",
    "--set=parameters.drop_path={type: float, low: 0.0, high: 0.1}",
    "--set=sampler.n_startup_trials=1",
    "--plain",
]

#: Metrics that depend on the machine's speed.
TIME_METRICS = {"compute_hours", "epoch_seconds", "images_per_second", "mean_images_per_second"}


class Command:
    """Runs ``python -m tune_rescon.search`` on one storage, with trials on Ray or in the driver's process."""

    def __init__(self, storage: Path, ray_tmp: Path, *, on_ray: bool) -> None:
        self.storage = storage
        self._on_ray = on_ray
        self._python = [sys.executable, *(["-m", "tune_rescon.search"] if on_ray else ["-c", WITHOUT_RAY])]
        self._env = {**os.environ, "RAY_TMPDIR": str(ray_tmp), "TUNE_RESCON_STORAGE": str(storage)}
        self._env["PYTHONPATH"] = str(ROOT)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [*self._python, *arguments]
        return subprocess.Popen(
            command, env=self._env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def finish(self, *arguments: str) -> None:
        """Run the command to its end; without Ray in this process, which has imported torch and MLflow."""
        if not self._on_ray:
            with search_without_ray(), no_network_exported():
                assert main([*arguments, "--storage", str(self.storage)]) == 0
            return
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output

    @staticmethod
    def wait_for(
        condition: Callable[[], bool], driver: subprocess.Popen[str], *, every: float = 0.05
    ) -> None:
        """Wait until ``condition`` is true, while ``driver`` runs."""

        def condition_met() -> bool:
            assert driver.poll() is None, driver.stdout and driver.stdout.read()
            return condition()

        wait_until(condition_met, every=every)

    def trials(self, name: str) -> list[FrozenTrial]:
        path = self.storage / name / "study.db"
        return optuna.load_study(study_name=name, storage=f"sqlite:///{path}").trials

    def epochs(self, name: str) -> int:
        if not (self.storage / name / "space.yaml").exists():
            return 0
        return sum(len(trial.intermediate_values) for trial in self.trials(name))

    def has_epochs(self, name: str, epochs: int) -> bool:
        return self.epochs(name) >= epochs

    def children(self, name: str) -> list[str]:
        """Return the trial numbers of the MLflow runs under the search's only run."""
        client = mlflow.MlflowClient(f"sqlite:///{self.storage / 'mlflow.db'}")
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        (parent,) = [run for run in runs if run.info.run_name == name]
        return sorted(
            run.data.tags["tune_rescon.trial"]
            for run in runs
            if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        )

    def metrics(self, name: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Return the metrics of all trials in MLflow as (epoch, value) pairs."""
        client = mlflow.MlflowClient(f"sqlite:///{self.storage / 'mlflow.db'}")
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`tune_rescon.search` = '{name}' AND tags.`tune_rescon.trial` LIKE '%'"
        runs = client.search_runs(ids, query)
        return {
            (run.info.run_name, key): sorted(
                (point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)
            )
            for run in runs
            for key in run.data.metrics
            if key not in TIME_METRICS
        }


@pytest.mark.parametrize(
    ("on_ray", "kills"),
    [(False, (5,)), pytest.param(True, (2, 5), marks=[pytest.mark.ray, pytest.mark.nightly])],
)
def test_a_killed_search_matches_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, short_tmp: Path, empty_store: Path, *, on_ray: bool, kills: Sequence[int]
) -> None:
    """Both searches run side by side on one storage. ``kills`` are numbers of recorded epochs."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    command = Command(tmp_path, short_tmp, on_ray=on_ray)

    def kill() -> None:
        arguments = ["--space=digits", "--name=killed", *SEARCH]
        for epochs in kills:
            driver = command.start(*arguments)
            command.wait_for(partial(command.has_epochs, "killed", epochs), driver)
            driver.send_signal(signal.SIGKILL)
            driver.communicate(timeout=LONGEST_WAIT)
            arguments = ["--resume=killed", "--plain"]

    with ThreadPoolExecutor(1) as executor:
        killed_search = executor.submit(kill)
        command.finish("--space=digits", "--name=whole", *SEARCH)
        killed_search.result()
    command.finish("--resume=killed", "--plain")

    whole, killed = command.trials("whole"), command.trials("killed")
    assert [trial.params for trial in killed] == [trial.params for trial in whole]
    assert [trial.state for trial in killed] == [trial.state for trial in whole]
    assert [trial.intermediate_values for trial in killed] == [trial.intermediate_values for trial in whole]
    assert command.metrics("killed") == command.metrics("whole")
    for name in ("whole", "killed"):
        assert [trial.number for trial in command.trials(name)] == [0, 1, 2]
        assert command.children(name) == ["0", "1", "2"]


#: The conditions on the search's folder or study upon which the driver is killed.
KILL_CONDITIONS: list[tuple[str, Callable[[Command], bool]]] = [
    ("the directory", lambda command: (command.storage / "again").is_dir()),
    ("the log", lambda command: (command.storage / "again" / "search.log").is_file()),
    ("the study", lambda command: (command.storage / "again" / "study.db").is_file()),
    ("space.yaml", lambda command: (command.storage / "again" / "space.yaml").is_file()),
    ("the first epoch", lambda command: command.epochs("again") >= 1),
    ("the fifth epoch", lambda command: command.epochs("again") >= 5),
]


@pytest.mark.nightly
def test_repeating_a_command_finishes_a_search_killed_at_every_stage(tmp_path: Path, short_tmp: Path) -> None:
    """SIGKILL ends the trials too, which run in the driver's process. The lease has not expired."""
    command = Command(tmp_path, short_tmp, on_ray=False)
    arguments = ["--space=digits", "--resume-or-start=again", *SEARCH]
    for _, condition in KILL_CONDITIONS:
        driver = command.start(*arguments)
        command.wait_for(partial(condition, command), driver, every=0.002)
        driver.send_signal(signal.SIGKILL)
        driver.communicate(timeout=LONGEST_WAIT)
    command.finish(*arguments)
    trials = command.trials("again")
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert command.children("again") == ["0", "1", "2"]

    driver = command.start(*arguments)
    output, _ = driver.communicate(timeout=LONGEST_WAIT)
    assert driver.returncode == 0, output
    assert "again is finished: 3 of 3 trials have run, and nothing is left to do" in output
    assert command.trials("again") == trials


@pytest.mark.nightly
def test_one_of_two_concurrent_commands_searches_and_the_other_waits(tmp_path: Path, short_tmp: Path) -> None:
    command = Command(tmp_path, short_tmp, on_ray=False)
    arguments = ["--space=digits", "--resume-or-start=again", *SEARCH]
    drivers = [command.start(*arguments) for _ in range(2)]
    outputs = [driver.communicate(timeout=300)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    (second,) = [output for output in outputs if "Waiting for up to 180 s" in output]
    assert "again is finished: 3 of 3 trials have run" in second
    assert [trial.number for trial in command.trials("again")] == [0, 1, 2]
