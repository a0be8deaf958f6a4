"""Failures of workers and nodes, trials that run out of memory, and too many failures in a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from optuna.trial import TrialState as OptunaState

from tests.tuning.coordinating import (
    RecordingCallback,
    Study,
    coordinator,
    metrics,
    next_number,
)
from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import SimulatedSearch
from tune_rescon.tuning import CostModel, Decision
from tune_rescon.tuning.assembly import make_plan
from tune_rescon.tuning.space_versions import SpaceVersions


def test_a_trial_whose_worker_dies_is_retried_three_times() -> None:
    study, callback = Study(), RecordingCallback()
    search = coordinator(study, total=2, callbacks=(callback,))
    number = next_number(search)
    search.epoch_done(number, 1, metrics(0.5), None)
    for _ in range(3):
        search.worker_failed(number)
        assert next_number(search) == number
    assert callback.events.count(f"{number} starts at 1") == 3
    search.worker_failed(number)
    assert study.trials[number].state is OptunaState.FAIL
    assert list(study.trials[number].intermediate_values) == [1]
    assert next_number(search) != number
    search.worker_failed(number)
    assert callback.events[-1] == "1 starts at 0", "an ended trial is not run again"


def test_a_search_is_not_exhausted_while_a_trial_awaits_its_retry() -> None:
    study = Study()
    search = coordinator(study, total=1)
    number = next_number(search)
    assert search.next_trial() is None
    search.worker_failed(number)
    assert not search.no_more_trials
    search.interrupt()
    search.interrupt_remaining()
    assert study.trials[number].user_attrs["state"] == "interrupted"


@pytest.mark.parametrize(
    ("node_is_gone", "times", "message"), [(True, 20, "node"), (False, 3, "worker process")]
)
def test_a_lost_node_allows_more_retries_than_a_dead_worker(
    node_is_gone: bool, times: int, message: str
) -> None:
    study = Study()
    search = coordinator(study, total=1)
    number = next_number(search)
    for _ in range(times):
        search.worker_failed(number, node_is_gone=node_is_gone)
        assert next_number(search) == number
    search.worker_failed(number, node_is_gone=node_is_gone)
    assert study.trials[number].user_attrs["state"] == "failed"
    error = study.trials[number].user_attrs["error"]
    assert message in error
    assert f"after {times} retries" in error


def test_retries_after_a_preemption_are_not_limited() -> None:
    search = coordinator(Study(), total=1)
    number = next_number(search)
    for _ in range(30):
        search.worker_preempted(number)
        assert next_number(search) == number
    search.close(number, TrialState.FAILED, error="died")
    search.worker_preempted(number)
    assert search.next_trial() is None, "the trial has ended"


def test_abort_ends_the_search_and_interrupts_its_trials() -> None:
    study = Study()
    search = coordinator(study, total=9)
    first, second = next_number(search), next_number(search)
    search.epoch_done(first, 1, metrics(0.5), None)
    search.abort(second, "no GPU")
    search.abort(second, "a later reason")
    assert search.failure == "no GPU"
    assert search.no_more_trials
    assert search.next_trial() is None
    assert search.epoch_done(first, 2, metrics(0.5), None) is Decision.STOP
    search.interrupt_remaining()
    assert [trial.user_attrs["state"] for trial in study.trials] == ["interrupted"] * 2
    resumed_search = coordinator(study, total=9)
    assert resumed_search.failure is None
    assert {next_number(resumed_search), next_number(resumed_search)} == {first, second}, (
        "the trial runs on a machine with enough memory"
    )


def memory_key(parameters: Mapping[str, Any]) -> int:
    """Two kinds of trials, one of which needs too much memory."""
    return int(parameters["learning_rate"] > 0.3)


def test_a_configuration_that_ran_out_of_memory_is_not_run_again() -> None:
    study = Study()
    search = coordinator(study, total=10, same_memory=memory_key)
    while (trial := search.next_trial()) is not None:
        if memory_key(trial.parameters):
            search.close(trial.number, TrialState.OUT_OF_MEMORY, error="out of memory")
        else:
            search.epoch_done(trial.number, 1, metrics(math.nan), None)
    states = [trial.user_attrs["state"] for trial in study.trials]
    assert states.count("out_of_memory") == 1
    assert states.count("diverged") == 9


def test_a_trial_that_cannot_fit_is_closed_without_running() -> None:
    study = Study()
    search = coordinator(study, total=3, same_memory=lambda _: 1)
    search.close(next_number(search), TrialState.OUT_OF_MEMORY, error="out of memory")
    assert search.next_trial() is None
    assert search.no_more_trials
    assert [trial.user_attrs["state"] for trial in study.trials] == ["out_of_memory"] * 3
    assert study.trials[1].user_attrs["error"].startswith("not run: trial 0, ")


def test_a_resumed_search_knows_which_trials_ran_out_of_memory() -> None:
    study = Study()
    search = coordinator(study, total=4, same_memory=memory_key)
    kinds = set()
    for _ in range(4):
        trial = search.next_trial()
        if trial is None:
            break
        kind = memory_key(trial.parameters)
        kinds.add(kind)
        if kind:
            search.close(trial.number, TrialState.OUT_OF_MEMORY, error="out of memory")
        else:
            search.epoch_done(trial.number, 1, metrics(math.nan), None)
    assert kinds == {0, 1}, "one ran out of memory, others diverged"
    resumed = coordinator(study, total=12, same_memory=memory_key)
    later = []
    while (trial := resumed.next_trial()) is not None:
        later.append(memory_key(trial.parameters))
        resumed.close(trial.number, TrialState.DIVERGED)
    assert later
    assert set(later) == {0}


def test_a_trial_counts_by_the_devices_with_which_it_ran_out_of_memory() -> None:
    """It was drawn when each trial had a GPU, and ran out of memory on half of one after a resume."""
    whole, half = (load_space("att92", ["initial=[]", f"resources_per_trial.gpu={gpu}"]) for gpu in (1, 0.5))
    study = Study()
    number = next_number(coordinator(study, space=whole))
    resumed = coordinator(study, space=half, version=2)
    assert next_number(resumed) == number
    resumed.close(number, TrialState.OUT_OF_MEMORY, error="out of memory")
    record = study.record()
    for spaces, counts in (((whole, half), True), ((whole, half, whole), False)):
        plan = make_plan(
            CostModel(space=spaces[-1], datasets={}),
            record,
            SpaceVersions(spaces=spaces),
            elapsed_seconds=0.0,
            now=0.0,
        )
        assert plan.version == len(spaces)
        assert plan.same_devices(record.trial(number)) is counts


@pytest.mark.parametrize("kind", ["grid", "tpe"])
def test_points_that_ran_out_of_memory_run_again_with_other_devices(kind: str) -> None:
    """Trial 1 was closed without running, because its network needs the memory that trial 0 lacked."""
    settings = [
        f"sampler.type={kind}",
        "initial=[]",
        "fixed={layout: cifar, depth: 56}",
        "parameters={learning_rate: {type: categorical, choices: [0.1, 0.2]}}",
        "budget.trials=8",
    ]
    half, whole = (load_space("digits", [*settings, f"resources_per_trial.gpu={gpu}"]) for gpu in (0.5, 1))
    search = SimulatedSearch(half)
    before = search.policy()
    before.close(next_number(before), TrialState.OUT_OF_MEMORY, error="out of memory")
    assert before.next_trial() is None
    assert before.space_is_exhausted
    assert search.policy().next_trial() is None, "the same devices have no more memory"
    search.change(whole)
    after = search.policy()
    started = [after.next_trial(), after.next_trial()]
    assert {trial.parameters["learning_rate"] for trial in started if trial} == {0.1, 0.2}
    assert after.next_trial() is None


def test_without_a_memory_key_no_configuration_is_ruled_out() -> None:
    study = Study()
    search = coordinator(study, total=3)
    search.close(next_number(search), TrialState.OUT_OF_MEMORY, error="out of memory")
    assert [next_number(search), next_number(search)] == [1, 2]


def test_five_failures_in_a_row_end_the_search_and_interrupt_running_trials() -> None:
    study = Study()
    search = coordinator(study)
    running = next_number(search)
    for _ in range(5):
        search.close(next_number(search), TrialState.FAILED, error="Traceback\nValueError: no such layer")
    assert search.failure is not None
    assert "all with ValueError: no such layer" in search.failure
    assert search.no_more_trials
    assert search.next_trial() is None
    assert search.epoch_done(running, 1, metrics(0.5), None) is Decision.STOP
    assert study.trials[running].user_attrs["state"] == "interrupted"


def test_trials_that_break_a_constraint_do_not_end_the_search() -> None:
    """They were enqueued, and are closed without running."""
    study = Study()
    search = coordinator(study, total=8, violation=lambda _: "its network is too large")
    assert search.next_trial() is None
    assert [trial.user_attrs["state"] for trial in study.trials] == ["failed"] * 8
    assert search.failure is None


def test_a_trial_that_ends_well_does_not_clear_the_searchs_failure() -> None:
    search = coordinator(Study())
    running = next_number(search)
    for _ in range(5):
        search.close(next_number(search), TrialState.FAILED, error="died")
    failure = search.failure
    search.close(running, TrialState.STOPPED)
    assert failure is not None
    assert search.failure == failure
