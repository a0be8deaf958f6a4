"""The driver SIGKILLed where the least is recorded, and a record that another process has locked."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import CheapSearch

pytestmark = [pytest.mark.ray, pytest.mark.nightly]

#: Seconds for which another process holds the record: more than SQLite's own patience, which is five.
LOCKED = 7.0


def test_drivers_killed_one_after_the_other_lose_nothing(cheap_search: CheapSearch) -> None:
    for sign in ("search.log", "study.db", "space.yaml"):
        cheap_search.kill_once((cheap_search.folder / sign).exists)

    cheap_search.kill_once(lambda: epochs(cheap_search) >= 5)
    before = {trial.number: dict(trial.intermediate_values) for trial in cheap_search.study().trials}

    cheap_search.kill_once(lambda: ended(cheap_search) == cheap_search.trials)
    trained = (cheap_search.storage / "ledger").read_text()

    cheap_search.finish()
    assert (cheap_search.storage / "ledger").read_text() == trained, "there was only to conclude"
    for trial in cheap_search.study().trials:
        known = before.get(trial.number, {})
        assert {epoch: trial.intermediate_values[epoch] for epoch in known} == known


def test_a_database_locked_by_another_process_is_waited_for(cheap_search: CheapSearch) -> None:
    driver = cheap_search.start()
    cheap_search.wait_for(lambda: epochs(cheap_search) >= 2, driver)
    with sqlite3.connect(cheap_search.folder / "study.db", timeout=30, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCKED)
        assert driver.poll() is None
        other.execute("ROLLBACK")
    cheap_search.ends_well(driver)


def epochs(search: CheapSearch) -> int:
    """Epochs recorded so far."""
    if not (search.folder / "space.yaml").exists():
        return 0
    return sum(len(trial.intermediate_values) for trial in search.study().trials)


def ended(search: CheapSearch) -> int:
    """Trials closed so far."""
    if not (search.folder / "space.yaml").exists():
        return 0
    return sum(trial.state.is_finished() for trial in search.study().trials)
