"""Two real drivers on one name, one at a time. Side by side, on two names: test_killed_search.py."""

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

#: A lease short enough for a test.
LEASE = "lease=3"


#: Trials that no driver sees the end of.
ENDLESS = "pace=600"


def test_a_second_driver_is_refused_while_the_first_lives(slow_searches: SlowSearches) -> None:
    first = slow_searches.start_and_wait(ENDLESS, LEASE, epochs=0)
    here = f"process {first.pid} on "
    for how, place, words in (
        ("resume", "", f"one driver at a time, and s has one: {here}"),
        ("resume", "place=another machine", "waiting 3 s to see whether it still runs"),
        ("new", "", "--resume s"),
    ):
        second = slow_searches.start(how, *filter(None, (LEASE, place)))
        output, _ = second.communicate(timeout=LONGEST_WAIT)
        assert second.returncode == 2, output
        assert words in output
    assert first.poll() is None
    # How the next driver takes the lease of a killed one: test_interruption.py.
    assert slow_searches.study().user_attrs["lease"]["driver"]["pid"] == first.pid


def test_a_frozen_driver_that_lost_its_lease_ends_without_writing(slow_searches: SlowSearches) -> None:
    first = slow_searches.start_and_wait(LEASE, "place=one machine")
    freeze(first, slow_searches.storage / "s" / "study.db")
    before = slow_searches.values()
    second = slow_searches.start("resume", LEASE, "pace=0.05", "place=another machine")
    output, _ = second.communicate(timeout=LONGEST_WAIT)
    assert second.returncode == 0, output
    assert f"s was last driven by process {first.pid} on " in output
    slow_searches.assert_complete(before)
    ended = slow_searches.values()
    first.send_signal(signal.SIGCONT)
    output, _ = first.communicate(timeout=LONGEST_WAIT)
    assert first.returncode == 1, output
    assert "this driver has lost the search s" in output
    assert slow_searches.values() == ended
    slow_searches.assert_complete(before)


def freeze(driver: subprocess.Popen[str], record: Path) -> None:
    """Stop it at a moment at which it does not hold the record, which nobody could then even read."""
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
    raise AssertionError("it held the record each time")
