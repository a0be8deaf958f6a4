"""This project's searcher and scheduler under a simulated Tune controller, without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import LANDSCAPES, Assignment, SimulatedSearch, SyntheticCurve, TunePolicy, simulate
from tune_rescon.tuning import Coordinator, Decision, RunOptions, SearchFolder, TrialTask
from tune_rescon.tuning.coordinator import NODE_RETRIES, WORKER_RETRIES
from tune_rescon.tuning.ray.shutdown import DriverLock
from tune_rescon.tuning.ray.tune_adapter import (
    ActorReuse,
    CoordinatorScheduler,
    CoordinatorSearcher,
    trial_task,
)
from tune_rescon.tuning.store import SearchStore

SMALL = ("initial=[]", "budget.trials=20", "fidelity={min: 1, max: 9}", "sampler={type: random, seed: 3}")


@lru_cache
def space(*overrides: str) -> Space:
    return load_space("att92", [*SMALL, *overrides])


@dataclass(kw_only=True)
class TuneSearch:
    """A search, its coordinator, Tune's policy for it, and the training seeds of its trials."""

    search: SimulatedSearch
    coordinator: Coordinator
    policy: TunePolicy
    seeds: dict[int, int] = field(default_factory=dict)

    @property
    def error(self) -> str:
        (trial,) = self.search.trials()
        assert trial.state is TrialState.FAILED
        return trial.error or ""


@dataclass(frozen=True, kw_only=True)
class Task:
    number: int
    parameters: Mapping[str, Any]
    epochs: int = 0


def tune_result(
    number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
) -> dict[str, Any]:
    """A worker's report of an epoch, flattened as by Tune."""
    flat = {f"metrics/{name}": value for name, value in metrics.items()}
    return {"number": number, "epoch": epoch, "checkpoint": checkpoint, **flat}


#: Addresses of lost nodes.
LOST_NODES = {"10.0.0.9"}


def tune_search(search_space: Space) -> TuneSearch:
    search = SimulatedSearch(search_space)
    coordinator = search.policy()
    store = SearchStore(SearchFolder(storage=Path("runs"), name="adapted"))
    make_task = partial(
        trial_task, space=search_space, options=RunOptions(name="adapted"), store=store, digests={}
    )
    lock, processes = DriverLock(lambda: None), ActorReuse(coordinator, resources=None, slots=3)
    seeds: dict[int, int] = {}

    def read(trial_number: int, config: Mapping[str, Any]) -> Task:
        del trial_number
        task = TrialTask.from_dict(config)
        assert seeds.setdefault(task.number, task.seed) == task.seed
        return Task(number=task.number, parameters=task.config.to_dict())

    policy = TunePolicy(
        CoordinatorSearcher(coordinator, make_task, lock),
        CoordinatorScheduler(coordinator, lock, processes, node_is_gone=LOST_NODES.__contains__),
        read=read,
        write=tune_result,
    )
    return TuneSearch(search=search, coordinator=coordinator, policy=policy, seeds=seeds)


def curve(trial: Assignment) -> SyntheticCurve:
    return LANDSCAPES["diverging"].curve(trial.number, trial.parameters)


@pytest.mark.parametrize("scheduler", ["asha", "asha, variant: promote", "median", "none"])
def test_a_search_through_tune_equals_a_direct_search(scheduler: str) -> None:
    search_space = space(f"scheduler={{type: {scheduler}}}")
    search, direct = tune_search(search_space), SimulatedSearch(search_space)
    trace, expected = simulate(search.policy, curve, workers=3), simulate(direct.policy(), curve, workers=3)
    assert [(r.number, r.epoch, r.ended) for r in trace.runs] == [
        (r.number, r.epoch, r.ended) for r in expected.runs
    ]
    states = [trial.state for trial in search.search.trials()]
    assert states == [trial.state for trial in direct.trials()]
    assert all(state.is_final for state in states)


def test_training_seeds_do_not_depend_on_the_number_of_workers() -> None:
    single, parallel = tune_search(space()), tune_search(space())
    simulate(single.policy, curve, workers=1)
    simulate(parallel.policy, curve, workers=5)
    assert single.seeds == parallel.seeds
    assert len(set(single.seeds.values())) == len(single.seeds) == 20


