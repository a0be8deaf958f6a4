"""A complete search without Ray: a policy, any number of workers, and a clock that jumps from event to event.

Workers and drivers die on request. As in a real search, two things survive: each trial's checkpoint, which is
written before its epoch is reported, and the record of the policy.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection

from tune_rescon.config import TrialState
from tune_rescon.data import describe
from tune_rescon.metric_names import METRICS
from tune_rescon.spaces import Space, dump_space
from tune_rescon.testing.policy import Assignment, SearchPolicy
from tune_rescon.testing.trainables import EpochRun, Trace
from tune_rescon.tuning import (
    Coordinator,
    CostModel,
    Decision,
    SearchFolder,
    SearchState,
    StoppingRule,
    StudyRecord,
    StudyResult,
    TrialRecord,
    build_result,
    datasets_of,
    make_stopping_rule,
    resolve_data_root,
    write_atomically,
)
from tune_rescon.tuning.assembly import make_coordinator, make_plan
from tune_rescon.tuning.resume import check_changes
from tune_rescon.tuning.space_versions import read_versions, record_version
from tune_rescon.tuning.study import METRIC_AT

__all__ = ["SimulatedSearch", "Simulation", "WorkerDeaths", "Workload", "simulate"]


class SimulatedSearch:
    """A search of ``space``: its sampler, its stopping rule, its budget, and a record in memory."""

    def __init__(
        self,
        space: Space,
        *,
        rule: Callable[[], StoppingRule] | None = None,
        clock: Callable[[], float] | None = None,
        folder: SearchFolder | None = None,
        slots: int = 1,
    ) -> None:
        """Create the record.

        Args:
            space: the space to search.
            rule: returns the stopping rule to use instead of the space's.
            clock: returns the simulated seconds, by which the epochs of the record are timed and a budget in
                hours ends. Without it, the budget's hours are ignored.
            folder: where the record and the space are stored, as in a real search; None: in memory.
            slots: number of trials that run at once; the scheduler ``auto`` plans with it.
        """
        self._space = space
        self._rule = rule or (lambda: make_stopping_rule(self._space, slots=slots))
        self._clock = clock
        self._now_ms = None if clock is None else _from_now(clock)
        self._storage: BaseStorage = InMemoryStorage()
        if folder is not None:
            folder.path.mkdir(parents=True)
            write_atomically(folder.space_yaml, dump_space(space))
            self._storage = RDBStorage(folder.study_url)
        better = StudyDirection.MAXIMIZE if space.metric.mode == "max" else StudyDirection.MINIMIZE
        objectives = [better, StudyDirection.MINIMIZE] if space.metric.against else [better]
        name = folder.name if folder else space.name
        self._study_id = self._storage.create_new_study(objectives, name)
        self._storage.set_study_user_attr(self._study_id, METRIC_AT, space.metric.at)
        self._versions = record_version(self._record(), None, space)

    def change(self, space: Space) -> None:
        """Make the next :meth:`policy` resume the search with another space.

        Raises:
            SpaceError: the trials of the search do not allow this change.
        """
        record = self._record()
        before = read_versions(record, lambda: self._space)
        check_changes(space.name, before.newest, space, record.trials())
        self._versions = record_version(record, before, space)
        self._space = space

    def policy(self) -> Coordinator:
        """Return a driver's coordinator: new, or resuming from the trials in the record."""
        record, now = self._record(), self._clock() if self._clock else 0.0
        return make_coordinator(
            make_plan(self._costs, record, self._versions, elapsed_seconds=now, now=now),
            record,
            self._rule(),
            self._versions,
            prune=lambda _number, _keep: None,
            clock=self._clock or time.monotonic,
        ).start()

    def trials(self) -> tuple[TrialRecord, ...]:
        """Read all trials from the record again."""
        return self._record().trials()

    def result(self, folder: Path, state: SearchState = SearchState.FINISHED) -> StudyResult:
        """Return the result of the search, which gives ``folder`` as the directory of the search's files."""
        return build_result(
            self._costs, self.trials(), name=self._space.name, folder=folder, state=state, tracking_uri=""
        )

    @property
    def _costs(self) -> CostModel:
        space = self._space
        if self._clock is None:
            timeless = space.budget.model_copy(update={"hours": None})
            space = space.model_copy(update={"budget": timeless})
        datasets = {
            dataset.name: describe(dataset, data_root=resolve_data_root()) for dataset in datasets_of(space)
        }
        return CostModel(space=space, datasets=datasets)

    def _record(self) -> StudyRecord:
        return StudyRecord.on_storage(
            self._storage, self._study_id, metric=self._space.metric.name, now_ms=self._now_ms
        )


