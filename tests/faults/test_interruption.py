"""Signals to a driver and to its Ray: the exit code, the processes that remain, and that the search resumes.

Each driver is the leader of a new process group, so that a signal can go to the driver alone (``kill``,
``docker stop``), to its group (a terminal, ``timeout``) or to every process (systemd).
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

#: Ray's agents outlive a killed driver: they end 60 s after the control store.
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}

#: Seconds for a driver to end, and then for all processes that it started. Ray's client ends a process by
#: itself after 60 seconds.
TIMEOUT = 45


def descendants(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(driver.pid).children(recursive=True)


def wait_for_exit(driver: subprocess.Popen[str]) -> str:
    output, _ = driver.communicate(timeout=TIMEOUT)
    return output


def assert_ended(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=TIMEOUT)
    assert [process.name() for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def assert_interrupted(study: optuna.Study) -> None:
    """Assert that no trial runs any more. One may have finished before the other one began."""
    states = {trial.user_attrs["state"] for trial in study.trials}
    assert "interrupted" in states
    assert states <= {"interrupted", "finished"}


@pytest.mark.nightly
@pytest.mark.parametrize("signal_number", [INT, KILL])
def test_a_killed_or_interrupted_search_resumes_where_it_stopped(
    signal_number: signal.Signals, slow_searches: SlowSearches
) -> None:
    driver = slow_searches.start_and_wait()
    processes = [process for process in descendants(driver) if process.name() not in AGENTS]
    driver.send_signal(signal_number)
    output = wait_for_exit(driver)
    assert driver.returncode == (-KILL if signal_number is KILL else 130), output
    assert_ended(processes)
    before = slow_searches.values()
    if signal_number is INT:
        assert "Interrupted: finishing the running epochs; Ctrl-C again to stop now" in output
        assert_interrupted(slow_searches.study())

    messages = slow_searches.resume_in_process()
    assert not [line for line in messages if "seeing for" in line], (
        "the lease of a dead driver is taken at once"
    )
    slow_searches.assert_complete(before)


@pytest.mark.nightly  # tests/integration/test_terminal.py also sends SIGINT to the group
@pytest.mark.parametrize("signal_number", [TERM, INT])
def test_a_signal_to_the_process_group_lets_epochs_finish(
    signal_number: signal.Signals, slow_searches: SlowSearches
) -> None:
    driver = slow_searches.start_and_wait("pace=1", epochs=1)
    processes, before = descendants(driver), slow_searches.values()
    # As `timeout` does: a signal to its child, then to the child's group.
    driver.send_signal(signal_number)
    os.killpg(driver.pid, signal_number)
    output = wait_for_exit(driver)
    assert driver.returncode == 130, output
    assert "finishing the running epochs" in output
    assert "stopping now" not in output
    assert_interrupted(slow_searches.study())
    after = slow_searches.values()
    assert all(len(after[number]) > len(values) for number, values in before.items())
    assert_ended(processes)


@pytest.mark.nightly
def test_a_dead_ray_ends_the_search_with_an_error(slow_searches: SlowSearches) -> None:
    """The control store is killed; tests/integration/test_terminal.py kills the node manager."""
    driver = slow_searches.start_and_wait("pace=2", epochs=1)
    processes = descendants(driver)
    (store,) = [process for process in processes if process.name() == "gcs_server"]
    store.kill()
    output = wait_for_exit(driver)
    assert driver.returncode == 1, output
    assert "Ray must live as long as the search, but its" in output
    assert "Traceback" not in output
    assert_interrupted(slow_searches.study())
    assert (slow_searches.storage / "s" / "trials.csv").is_file()
    assert_ended(processes)


@pytest.mark.nightly
def test_sigterm_to_everything_at_once_is_an_interruption(slow_searches: SlowSearches) -> None:
    # The workers end too, so the driver waits for the whole grace period.
    driver = slow_searches.start_and_wait("pace=2", epochs=1, grace=2)
    processes = descendants(driver)
    for pid in [driver.pid, *(process.pid for process in processes)]:
        os.kill(pid, TERM)
    output = wait_for_exit(driver)
    assert driver.returncode == 130, output
    assert_interrupted(slow_searches.study())
    assert_ended(processes)


@pytest.mark.nightly
def test_an_epoch_that_outlasts_the_deadline_is_not_waited_for(slow_searches: SlowSearches) -> None:
    driver = slow_searches.start_and_wait("pace=600", epochs=0, grace=1)
    processes, started_at = descendants(driver), time.monotonic()
    driver.send_signal(TERM)
    output = wait_for_exit(driver)
    assert driver.returncode == 130, output
    assert time.monotonic() - started_at < TIMEOUT / 2
    assert "for at most 1 s" in output
    assert "Interrupted: stopping now; all recorded epochs are kept" in output
    assert_interrupted(slow_searches.study())
    assert_ended(processes)


@pytest.mark.nightly
def test_a_search_ended_by_a_second_ctrl_c_can_be_resumed(slow_searches: SlowSearches) -> None:
    driver = slow_searches.start_and_wait("pace=5", epochs=0)
    driver.send_signal(INT)
    time.sleep(0.5)
    driver.send_signal(INT)
    output = wait_for_exit(driver)
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
    processes = descendants(driver)
    driver.send_signal(HUP)
    output = wait_for_exit(driver)
    assert driver.returncode == 130, output
    assert "Interrupted before the first trial; nothing was started." in output
    assert not (tmp_path / "runs").exists()
    assert_ended(processes)
