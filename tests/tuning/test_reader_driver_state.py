"""The state of a search, by its lease, its outcome and its trials."""

from __future__ import annotations

import pytest

from tune_rescon.tuning.driver import Driver
from tune_rescon.tuning.lease import Lease
from tune_rescon.tuning.reader import driver_lives, search_state
from tune_rescon.tuning.result import SearchState

ME = Driver(host="here", place="here 1", pid=1, started=0.0)
BESIDE = Driver(host="here", place="here 1", pid=2, started=5.0)
ELSEWHERE = Driver(host="there", place="there 1", pid=2, started=5.0)


def lease(driver: Driver | None) -> Lease:
    return Lease(driver=driver, token="t", beat=1, since="", seconds=20.0, driven=0.0)


@pytest.mark.parametrize(
    ("found", "started", "silent", "lives"),
    [
        (None, None, 0.0, False),
        (lease(None), 5.0, 0.0, False),
        # Of this place the process table tells, however long the beat was silent.
        (lease(BESIDE), 5.0, 1e6, True),
        (lease(BESIDE), None, 0.0, False),
        # Another process of that number, and of elsewhere: by the beat.
        (lease(BESIDE), 500.0, 1.0, True),
        (lease(BESIDE), 500.0, 100.0, False),
        (lease(ELSEWHERE), None, 39.0, True),
        (lease(ELSEWHERE), None, 41.0, False),
    ],
)
def test_a_driver_is_alive_by_its_process_or_its_heartbeat(
    found: Lease | None, started: float | None, silent: float, lives: bool
) -> None:
    assert driver_lives(found, ME, lambda _: started, silent=silent) == lives


@pytest.mark.parametrize(
    ("alive", "outcome", "ended", "expected"),
    [
        (True, None, 0, SearchState.RUNNING),
        (True, SearchState.FINISHED, 12, SearchState.RUNNING),
        (False, SearchState.INTERRUPTED, 3, SearchState.INTERRUPTED),
        # Its hours were spent, or nothing of its space was left.
        (False, SearchState.FINISHED, 3, SearchState.FINISHED),
        (False, SearchState.FAILED, 12, SearchState.FAILED),
        (False, None, 11, SearchState.INTERRUPTED),
        (False, None, 12, SearchState.FINISHED),
    ],
)
def test_the_search_state_follows_from_driver_outcome_and_trials(
    alive: bool, outcome: SearchState | None, ended: int, expected: SearchState
) -> None:
    assert search_state(alive=alive, outcome=outcome, ended=ended, total=12) is expected
