"""Which pending trial gets a free process, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from tune_rescon.tuning.ray.tune_adapter import RETRY_WAIT_SECONDS, TIMEOUT, PendingTrials


class Queue:
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
def queue() -> Queue:
    return Queue()


def test_without_trials_none_is_overdue(queue: Queue) -> None:
    assert queue.overdue_at(10 * TIMEOUT) is None


def test_a_trial_waits_for_the_process_requested_for_it(queue: Queue) -> None:
    queue.add()
    assert queue.overdue_at(TIMEOUT) is None


def test_the_oldest_overdue_trial_is_returned_until_it_runs(queue: Queue) -> None:
    first, second = queue.add(), queue.add()
    assert [queue.overdue_at(TIMEOUT + 1) for _ in range(3)] == [first] * 3, "Tune asks ten times a second"
    first.status = Trial.RUNNING
    assert queue.overdue_at(TIMEOUT + 2) is second


def test_a_running_or_ended_trial_is_skipped(queue: Queue) -> None:
    for status in (Trial.RUNNING, Trial.TERMINATED, Trial.ERROR):
        queue.add().status = status
    last = queue.add()
    assert queue.overdue_at(TIMEOUT + 1) is last


def test_each_trial_has_its_own_time_limit(queue: Queue) -> None:
    queue.add().status = Trial.RUNNING
    queue.now = TIMEOUT
    late = queue.add()
    assert queue.overdue_at(TIMEOUT + 2) is None
    assert queue.overdue_at(2 * TIMEOUT + 1) is late


def test_a_retried_trial_has_a_shorter_time_limit(queue: Queue) -> None:
    queue.add()
    struck = queue.add(again=True)
    assert queue.overdue_at(RETRY_WAIT_SECONDS) is None
    assert queue.overdue_at(RETRY_WAIT_SECONDS + 1) is struck
