"""Signals to a real driver and to its real Ray: how it ends, what is left, and that it resumes.

Each driver is at the head of a process group of its own, so that a signal can go to the driver alone
(``kill``, ``docker stop``), to its group (a terminal, ``timeout``) or to everything (systemd).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import psutil
import pytest

from tests.waiting import LONGEST_WAIT, wait_until

if TYPE_CHECKING:
    from tests.faults.conftest import SlowSearches

pytestmark = pytest.mark.ray

INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL

#: Ray's agents outlive a killed driver until they miss its control store for 60 s (of no use to anybody).
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}

#: Seconds a driver has to end, and then all that it started. Less than the 60 after which Ray's client ends a
#: process by itself.
TIMEOUT = 45


def descendants(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(driver.pid).children(recursive=True)


def end(driver: subprocess.Popen[str]) -> str:
    output, _ = driver.communicate(timeout=TIMEOUT)
    return output


def assert_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=TIMEOUT)
    assert [process.name() for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def states(study: optuna.Study) -> set[str]:
    return {trial.user_attrs["state"] for trial in study.trials}


@pytest.mark.nightly
@pytest.mark.parametrize("blow", [INT, KILL])
def test_a_killed_or_interrupted_search_resumes_where_it_stopped(
    blow: signal.Signals, slow_searches: SlowSearches
) -> None:
    driver = slow_searches.start_and_wait()
    family = [process for process in descendants(driver) if process.name() not in AGENTS]
    driver.send_signal(blow)
    output = end(driver)
    assert driver.returncode == (-KILL if blow is KILL else 130), output
    assert_gone(family)
    before = slow_searches.values()
    if blow is INT:
        assert "Interrupted: finishing the running epochs; Ctrl-C again to stop now" in output
        assert states(slow_searches.study()) == {"interrupted"}

    said = slow_searches.resume_here()
    assert not [line for line in said if "seeing for" in line], "the lease of a dead driver is taken at once"
    slow_searches.assert_complete(before)


@pytest.mark.nightly  # Ctrl-C in a terminal goes to the group, too: tests/integration/test_terminal.py
@pytest.mark.parametrize("blow", [TERM, INT])
def test_a_signal_to_the_process_group_lets_epochs_finish(
    blow: signal.Signals, slow_searches: SlowSearches
) -> None:
    driver = slow_searches.start_and_wait("pace=1", epochs=1)
    family, before = descendants(driver), slow_searches.values()
    # As `timeout` does it: to its child, then to the group the child is in.
    driver.send_signal(blow)
    os.killpg(driver.pid, blow)
    output = end(driver)
    assert driver.returncode == 130, output
    assert "finishing the running epochs" in output
    assert "stopping now" not in output
    assert states(slow_searches.study()) == {"interrupted"}
    after = slow_searches.values()
    assert all(len(after[number]) > len(values) for number, values in before.items())
    assert_gone(family)


@pytest.mark.nightly
def test_a_dead_ray_ends_the_search_with_an_error(slow_searches: SlowSearches) -> None:
    """By its control store's death; tests/integration/test_terminal.py kills its node manager."""
    driver = slow_searches.start_and_wait("pace=2", epochs=1)
    family = descendants(driver)
    (store,) = [process for process in family if process.name() == "gcs_server"]
    store.kill()
    output = end(driver)
    assert driver.returncode == 1, output
    assert "Ray must live as long as the search, but its" in output
    assert "Traceback" not in output
    assert states(slow_searches.study()) == {"interrupted"}
    assert (slow_searches.storage / "s" / "trials.csv").is_file()
    assert_gone(family)


@pytest.mark.nightly
def test_sigterm_to_everything_at_once_is_an_interruption(slow_searches: SlowSearches) -> None:
    # The workers are gone too, so all of the grace is waited for epochs that will not come.
    driver = slow_searches.start_and_wait("pace=2", epochs=1, grace=2)
    family = descendants(driver)
    for pid in [driver.pid, *(process.pid for process in family)]:
        os.kill(pid, TERM)
    output = end(driver)
    assert driver.returncode == 130, output
    assert states(slow_searches.study()) == {"interrupted"}
    assert_gone(family)


@pytest.mark.nightly
def test_an_epoch_that_outlasts_the_deadline_is_not_waited_for(slow_searches: SlowSearches) -> None:
    driver = slow_searches.start_and_wait("pace=600", epochs=0, grace=1)
    family, begun = descendants(driver), time.monotonic()
    driver.send_signal(TERM)
    output = end(driver)
    assert driver.returncode == 130, output
    assert time.monotonic() - begun < TIMEOUT / 2
    assert "for at most 1 s" in output
    assert "Interrupted: stopping now; all recorded epochs are kept" in output
    assert states(slow_searches.study()) == {"interrupted"}
    assert_gone(family)


@pytest.mark.nightly
def test_a_search_ended_by_a_second_ctrl_c_can_be_resumed(slow_searches: SlowSearches) -> None:
    driver = slow_searches.start_and_wait("pace=5", epochs=0)
    driver.send_signal(INT)
    time.sleep(0.5)
    driver.send_signal(INT)
    output = end(driver)
    assert driver.returncode == 130, output
    before = slow_searches.values()
    driver = slow_searches.start("resume", "pace=0.05")
    output, _ = driver.communicate(timeout=LONGEST_WAIT)
    assert driver.returncode == 0, output
    slow_searches.assert_complete(before)


@pytest.mark.nightly
def test_a_search_ended_before_its_first_trial_leaves_no_files(tmp_path: Path, short_tmp: Path) -> None:
    driver = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tune_rescon.search",
            "--space",
            "digits",
            "--storage",
            str(tmp_path / "runs"),
        ],
        env={**os.environ, "RAY_TMPDIR": str(short_tmp), "TUNE_RESCON_CACHE": str(tmp_path / "cache")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

    def ray_starts() -> bool:
        assert driver.poll() is None, driver.communicate()[0]
        return any(process.name() == "gcs_server" for process in descendants(driver))

    wait_until(ray_starts)
    family = descendants(driver)
    driver.send_signal(HUP)
    output = end(driver)
    assert driver.returncode == 130, output
    assert "Interrupted before the first trial; nothing was begun." in output
    assert not (tmp_path / "runs").exists()
    assert_gone(family)