def test_a_promoted_trial_is_stopped_and_started_again_in_tune() -> None:
    search = tune_search(space("scheduler.variant=promote"))
    trace = simulate(search.policy, curve, workers=1)
    paused = [run.number for run in trace.runs if run.decision is Decision.STOP and run.epoch in (1, 3)]
    continued = [run.number for run in trace.runs if run.epoch in (2, 4)]
    assert set(paused) & set(continued)


def test_tune_waits_while_a_promotion_depends_on_running_trials() -> None:
    search = tune_search(space("scheduler.variant=promote", "budget.trials=2"))
    for number in (0, 1):
        trial = search.policy.next_trial()
        assert trial is not None
        assert trial.number == number
    assert search.policy.next_trial() is None
    assert not search.policy.no_more_trials, "None, and not Searcher.FINISHED"


def started_search() -> TuneSearch:
    """A search of one trial that has reported one epoch."""
    search = tune_search(space("budget.trials=1"))
    trial = search.policy.next_trial()
    assert trial is not None
    assert search.policy.epoch_done(0, 1, {"val_accuracy": 0.5}, "best.ckpt") is Decision.CONTINUE
    return search


def test_an_error_that_a_worker_reports_ends_its_trial() -> None:
    search = started_search()
    report = {"number": 0, "state": "failed", "error": "Traceback: it broke"}
    assert search.policy.report(0, report) is Decision.STOP
    assert search.error == "Traceback: it broke"


def test_a_trial_whose_worker_died_is_retried_up_to_a_limit() -> None:
    search = started_search()
    for _ in range(WORKER_RETRIES):
        search.policy.worker_failed(0)
        retried = search.policy.next_trial()
        assert retried is not None
        assert retried.number == 0
    search.policy.worker_failed(0)
    assert "worker process died" in search.error
    assert search.policy.next_trial() is None
    assert search.policy.no_more_trials


def test_worker_and_node_failures_have_separate_retry_limits() -> None:
    search = started_search()
    for _ in range(WORKER_RETRIES):
        search.policy.worker_failed(0, on="10.0.0.8")
        assert search.policy.next_trial() is not None
    for _ in range(NODE_RETRIES):
        search.policy.worker_failed(0, on="10.0.0.9")
        assert search.policy.next_trial() is not None
    search.policy.worker_failed(0, on="10.0.0.9")
    assert search.error == f"its node was lost, after {NODE_RETRIES} retries"
    assert search.policy.next_trial() is None
    assert search.policy.no_more_trials


def test_a_preempted_worker_does_not_count_as_dead() -> None:
    search = started_search()
    for _ in range(NODE_RETRIES + 1):
        report = {"number": 0, "note": "told to end", "preempted": True}
        assert search.policy.report(0, report) is Decision.CONTINUE
        search.policy.worker_failed(0)
        retried = search.policy.next_trial()
        assert retried is not None
        assert retried.number == 0
    for _ in range(WORKER_RETRIES + 1):
        search.policy.worker_failed(0)
        search.policy.next_trial()
    assert "worker process died" in search.error


def test_a_trial_whose_function_returns_early_has_failed() -> None:
    search = started_search()
    search.policy.end(0)
    assert search.error == "training ended early"


def test_a_note_is_recorded_without_an_epoch() -> None:
    search = started_search()
    assert search.policy.report(0, {"number": 0, "note": "now in 2 micro-batches"}) is Decision.CONTINUE
    (trial,) = search.search.trials()
    assert (trial.notes, trial.epochs) == (("now in 2 micro-batches",), 1)


def test_an_interrupt_stops_the_trial_and_exhausts_the_search() -> None:
    search = started_search()
    search.coordinator.interrupt()
    assert search.policy.epoch_done(0, 2, {"val_accuracy": 0.6}, "best.ckpt") is Decision.STOP
    assert search.policy.next_trial() is None
    assert search.policy.no_more_trials
    (trial,) = search.search.trials()
    assert trial.state is TrialState.INTERRUPTED


def test_the_pickled_searcher_and_scheduler_are_empty() -> None:
    search = started_search()
    for part in (search.policy._searcher, search.policy._scheduler):
        assert pickle.loads(pickle.dumps(part)).__dict__ == {}
