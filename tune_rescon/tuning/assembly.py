"""Assemble a search: its plan from its space, and the coordinator that carries out the plan.

:func:`.run_search` and the simulation (:mod:`tune_rescon.testing`) both use this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence

from tune_rescon.config import TrialConfig, TrialState
from tune_rescon.spaces import Space, first_rows, to_optuna
from tune_rescon.tuning.callbacks import SearchCallback
from tune_rescon.tuning.constraints import violation_of
from tune_rescon.tuning.coordinator import Coordinator, SearchPlan
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.ended_trials import CHECKPOINTS_KEPT
from tune_rescon.tuning.resources import memory_signature
from tune_rescon.tuning.sampler import SearchSampler
from tune_rescon.tuning.space_versions import SpaceVersions, had_devices
from tune_rescon.tuning.stopping.rule import StoppingRule
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import TrialRecord
from tune_rescon.tuning.warm_start import warm_start_trials

__all__ = ["make_coordinator", "make_plan"]


def make_plan(
    costs: CostModel,
    record: StudyRecord,
    versions: SpaceVersions,
    *,
    elapsed_seconds: float,
    now: float,
    check_lease: Callable[[], None] = lambda: None,
) -> SearchPlan:
    """Return the plan of one run of a search.

    Args:
        costs: The space to search, and the costs of its networks.
        record: The durable record, which keeps what the constraints have measured.
        versions: The spaces that the search has had, the newest last.
        elapsed_seconds: Seconds of the budget that are used, including earlier runs.
        now: The current time in seconds, on the clock of the coordinator.
        check_lease: Called before the record is written. It raises if the record belongs to another driver.
    """
    space, hours = costs.space, costs.space.budget.hours
    seconds = None if hours is None else hours * 3600
    return SearchPlan(
        total=space.budget.trials,
        # The hours count all runs together: a resumed search that is given more has the difference left.
        deadline=None if seconds is None else now + seconds - elapsed_seconds,
        seconds=seconds,
        group=_group_of(space),
        cost=costs.second_objective if space.metric.against else None,
        device_count=space.resources_per_trial.devices,
        keep=None if space.metric.of_test_images else CHECKPOINTS_KEPT,
        violation=violation_of(costs, record),
        version=versions.number,
        same_devices=had_devices(versions),
        same_memory=lambda config: memory_signature(TrialConfig.from_dict(config)),
        check_lease=check_lease,
    )


def make_coordinator(
    plan: SearchPlan,
    record: StudyRecord,
    rule: StoppingRule,
    versions: SpaceVersions,
    *,
    callbacks: Sequence[SearchCallback] = (),
    prune: Callable[[int, str | None], None],
    clock: Callable[[], float] = time.monotonic,
) -> Coordinator:
    """Create the coordinator of a search on the trials that its record holds; the caller starts it.

    Args:
        plan: The result of :func:`make_plan` for the newest space.
        record: The durable record.
        rule: The stopping rule. It must not have seen any value yet.
        versions: The spaces that the search has had, the newest last.
        callbacks: Receive every event, in the given order.
        prune: Deletes all checkpoints of a trial except the given file.
        clock: Returns monotonic time in seconds.
    """
    space, trials = versions.newest, record.trials()
    out_of_memory = (trial for trial in trials if trial.state is TrialState.OUT_OF_MEMORY)
    sampler = SearchSampler(
        space,
        initial_points=[to_optuna(row) for row in first_rows(space)],
        warm_start_trials=warm_start_trials(record),
        existing_trials=trials,
        # They ran with other devices, so they say nothing about the memory that trials have now.
        forgotten=[trial.number for trial in out_of_memory if not plan.same_devices(trial)],
        versions=versions,
        violation=plan.violation,
    )
    return Coordinator(plan, record, rule, sampler, callbacks=callbacks, prune=prune, clock=clock)


def _group_of(space: Space) -> Callable[[TrialRecord], Hashable]:
    """Return the function that gives a trial's group; a rung compares trials of the same group only."""
    name = space.scheduler.group_by

    def group(trial: TrialRecord) -> Hashable:
        return None if name is None or trial.origin is None else trial.origin.config[name]

    return group
