"""A record that is deleted while its search runs: the search says so, and how to resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.waiting import LONGEST_WAIT

if TYPE_CHECKING:
    from tests.faults.conftest import SlowSearches

pytestmark = [pytest.mark.ray, pytest.mark.nightly]


def test_a_deleted_study_ends_the_search_with_an_error(slow_searches: SlowSearches) -> None:
    driver = slow_searches.start_and_wait(epochs=1)
    record = slow_searches.storage / "s" / "study.db"
    kept = record.read_bytes()
    record.unlink()
    output, _ = driver.communicate(timeout=LONGEST_WAIT)
    assert driver.returncode == 1, output
    assert f"but got {record}, which is gone" in output
    assert "Traceback" not in output
    assert not record.exists()

    # The user restores the file, as the error says, and resumes the search.
    record.write_bytes(kept)
    before = slow_searches.values()
    driver = slow_searches.start("resume", "pace=0.05", "lease=5")
    output, _ = driver.communicate(timeout=LONGEST_WAIT)
    assert driver.returncode == 0, output
    slow_searches.assert_complete(before)
