"""The simulator itself: time, workers and deaths, with a minimal policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tune_rescon.config import TrialState
from tune_rescon.testing import Assignment, Simulation, SyntheticCurve, WorkerDeaths, simulate
from tune_rescon.tuning import Decision


@dataclass(kw_only=True)
class FakeTrial:
    number: int
    epochs: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class TrainAll:
    """Trains trials 0..total-1 to their last epoch; ``reported`` and ``closed`` are the state to resume."""

    total: int
    epochs: int = 3
    reported: dict[int, list[int]] = field(default_factory=dict)
    closed: dict[int, str] = field(default_factory=dict)
    waits: bool = False
    max_deaths: int = 1000
    deaths: int = 0

    def __post_init__(self) -> None:
        unfinished = [n for n in self.reported if n not in self.closed]
        self._queue = [*unfinished, *range(len(self.reported), self.total)]

    @property
    def no_more_trials(self) -> bool:
        return not self._queue

    def next_trial(self) -> FakeTrial | None:
        if self.waits or not self._queue:
            return None
        number = self._queue.pop(0)
        return FakeTrial(number=number, epochs=len(self.reported.setdefault(number, [])))

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        del metrics, checkpoint
        if epoch > len(self.reported[number]):
            self.reported[number].append(epoch)
        if epoch == self.epochs:
            self.closed[number] = "finished"
            return Decision.FINISH
        return Decision.CONTINUE

    def close(self, number: int, state: TrialState, *, error: str | None = None) -> None:
        del state
        self.closed[number] = error or ""

    def worker_failed(self, number: int) -> None:
        self.deaths += 1
        if self.deaths > self.max_deaths:
            self.closed[number] = "given up"
        else:
            self._queue.insert(0, number)


def steady(trial: Assignment) -> SyntheticCurve:
    return SyntheticCurve(limit=0.5 + 0.01 * trial.number, epoch_seconds=10.0)


@pytest.mark.parametrize(
    ("trials", "workers", "seconds", "utilisation"),
    [(4, 1, 120.0, 1.0), (4, 2, 60.0, 1.0), (4, 4, 30.0, 1.0), (4, 8, 30.0, 0.5), (3, 2, 60.0, 0.75)],
)
def test_more_workers_take_less_time(trials: int, workers: int, seconds: float, utilisation: float) -> None:
    trace = simulate(TrainAll(total=trials), steady, workers=workers)
    assert (trace.seconds, trace.utilisation, trace.epochs_spent) == (seconds, utilisation, 3 * trials)
    assert all(trace.epochs_of(number) == (1, 2, 3) for number in range(trials))


def test_events_are_ordered_by_time_with_unequal_epoch_costs() -> None:
    def workload(trial: Assignment) -> SyntheticCurve:
        return SyntheticCurve(limit=0.9, epoch_seconds=(10.0, 4.0)[trial.number])

    trace = simulate(TrainAll(total=2), workload)
    assert [(run.number, run.ended) for run in trace.runs] == [
        (1, 4.0),
        (1, 8.0),
        (0, 10.0),
        (1, 12.0),
        (0, 20.0),
        (0, 30.0),
    ]


def test_the_clock_advances_with_the_events() -> None:
    simulation = Simulation(steady, workers=1)
    assert simulation.clock() == 0.0
    simulation.drive(TrainAll(total=1))
    assert simulation.clock() == 30.0


def test_a_free_worker_takes_the_next_trial() -> None:
    trace = simulate(TrainAll(total=3, epochs=1), steady, workers=2)
    assert [(run.number, run.worker, run.begun) for run in trace.runs] == [(0, 0, 0), (1, 1, 0), (2, 0, 10)]


def test_a_search_that_waits_while_nothing_runs_raises() -> None:
    with pytest.raises(RuntimeError, match="nothing runs that could bring one"):
        simulate(TrainAll(total=1, waits=True), steady)


def test_a_crashed_trial_is_closed_and_its_worker_continues() -> None:
    def workload(trial: Assignment) -> SyntheticCurve:
        return SyntheticCurve(limit=0.9, crashes_at=2 if trial.number == 0 else 0)

    policy = TrainAll(total=2)
    trace = simulate(policy, workload, workers=1)
    assert policy.closed == {0: "crashed on purpose", 1: "finished"}
    assert (trace.epochs_of(0), trace.epochs_of(1)) == ((1,), (1, 2, 3))
    assert trace.epochs_spent == 5


def test_a_dead_worker_loses_half_an_epoch_and_its_trial_resumes() -> None:
    simulation = Simulation(steady, workers=1, worker_deaths=WorkerDeaths(rate=0.3, seed=1))
    policy = TrainAll(total=20)
    simulation.drive(policy)
    trace = simulation.trace
    lost = [run for run in trace.runs if run.decision is None]
    assert lost
    assert all(run.ended - run.begun == 5.0 for run in lost)
    assert all(math.isnan(run.value) for run in lost)
    assert set(policy.closed.values()) == {"finished"}
    assert all(trace.epochs_of(number) == (1, 2, 3) for number in range(20))
    assert trace.seconds == 20 * 30 + 5.0 * len(lost)
    assert trace.utilisation == pytest.approx(600 / trace.seconds)


def test_the_policy_gives_up_a_trial_whose_worker_always_dies() -> None:
    simulation = Simulation(steady, workers=1, worker_deaths=WorkerDeaths(rate=1.0))
    policy = TrainAll(total=1, max_deaths=2)
    simulation.drive(policy)
    assert policy.closed == {0: "given up"}
    assert simulation.trace.epochs_spent == 3


@pytest.mark.parametrize("reports", range(1, 12))
def test_a_new_driver_continues_after_the_driver_dies(reports: int) -> None:
    simulation, policy = Simulation(steady), TrainAll(total=4)
    simulation.drive(policy, reports=reports)
    assert sum(len(epochs) for epochs in policy.reported.values()) == reports
    simulation.drive(TrainAll(total=4, reported=policy.reported, closed=policy.closed))
    assert policy.reported == {number: [1, 2, 3] for number in range(4)}


def test_a_report_lost_with_its_driver_is_repeated_from_the_checkpoint() -> None:
    simulation, policy = Simulation(steady), TrainAll(total=2)
    simulation.drive(policy, reports=1)
    # Trial 1 was about to report its first epoch; trial 0 had just begun its second.
    simulation.drive(TrainAll(total=2, reported=policy.reported, closed=policy.closed))
    assert policy.reported == {0: [1, 2, 3], 1: [1, 2, 3]}
    repeated = next(run for run in simulation.trace.runs if (run.number, run.epoch) == (1, 1))
    assert (repeated.begun, repeated.ended) == (10.0, 10.0), "the epoch is reported, not run again"


def test_incumbents_are_ranked_by_epoch_and_then_by_value() -> None:
    trace = simulate(TrainAll(total=2, epochs=2), steady, workers=2)
    incumbents = [(i.epochs_spent, i.seconds, i.number, i.epoch) for i in trace.incumbents()]
    assert incumbents == [(1, 10.0, 0, 1), (2, 10.0, 1, 1), (3, 20.0, 0, 2), (4, 20.0, 1, 2)]


def test_a_diverged_epoch_is_never_the_incumbent() -> None:
    trace = simulate(TrainAll(total=1), lambda _: SyntheticCurve(limit=0.9, diverges_at=2))
    assert [incumbent.epoch for incumbent in trace.incumbents()] == [1]
