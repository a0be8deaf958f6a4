"""Trials and results that tests build, and one simulated search."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, Assignment, SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning import SearchState, StudyResult, TrialCost, TrialRecord, best_trial

SETTINGS = ("initial=[]", "budget.trials=80", "fidelity.max=9", "sampler.type=random")

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]


@pytest.fixture
def make_trial() -> MakeTrial:
    def make(
        number: int,
        state: TrialState = TrialState.FINISHED,
        values: tuple[float, ...] = (0.25, 0.5),
        parameters: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> TrialRecord:
        return TrialRecord(
            number=number,
            state=state,
            parameters={"depth": 56, "learning_rate": 0.1} if parameters is None else parameters,
            metric="val_accuracy",
            maximize=True,
            values=values,
            history={"epoch_seconds": (1800.0,) * len(values)},
            error=error,
        )

    return make


@pytest.fixture
def make_result(tmp_path: Path) -> MakeResult:
    def make(*trials: TrialRecord, **changes: Any) -> StudyResult:
        result = StudyResult(
            name="s",
            space=load_space("digits"),
            folder=tmp_path / "s",
            metric="val_accuracy",
            maximize=True,
            trials=trials,
            costs={trial.number: TrialCost(params_m=0.85, gmacs=0.125) for trial in trials},
            devices_per_trial=2,
            device="CPU",
            rungs=(1, 2),
            best=best_trial(trials),
            best_config={},
            state=SearchState.FINISHED,
            tracking_uri="http://localhost:5000",
            pending_updates=0,
        )
        return dataclasses.replace(result, **changes)

    return make


@pytest.fixture
def make_costs() -> Callable[..., dict[int, TrialCost]]:
    """The costs of trials 0, 1, ... by their GMACs."""

    def make(*gmacs: float) -> dict[int, TrialCost]:
        return {number: TrialCost(params_m=1.0, gmacs=each) for number, each in enumerate(gmacs)}

    return make


@pytest.fixture
def trials_of_every_state(make_trial: MakeTrial) -> list[TrialRecord]:
    """A trial in every state; some of them ended before their first epoch."""
    values = {
        TrialState.FINISHED: (0.25, 0.5),
        TrialState.DIVERGED: (0.25, math.nan),
        TrialState.OUT_OF_MEMORY: (),
        TrialState.FAILED: (),
    }
    states = [*TrialState, TrialState.FAILED, TrialState.STOPPED]
    trials = [make_trial(n, state, values.get(state, (0.25,))) for n, state in enumerate(states)]
    return [*trials[:-2], make_trial(len(states) - 2, TrialState.FAILED, (0.125,)), trials[-1]]


@pytest.fixture(scope="session")
def simulated() -> StudyResult:
    """A search of 80 trials on 8 workers, of which some diverge, some crash, and many are stopped."""
    space, landscape = load_space("att92", SETTINGS), LANDSCAPES["diverging"]

    def curve(trial: Assignment) -> SyntheticCurve:
        curve = landscape.curve(trial.number, trial.parameters)
        return dataclasses.replace(curve, crashes_at=2) if trial.number % 9 == 4 else curve

    simulation = Simulation(curve, workers=8)
    search = SimulatedSearch(space, clock=simulation.clock)
    simulation.drive(search.policy())
    return search.result(Path("runs") / "att92")
