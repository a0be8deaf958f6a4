"""Two drivers of one search, of which only one may run at a time."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.waiting import LONGEST_WAIT

if TYPE_CHECKING:
    from tests.faults.conftest import SlowSearches

pytestmark = [pytest.mark.ray, pytest.mark.nightly]

#: A short lease, in seconds.
LEASE = "lease=3"

#: Trials that do not end during a test.
ENDLESS = "pace=600"


def test_a_second_driver_is_refused_while_the_first_lives(slow_searches: SlowSearches) -> None:
    first = slow_searches.start_and_wait(ENDLESS, LEASE, epochs=0)
    process = f"process {first.pid} on "
    for mode, machine, message in (
        ("resume", "", f"one driver at a time, and s has one: {process}"),
        ("resume", "machine=another machine", "waiting 3 s to see whether it still runs"),
        ("new", "", "--resume s"),
    ):
        second = slow_searches.start(mode, *filter(None, (LEASE, machine)))
        output, _ = second.communicate(timeout=LONGEST_WAIT)
        assert second.returncode == 2, output
        assert message in output
    assert first.poll() is None
    # test_interruption.py tests how the next driver takes over the lease of a killed one.
    assert slow_searches.study().user_attrs["lease"]["driver"]["pid"] == first.pid


def test_a_frozen_driver_that_lost_its_lease_ends_without_writing(slow_searches: SlowSearches) -> None:
    first = slow_searches.start_and_wait(LEASE, "machine=one machine")
    freeze(first, slow_searches.storage / "s" / "study.db")
    before = slow_searches.values()
    second = slow_searches.start("resume", LEASE, "pace=0.05", "machine=another machine")
    output, _ = second.communicate(timeout=LONGEST_WAIT)
    assert second.returncode == 0, output
    assert f"s was last driven by process {first.pid} on " in output
    slow_searches.assert_complete(before)
    final = slow_searches.values()
    first.send_signal(signal.SIGCONT)
    output, _ = first.communicate(timeout=LONGEST_WAIT)
    assert first.returncode == 1, output
    assert "this driver has lost the search s" in output
    assert slow_searches.values() == final
    slow_searches.assert_complete(before)


def freeze(driver: subprocess.Popen[str], record: Path) -> None:
    """SIGSTOP a driver while it does not lock the database, which no process could read otherwise."""
    for _ in range(100):
        driver.send_signal(signal.SIGSTOP)
        while psutil.Process(driver.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        with closing(sqlite3.connect(record, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError:
                driver.send_signal(signal.SIGCONT)
                time.sleep(0.05)
            else:
                return
    raise AssertionError("the driver locked the database each time")
