"""The worker processes that Tune keeps, and which pending trial gets a free one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache

from tune_rescon.tuning import Coordinator
from tune_rescon.tuning.ray.tune_adapter import RETRY_WAIT_SECONDS, WAIT_SECONDS, ActorReuse, PendingTrials

RESOURCES = "a placement group factory"


class FakeCoordinator:
    """The attribute of a coordinator that is read."""

    no_more_trials = False


@pytest.fixture
def cache() -> Any:
    return _ObjectCache(may_keep_one=True)


def with_actor_reuse(cache: Any, search: FakeCoordinator, slots: int, rounds: int = 1) -> ActorReuse:
    processes = ActorReuse(cast(Coordinator, search), resources=RESOURCES, slots=slots)
    for _ in range(rounds):
        processes.keep(SimpleNamespace(_tune_controller=SimpleNamespace(_actor_cache=cache)))
    return processes


def test_tune_alone_keeps_one_idle_process(cache: Any) -> None:
    assert [cache.cache_object(RESOURCES, number) for number in range(3)] == [True, False, False]


@pytest.mark.parametrize("rounds", [1, 5])
def test_a_process_is_kept_for_each_slot(cache: Any, rounds: int) -> None:
    with_actor_reuse(cache, FakeCoordinator(), slots=3, rounds=rounds)
    assert [cache.cache_object(RESOURCES, number) for number in range(4)] == [True, True, True, False]
    assert list(cache.flush_cached_objects()) == []


def test_processes_are_released_once_no_trial_follows(cache: Any) -> None:
    search = FakeCoordinator()
    processes = with_actor_reuse(cache, search, slots=3)
    for number in range(3):
        cache.cache_object(RESOURCES, number)
    search.no_more_trials = True
    processes.keep(SimpleNamespace(_tune_controller=SimpleNamespace(_actor_cache=cache)))
    assert cache.total_max_objects == 0
    assert list(cache.flush_cached_objects()) == [0, 1, 2]


class PendingTrialsOnFakeClock:
    """Pending trials on a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.trials = PendingTrials(clock=lambda: self.now)

    def add(self, *, again: bool = False) -> Any:
        trial: Any = SimpleNamespace(status=Trial.PENDING)
        self.trials.add(trial, again=again)
        return trial

    def overdue_at(self, now: float) -> Any:
        self.now = now
        return self.trials.overdue()


@pytest.fixture
def pending() -> PendingTrialsOnFakeClock:
    return PendingTrialsOnFakeClock()


def test_without_trials_none_is_overdue(pending: PendingTrialsOnFakeClock) -> None:
    assert pending.overdue_at(10 * WAIT_SECONDS) is None


def test_a_trial_waits_for_the_process_requested_for_it(pending: PendingTrialsOnFakeClock) -> None:
    pending.add()
    assert pending.overdue_at(WAIT_SECONDS) is None


def test_the_oldest_overdue_trial_is_returned_until_it_runs(pending: PendingTrialsOnFakeClock) -> None:
    first, second = pending.add(), pending.add()
    assert [pending.overdue_at(WAIT_SECONDS + 1) for _ in range(3)] == [first] * 3, (
        "Tune polls ten times per second"
    )
    first.status = Trial.RUNNING
    assert pending.overdue_at(WAIT_SECONDS + 2) is second


def test_a_running_or_ended_trial_is_skipped(pending: PendingTrialsOnFakeClock) -> None:
    for status in (Trial.RUNNING, Trial.TERMINATED, Trial.ERROR):
        pending.add().status = status
    last = pending.add()
    assert pending.overdue_at(WAIT_SECONDS + 1) is last


def test_each_trial_has_its_own_time_limit(pending: PendingTrialsOnFakeClock) -> None:
    pending.add().status = Trial.RUNNING
    pending.now = WAIT_SECONDS
    waiting_trial = pending.add()
    assert pending.overdue_at(WAIT_SECONDS + 2) is None
    assert pending.overdue_at(2 * WAIT_SECONDS + 1) is waiting_trial


def test_a_retried_trial_has_a_shorter_time_limit(pending: PendingTrialsOnFakeClock) -> None:
    pending.add()
    retried = pending.add(again=True)
    assert pending.overdue_at(RETRY_WAIT_SECONDS) is None
    assert pending.overdue_at(RETRY_WAIT_SECONDS + 1) is retried
