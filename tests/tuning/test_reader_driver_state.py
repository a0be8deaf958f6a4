"""The state of a search, by its lease, its outcome and its trials."""

from __future__ import annotations

import pytest

from tune_rescon.tuning.driver import Driver
from tune_rescon.tuning.lease import Lease
from tune_rescon.tuning.reader import driver_lives, search_state
from tune_rescon.tuning.result import SearchState

THIS_DRIVER = Driver(host="here", place="here 1", pid=1, started=0.0)
SAME_MACHINE = Driver(host="here", place="here 1", pid=2, started=5.0)
OTHER_MACHINE = Driver(host="there", place="there 1", pid=2, started=5.0)


def lease(driver: Driver | None) -> Lease:
    return Lease(driver=driver, token="t", beat=1, since="", seconds=20.0, driven=0.0)


@pytest.mark.parametrize(
    ("recorded_lease", "started", "seconds_since_heartbeat", "is_alive"),
    [
        (None, None, 0.0, False),
        (lease(None), 5.0, 0.0, False),
        # For a process of this machine the process table decides, not the heartbeat.
        (lease(SAME_MACHINE), 5.0, 1e6, True),
        (lease(SAME_MACHINE), None, 0.0, False),
        # A reused number, or another machine: the heartbeat decides.
        (lease(SAME_MACHINE), 500.0, 1.0, True),
        (lease(SAME_MACHINE), 500.0, 100.0, False),
        (lease(OTHER_MACHINE), None, 39.0, True),
        (lease(OTHER_MACHINE), None, 41.0, False),
    ],
)
def test_a_driver_is_alive_by_its_process_or_its_heartbeat(
    recorded_lease: Lease | None, started: float | None, seconds_since_heartbeat: float, is_alive: bool
) -> None:
    assert (
        driver_lives(recorded_lease, THIS_DRIVER, lambda _: started, silent=seconds_since_heartbeat)
        == is_alive
    )


@pytest.mark.parametrize(
    ("alive", "outcome", "ended", "expected"),
    [
        (True, None, 0, SearchState.RUNNING),
        (True, SearchState.FINISHED, 12, SearchState.RUNNING),
        (False, SearchState.INTERRUPTED, 3, SearchState.INTERRUPTED),
        # The hours or the points of the space were used up.
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
