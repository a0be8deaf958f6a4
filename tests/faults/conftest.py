"""Drivers in subprocesses, which a test kills or interrupts at a chosen time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from storm.check_ours import check_ours
from storm.ours import NAME
from storm.trainables import LEDGER

from tests.waiting import LONGEST_WAIT, wait_until
from tests.without_ray import search_without_ray
from tune_rescon.command import progress_shown
from tune_rescon.spaces import load_space
from tune_rescon.testing import learn_nothing
from tune_rescon.tuning import RunOptions, run_search

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class CheapSearch:
    """The search of the fault storm with six cheap trials. Each driver starts or resumes it."""

    trials = 6

    def __init__(self, storage: Path, cache: Path, ray_tmp: Path) -> None:
        self.storage = storage
        self.folder = storage / NAME
        self._command = [sys.executable, "-m", "storm.ours", "--seed", "0", "--trials", str(self.trials)]
        self._command += ["--storage", str(storage), "--cache", str(cache)]
        paths = [str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "RAY_TMPDIR": str(ray_tmp),
            LEDGER: str(storage / "ledger"),
        }
        self.started: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            self._command,
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.started.append(driver)
        return driver

    def wait_for(self, condition: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
        def condition_met() -> bool:
            if condition():
                return True
            assert driver.poll() is None, driver.communicate()[0]
            return False

        wait_until(condition_met, every=0.05)

    def kill_once(self, condition: Callable[[], bool]) -> None:
        """Start a driver, and SIGKILL it as soon as ``condition`` is true."""
        driver = self.start()
        self.wait_for(condition, driver)
        driver.kill()
        driver.communicate()

    def finish(self) -> None:
        """Run a driver to its end, and check the search."""
        self.assert_finishes(self.start())

    def assert_finishes(self, driver: subprocess.Popen[str]) -> None:
        output, _ = driver.communicate(timeout=LONGEST_WAIT)
        assert driver.returncode == 0, output
        assert check_ours(self.storage, self.trials).notes == []

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=NAME, storage=f"sqlite:///{self.folder / 'study.db'}")


#: A driver like the command's, with slow trials that train nothing. Arguments: NAME new|resume KEY=VALUE...
#: An epoch takes `pace` seconds; `machine` is the name of the machine on which the driver claims to run.
SLOW_DRIVER = """
import sys
from pathlib import Path
from tune_rescon.command import progress_shown
from tune_rescon.errors import SearchError, TuneResconError
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, run_search
from tune_rescon.tuning import driver

storage, cache, name, mode, *settings = sys.argv[1:]
chosen = dict(setting.split("=", 1) for setting in settings)
pace = float(chosen.get("pace", 0.3))
if "machine" in chosen:
    driver._place = lambda: chosen["machine"]

def learn(config):
    from tune_rescon.testing import trainables
    trainables.SLOW_EPOCH = pace
    trainables.learn_slowly(config)

space = load_space("digits", ["budget.trials=" + chosen.get("trials", "6"), "scheduler.type=none"])
options = RunOptions(
    name=name,
    storage=Path(storage),
    cache_root=Path(cache),
    resume=mode == "resume",
    lease_seconds=float(chosen.get("lease", 20)),
)
def say(text):
    print(text, flush=True)

try:
    with progress_shown(say):
        result = run_search(space, options, trainable=learn)
except TuneResconError as error:
    say(error)
    sys.exit(1 if isinstance(error, SearchError) else 2)
say(result.failure)
sys.exit(130 if result.interrupted else 1 if result.failure else 0)
"""


class SlowSearches:
    """Searches of six slow trials on one storage. Each driver is the leader of a new session."""

    def __init__(self, storage: Path, cache: Path, ray_tmp: Path) -> None:
        self.storage = storage
        self._cache = cache
        self._environment = {**os.environ, "RAY_TMPDIR": str(ray_tmp)}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, mode: str, *settings: str, name: str = "s", grace: float = 15) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-c", SLOW_DRIVER, str(self.storage), str(self._cache), name, mode, *settings],
            env={**self._environment, "TUNE_RESCON_GRACE_SECONDS": str(grace)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(driver)
        return driver

    def resume_in_process(self) -> list[str]:
        """Resume the search ``s`` in this process without Ray, and return its messages."""
        messages: list[str] = []
        space = load_space("digits", ["budget.trials=6", "scheduler.type=none"])
        options = RunOptions(name="s", storage=self.storage, cache_root=self._cache, resume=True)
        with search_without_ray(), progress_shown(messages.append):
            result = run_search(space, options, trainable=learn_nothing)
        assert result.failure is None, messages
        return messages

    def study(self, name: str = "s") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=f"sqlite:///{self.storage / name / 'study.db'}")

    def start_and_wait(self, *settings: str, epochs: int = 2, grace: float = 15) -> subprocess.Popen[str]:
        """Start a new search, and wait until two trials run and have reported this number of epochs."""
        driver = self.start("new", *settings, grace=grace)

        def condition_met() -> bool:
            assert driver.poll() is None, driver.communicate()[0]
            if not (self.storage / "s" / "space.yaml").exists():
                return False
            running = self.study().get_trials(states=(optuna.trial.TrialState.RUNNING,))
            return len(running) == 2 and all(len(t.intermediate_values) >= epochs for t in running)

        wait_until(condition_met, every=0.1)
        return driver

    def values(self) -> dict[int, dict[int, float]]:
        """Return the value of every recorded epoch, by trial."""
        return {trial.number: dict(trial.intermediate_values) for trial in self.study().trials}

    def assert_complete(self, before: dict[int, dict[int, float]]) -> None:
        """Assert that six trials have nine epochs each, and that the values ``before`` are unchanged."""
        after = self.values()
        assert sorted(after) == list(range(6))
        assert all(list(values) == list(range(1, 10)) for values in after.values())
        assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in self.study().trials)
        for number, values in before.items():
            assert {step: after[number][step] for step in values} == values


@pytest.fixture
def slow_searches(tmp_path: Path, fault_cache: Path, short_tmp: Path) -> Iterator[SlowSearches]:
    searches = SlowSearches(tmp_path, fault_cache, short_tmp)
    yield searches
    for driver in searches.started:
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


@pytest.fixture(scope="session")
def new_search(fault_cache: Path, short_tmp: Path) -> Iterator[Callable[[Path], CheapSearch]]:
    """Makes a search on a storage. Drivers that still run at the end are killed."""
    searches: list[CheapSearch] = []

    def make(storage: Path) -> CheapSearch:
        searches.append(CheapSearch(storage, fault_cache, short_tmp))
        return searches[-1]

    yield make
    for driver in (driver for search in searches for driver in search.started):
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


@pytest.fixture
def cheap_search(tmp_path: Path, new_search: Callable[[Path], CheapSearch]) -> CheapSearch:
    return new_search(tmp_path)


@pytest.fixture(scope="session")
def fault_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
