"""The time left, as shown while simulated searches ran, compared with the time that they then took."""

from __future__ import annotations

import dataclasses
import heapq
import random

import pytest

from tune_rescon.config import TrialState
from tune_rescon.metric_names import METRICS
from tune_rescon.reporting.live_state import GaugeValues, LiveTotals
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import SyntheticCurve
from tune_rescon.tuning import Decision, Observation, TrialRecord, make_stopping_rule

SLOTS = 8

STATES = {Decision.STOP: TrialState.STOPPED, Decision.FINISH: TrialState.FINISHED}


class Simulation:
    """A search whose epochs take about ten seconds each, on eight slots."""

    def __init__(self, space: Space, seed: int) -> None:
        self._rng = random.Random(seed)
        self._space, self._rule = space, make_stopping_rule(space)
        self._state = LiveTotals(space, "s")
        self._events: list[tuple[float, int]] = []
        self._trials: dict[int, TrialRecord] = {}
        self._limits: dict[int, float] = {}
        self.estimates: list[tuple[float, float | None]] = []
        """(end of an epoch, the time left that was shown then), in seconds."""
        self.end = 0.0

    def run(self) -> None:
        for _ in range(SLOTS):
            self._start(0.0)
        while self._events:
            now, number = heapq.heappop(self._events)
            self._epoch(number, now)
            self.estimates.append((now, self._state.snapshot(GaugeValues(slots=SLOTS)).seconds_left))
            self.end = now

    def _start(self, now: float) -> None:
        number = len(self._trials)
        if number == self._space.budget.trials:
            return
        self._trials[number] = TrialRecord(
            number=number,
            state=TrialState.RUNNING,
            parameters={},
            metric=self._space.metric.name,
            maximize=True,
            values=(),
        )
        self._limits[number] = self._rng.uniform(0.2, 0.95)
        self._state.on_trial_start(self._trials[number], now)
        self._plan(number, now)

    def _plan(self, number: int, now: float) -> None:
        heapq.heappush(self._events, (now + self._rng.uniform(8, 12), number))

    def _epoch(self, number: int, now: float) -> None:
        epoch = self._trials[number].epochs + 1
        value = SyntheticCurve(limit=self._limits[number]).at(epoch)
        metrics = {**dict.fromkeys(METRICS, 0.5), self._space.metric.name: value}
        trial = self._trials[number] = self._trials[number].extended(metrics)
        self._state.on_epoch(trial, metrics, now)
        decision = self._rule.judge(Observation(number=number, epoch=epoch, value=value)).decision
        if decision is Decision.CONTINUE:
            self._plan(number, now)
        else:
            self._state.on_trial_end(dataclasses.replace(trial, state=STATES[decision]))
            self._start(now)


@pytest.mark.parametrize("scheduler", ["asha", "none", "median"])
@pytest.mark.parametrize("seed", range(3))
def test_time_left_is_accurate_after_a_third_of_the_search(scheduler: str, seed: int) -> None:
    simulation = Simulation(
        load_space("digits", ["budget.trials=120", f"scheduler.type={scheduler}", "fidelity.max=27"]), seed
    )
    simulation.run()
    for now, time_left in simulation.estimates:
        if simulation.end / 3 < now:
            assert time_left is not None
            error = time_left - (simulation.end - now)
            assert abs(error) < 0.35 * simulation.end, (
                f"{time_left:.0f} s at {now:.0f} of {simulation.end:.0f}"
            )
    assert simulation.estimates[-1][1] == 0
