"""The driver as its own process: Ctrl-C, SIGKILL, and going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

pytestmark = pytest.mark.ray

#: A driver as the command is one, but with trials that learn nothing, slowly.
DRIVER = """
import sys
from pathlib import Path
from tune_rescon.spaces import load_space
from tune_rescon.testing import learn_slowly
from tune_rescon.tuning import RunOptions, run_search

storage, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
space = load_space("digits", ["budget.trials=6", "scheduler.type=none"])
options = RunOptions(name="s", storage=storage, cache_root=storage / "cache", resume=resume)
result = run_search(space, options, trainable=learn_slowly)
sys.exit(130 if result.interrupted else 0)
"""


class Drivers:
    """Starts drivers on one storage, each as the head of a process group that can be ended whole."""

    def __init__(self, storage: Path, ray_tmp: Path) -> None:
        self.storage = storage
        self._env = {**os.environ, "RAY_TMPDIR": str(ray_tmp)}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, how: str) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(self.storage), how],
            env=self._env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(driver)
        return driver

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=f"sqlite:///{self.storage / 's' / 'study.db'}")

    def wait_for(self, true: Callable[[optuna.Study], bool], driver: subprocess.Popen[str]) -> None:
        for _ in range(600):
            assert driver.poll() is None, driver.stdout and driver.stdout.read()
            if (self.storage / "s" / "space.yaml").exists() and true(self.study()):
                return
            time.sleep(0.1)
        raise AssertionError("the search did not get that far in a minute")


@pytest.fixture
def drivers(tmp_path: Path, short_tmp: Path) -> Iterator[Drivers]:
    group = Drivers(tmp_path, short_tmp)
    yield group
    for driver in group.started:
        driver.kill()
        driver.communicate()


def two_trials_amid_training(study: optuna.Study) -> bool:
    running = study.get_trials(states=(OptunaState.RUNNING,))
    return len(running) == 2 and all(len(trial.intermediate_values) >= 2 for trial in running)


def assert_complete(study: optuna.Study, before: dict[int, dict[int, float]]) -> None:
    assert [trial.number for trial in study.trials] == list(range(6))
    for trial in study.trials:
        assert trial.state is OptunaState.COMPLETE
        assert list(trial.intermediate_values) == list(range(1, 10))
        known = before.get(trial.number, {})
        assert {step: trial.intermediate_values[step] for step in known} == known


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_search_that_is_struck_down_goes_on_where_it_was(blow: signal.Signals, drivers: Drivers) -> None:
    driver = drivers.start("new")
    drivers.wait_for(two_trials_amid_training, driver)
    driver.send_signal(blow)
    output, _ = driver.communicate(timeout=90)
    assert driver.returncode == (-signal.SIGKILL if blow is signal.SIGKILL else 130), output

    before = {trial.number: dict(trial.intermediate_values) for trial in drivers.study().trials}
    if blow is not signal.SIGKILL:
        states = {t.user_attrs["state"] for t in drivers.study().trials if t.state is OptunaState.RUNNING}
        assert states == {"interrupted"}

    driver = drivers.start("resume")
    output, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, output
    assert_complete(drivers.study(), before)


def test_a_second_ctrl_c_ends_at_once_and_is_as_resumable(drivers: Drivers) -> None:
    driver = drivers.start("new")
    drivers.wait_for(two_trials_amid_training, driver)
    driver.send_signal(signal.SIGINT)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=90)
    assert driver.returncode == 130, output
    before = {trial.number: dict(trial.intermediate_values) for trial in drivers.study().trials}
    assert drivers.start("resume").wait(timeout=180) == 0
    assert_complete(drivers.study(), before)
