"""One simulated search, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tune_rescon.spaces import Space
from tune_rescon.testing import Assignment, Landscape, SearchPolicy, Simulation, SyntheticCurve, Trace

#: Relative distance from the best known value that counts as found.
NEAR = 0.01


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All values are without noise: what a configuration is worth, not what it happened to report."""

    epochs: int
    """Epochs of all trials together."""
    epochs_to_near: float
    """Epochs spent until a trial that is within :data:`NEAR` of the best known had trained to the end; inf:
    none did."""
    quality: float
    """The chosen trial's last-epoch value over the best known; chosen: furthest, then the best value."""
    quality_of_last: float
    """The same where the trial is chosen that reported the best last value, however early it was stopped:
    Ray's ``ResultGrid.get_best_result``."""
    diverged: int
    """Trials that reported a value that is not finite."""
    seconds: float
    """Simulated."""


class _Curves:
    """The workload of a simulation: gives each trial its curve, and keeps its parameters."""

    def __init__(self, landscape: Landscape) -> None:
        self._landscape = landscape
        self.seen: dict[int, Mapping[str, Any]] = {}

    def __call__(self, trial: Assignment) -> SyntheticCurve:
        self.seen[trial.number] = trial.parameters
        return self._landscape.curve(trial.number, trial.parameters)

    def worth(self, space: Space, best_known: float) -> dict[int, float]:
        """Return each trial's last-epoch value without noise, over the best known."""
        last = space.fidelity.max
        return {n: self._landscape.value(p, last) / best_known for n, p in self.seen.items()}


def run(
    policy: SearchPolicy, space: Space, landscape: Landscape, best_known: float, *, workers: int
) -> Outcome:
    """One search of ``space`` to its end."""
    curves = _Curves(landscape)
    simulation = Simulation(curves, workers=workers)
    simulation.drive(policy)
    return measure(simulation.trace, curves.worth(space, best_known), space.fidelity.max)


def run_for(
    seconds: float,
    make: Callable[[Callable[[], float]], SearchPolicy],
    space: Space,
    landscape: Landscape,
    best_known: float,
    *,
    workers: int,
) -> Outcome:
    """One search of ``space`` that is cut after a number of simulated seconds.

    The quality is the value of the best epoch in hand, finished or not: the checkpoint that a user would
    have. ``make`` gets the simulated clock.
    """
    curves = _Curves(landscape)
    simulation = Simulation(curves, workers=workers)
    simulation.drive(make(simulation.clock), until=lambda next_event, _: next_event > seconds)
    runs = [each for each in simulation.trace.runs if math.isfinite(each.value)]
    best = max(runs, key=lambda each: each.value)
    in_hand = landscape.value(curves.seen[best.number], best.epoch) / best_known
    outcome = measure(simulation.trace, curves.worth(space, best_known), space.fidelity.max)
    return replace(outcome, quality=in_hand)


def measure(trace: Trace, worth: Mapping[int, float], last_epoch: int) -> Outcome:
    """``worth``: each trial's last-epoch value without noise, over the best known."""
    last_values = {run.number: run.value for run in trace.runs if math.isfinite(run.value)}
    by_last = max(last_values, key=lambda number: last_values[number])
    *_, incumbent = trace.incumbents()
    near = (
        float(spent)
        for spent, run in enumerate(trace.runs, 1)
        if run.epoch == last_epoch and worth[run.number] >= 1 - NEAR
    )
    return Outcome(
        epochs=trace.epochs_spent,
        epochs_to_near=next(near, math.inf),
        quality=worth[incumbent.number],
        quality_of_last=worth[by_last],
        diverged=len({run.number for run in trace.runs if run.decision and not math.isfinite(run.value)}),
        seconds=trace.seconds,
    )