def _from_now(clock: Callable[[], float]) -> Callable[[], int]:
    """Return a function that gives milliseconds since 1970, at the pace of ``clock``."""
    begun = time.time() - clock()
    return lambda: round((begun + clock()) * 1000)


class Curve(Protocol):
    """What the simulator asks of a trial's learning curve; :class:`.SyntheticCurve` is one."""

    @property
    def epoch_seconds(self) -> float:
        """The duration of an epoch."""

    @property
    def crashes_at(self) -> int:
        """The epoch during which the trial's code raises; 0: it never raises."""

    def at(self, epoch: int) -> float:
        """Return the metric reported after ``epoch`` epochs."""


Workload = Callable[[Assignment], Curve]
"""Returns the learning curve that a trial will report, when the trial is handed out."""


@dataclass(frozen=True, kw_only=True)
class WorkerDeaths:
    """Worker processes that are killed in the middle of an epoch."""

    rate: float
    """The fraction of epochs that kill their worker, 0..1."""
    seed: int = 0

    def kills(self, number: int, epoch: int, deaths: int) -> bool:
        """Return whether an epoch kills its worker.

        Args:
            number: the trial.
            epoch: the epoch that the worker runs.
            deaths: how many workers the trial has lost before.
        """
        return (
            self.rate > 0 and np.random.default_rng((self.seed, number, epoch, deaths)).random() < self.rate
        )


NO_DEATHS: Final = WorkerDeaths(rate=0.0)


def simulate(
    policy: SearchPolicy, workload: Workload, *, workers: int = 2, reports: int | None = None
) -> Trace:
    """Run a search to its end, or until its driver is killed.

    Args:
        policy: the search.
        workload: the learning curve of each trial.
        workers: the number of workers.
        reports: kill the driver after this many reports; None: never.

    Returns:
        Every epoch that ran.
    """
    simulation = Simulation(workload, workers=workers)
    simulation.drive(policy, reports=reports)
    return simulation.trace


class Simulation:
    """Workers, a clock and a disk. They survive a driver: call :meth:`drive` again to resume the search."""

    def __init__(
        self, workload: Workload, *, workers: int = 2, worker_deaths: WorkerDeaths = NO_DEATHS
    ) -> None:
        """Set up the simulation; nothing runs yet.

        Args:
            workload: the learning curve of each trial.
            workers: the number of workers.
            worker_deaths: the epochs that kill their worker.
        """
        self._workload = workload
        self._workers = workers
        self._worker_deaths = worker_deaths
        self._world = _World()

    def clock(self) -> float:
        """Return the simulated seconds so far. A policy with a deadline uses this clock."""
        return self._world.now

    @property
    def trace(self) -> Trace:
        """Every epoch that has run so far, under all drivers."""
        return Trace(workers=self._workers, runs=tuple(self._world.runs))

    def drive(
        self,
        policy: SearchPolicy,
        *,
        reports: int | None = None,
        until: Callable[[float, int], bool] | None = None,
    ) -> None:
        """Run ``policy``'s trials until none is left or its driver is killed after ``reports`` reports.

        The driver dies after the policy has decided and before the driver acts on the decision. Its workers
        die with it. The worker whose report is next has already written its checkpoint; the other workers
        lose their current epoch.

        Args:
            policy: the search.
            reports: kill the driver after this many reports; None: never.
            until: returns whether the search ends, given the simulated time of the next event and the number
                of epochs reported so far, each counted once; None: it ends by itself.

        Raises:
            RuntimeError: the policy hands out no trial and no trial runs, but the policy is not exhausted.
        """
        driver = _Driver(self._world, policy, self._workload, self._workers, self._worker_deaths)
        while driver.fill():
            if driver.reports == reports:
                driver.die()
                return
            if until is not None and until(driver.next_event, len(self._world.reported)):
                return
            driver.step()


@dataclass(kw_only=True)
class _World:
    """The state that survives a driver."""

    now: float = 0.0
    saved: dict[int, int] = field(default_factory=dict)
    """Epochs in each trial's checkpoint."""
    deaths: Counter[int] = field(default_factory=Counter)
    """Workers that each trial has lost."""
    reported: set[tuple[int, int]] = field(default_factory=set)
    """Trial number and epoch of every report that a policy has received."""
    runs: list[EpochRun] = field(default_factory=list)


@dataclass(kw_only=True)
class _Running:
    """A trial on a worker, in the middle of an epoch."""

    trial: Assignment
    had: int
    """Epochs that the trial had reported when it was handed out."""
    curve: Curve
    worker: int
    epoch: int = 0
    begun: float = 0.0
    repeats: bool = False
    """True if the epoch is in the checkpoint already and only its report is missing."""
    dies: bool = False


