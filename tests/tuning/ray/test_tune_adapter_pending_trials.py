"""Who takes over a process that is free, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from tune_rescon.tuning.ray.tune_adapter import RETRY_WAIT_SECONDS, TIMEOUT, PendingTrials


class Hall:
    """Trials that wait, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting = PendingTrials(clock=lambda: self.now)

    def add(self, *, again: bool = False) -> Any:
        trial: Any = SimpleNamespace(status=Trial.PENDING)
        self.waiting.add(trial, again=again)
        return trial

    def overdue_at(self, now: float) -> Any:
        self.now = now
        return self.waiting.overdue()


@pytest.fixture
def hall() -> Hall:
    return Hall()


def test_without_trials_no_trial_is_named(hall: Hall) -> None:
    assert hall.overdue_at(10 * TIMEOUT) is None


def test_a_trial_waits_for_the_process_requested_for_it(hall: Hall) -> None:
    hall.add()
    assert hall.overdue_at(TIMEOUT) is None


def test_the_oldest_overdue_trial_is_named_until_it_runs(hall: Hall) -> None:
    first, second = hall.add(), hall.add()
    assert [hall.overdue_at(TIMEOUT + 1) for _ in range(3)] == [first] * 3, "Tune asks ten times a second"
    first.status = Trial.RUNNING
    assert hall.overdue_at(TIMEOUT + 2) is second


def test_a_running_or_ended_trial_is_skipped(hall: Hall) -> None:
    for status in (Trial.RUNNING, Trial.TERMINATED, Trial.ERROR):
        hall.add().status = status
    last = hall.add()
    assert hall.overdue_at(TIMEOUT + 1) is last


def test_each_trial_has_its_own_time_limit(hall: Hall) -> None:
    hall.add().status = Trial.RUNNING
    hall.now = TIMEOUT
    late = hall.add()
    assert hall.overdue_at(TIMEOUT + 2) is None
    assert hall.overdue_at(2 * TIMEOUT + 1) is late


def test_a_retried_trial_has_a_shorter_time_limit(hall: Hall) -> None:
    hall.add()
    struck = hall.add(again=True)
    assert hall.overdue_at(RETRY_WAIT_SECONDS) is None
    assert hall.overdue_at(RETRY_WAIT_SECONDS + 1) is struck
