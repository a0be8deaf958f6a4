"""The number of processes in Tune's actor cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.utils.object_cache import _ObjectCache

from tune_rescon.tuning import Coordinator
from tune_rescon.tuning.ray.tune_adapter import ActorReuse

RESOURCES = "a placement group factory"


class FakeCoordinator:
    """The attribute of a coordinator that is read."""

    exhausted = False


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
    search.exhausted = True
    processes.keep(SimpleNamespace(_tune_controller=SimpleNamespace(_actor_cache=cache)))
    assert cache.total_max_objects == 0
    assert list(cache.flush_cached_objects()) == [0, 1, 2]
