"""Drivers in processes of their own, which a test strikes down at a moment of its choice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from storm.check_ours import check_ours
from storm.ours import NAME
from storm.trainables import LEDGER

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class CheapSearch:
    """The fault storm's search: six cheap trials; its driver begins it, or goes on with what there is."""

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

    def wait_for(self, true: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
        for _ in range(1200):
            if true():
                return
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.05)
        raise AssertionError("the search did not get that far in a minute")

    def kill_once(self, true: Callable[[], bool]) -> None:
        """Start a driver, and SIGKILL it as soon as ``true``."""
        driver = self.start()
        self.wait_for(true, driver)
        driver.kill()
        driver.communicate()

    def finish(self) -> None:
        """Let a driver end by itself, and hold the search against the contract."""
        self.ends_well(self.start())

    def ends_well(self, driver: subprocess.Popen[str]) -> None:
        output, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0, output
        assert check_ours(self.storage, self.trials).notes == []

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=NAME, storage=f"sqlite:///{self.folder / 'study.db'}")


@pytest.fixture
def cheap_search(tmp_path: Path, fault_cache: Path, short_tmp: Path) -> Iterator[CheapSearch]:
    search = CheapSearch(tmp_path, fault_cache, short_tmp)
    yield search
    for driver in search.started:
        if driver.poll() is None:
            driver.kill()
            driver.communicate()


@pytest.fixture(scope="session")
def fault_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