class _Driver:
    """One driver from start to death: the trial on each worker, and the next event."""

    def __init__(
        self,
        world: _World,
        policy: SearchPolicy,
        workload: Workload,
        workers: int,
        worker_deaths: WorkerDeaths,
    ) -> None:
        self._world = world
        self._policy = policy
        self._workload = workload
        self._worker_deaths = worker_deaths
        self._idle = list(reversed(range(workers)))
        self._events: list[tuple[float, int, _Running]] = []
        self._order = itertools.count()
        self.reports = 0

    def fill(self) -> bool:
        """Give a trial to every idle worker while the policy has trials; return whether any trial runs."""
        while self._idle and (trial := self._policy.next_trial()) is not None:
            self._world.saved[trial.number] = max(self._world.saved.get(trial.number, 0), trial.epochs)
            # The policy may count the epochs in the same trial object, so the count is copied now.
            had, curve = trial.epochs, self._workload(trial)
            self._resume(_Running(trial=trial, had=had, curve=curve, worker=self._idle.pop()))
        if not self._events and not self._policy.no_more_trials:
            raise RuntimeError("the policy waits for an event, but nothing runs that could bring one")
        return bool(self._events)

    @property
    def next_event(self) -> float:
        """The simulated time of the next event."""
        return self._events[0][0]

    def step(self) -> None:
        """Advance to the next event: an epoch ends, kills its worker, or raises."""
        self._world.now, _, run = heapq.heappop(self._events)
        if run.dies or run.epoch == run.curve.crashes_at:
            self._lose(run)
        else:
            self._report(run)

    def die(self) -> None:
        """Lose all running epochs, except the one whose checkpoint is written already."""
        _, _, next_one = self._events[0]
        survives = not next_one.dies and next_one.epoch != next_one.curve.crashes_at
        if survives:
            self._world.saved[next_one.trial.number] = next_one.epoch
        for _, _, run in self._events:
            if not run.repeats and not (survives and run is next_one):
                self._log(run, None)

    def _resume(self, run: _Running) -> None:
        """Resume from the checkpoint, and report its last epoch again, whose report may have been lost."""
        saved = self._world.saved[run.trial.number]
        self._begin(run, max(saved, 1), repeats=saved > 0)

    def _begin(self, run: _Running, epoch: int, *, repeats: bool = False) -> None:
        run.epoch, run.repeats, run.begun = epoch, repeats, self._world.now
        number = run.trial.number
        run.dies = not repeats and self._worker_deaths.kills(number, epoch, self._world.deaths[number])
        share = 0.0 if repeats else 0.5 if run.dies else 1.0
        ends = self._world.now + share * run.curve.epoch_seconds
        heapq.heappush(self._events, (ends, next(self._order), run))

    def _report(self, run: _Running) -> None:
        number, value = run.trial.number, run.curve.at(run.epoch)
        self._world.saved[number] = run.epoch
        self.reports += 1
        checkpoint = f"best_{number}.ckpt"
        decision = self._policy.epoch_done(number, run.epoch, _metrics(value, run.curve), checkpoint)
        # A report that an earlier driver lost arrives here as a repetition, but it is new to the record.
        if run.epoch > run.had and (number, run.epoch) not in self._world.reported:
            self._world.reported.add((number, run.epoch))
            self._log(run, decision, value)
        if decision is Decision.CONTINUE:
            self._begin(run, run.epoch + 1)
        else:
            self._idle.append(run.worker)

    def _lose(self, run: _Running) -> None:
        """Lose the epoch of a worker that dies, or whose trial raises."""
        number = run.trial.number
        self._log(run, None)
        if run.dies:
            self._world.deaths[number] += 1
            self._policy.worker_failed(number)
        else:
            self._policy.close(number, TrialState.FAILED, error="crashed on purpose")
        self._idle.append(run.worker)

    def _log(self, run: _Running, decision: Decision | None, value: float = math.nan) -> None:
        self._world.runs.append(
            EpochRun(
                number=run.trial.number,
                epoch=run.epoch,
                worker=run.worker,
                begun=run.begun,
                ended=self._world.now,
                value=value,
                decision=decision,
            )
        )


def _metrics(value: float, curve: Curve) -> Mapping[str, float]:
    """Return the metrics that a trial with this accuracy reports; the losses are 1 minus the accuracy."""
    known = {"val_accuracy": value, "val_loss": 1 - value, "train_loss": 1 - value}
    return {**dict.fromkeys(METRICS, 1.0), **known, "epoch_seconds": curve.epoch_seconds}
