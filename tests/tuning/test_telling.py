"""What samplers are told, state by state."""

from __future__ import annotations

import math

import pytest
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.tuning import TrialSummary
from tune_rescon.tuning.telling import Told, told


def trial(state: str, *values: float, cost: float | None = None) -> TrialSummary:
    return TrialSummary(
        number=0,
        state=TrialState(state),
        parameters={},
        metric="val_accuracy",
        maximize=True,
        values=values,
        cost=cost,
    )


COMPLETE, PRUNED, FAIL = OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL


@pytest.mark.parametrize(
    ("ended", "sampler", "expected"),
    [
        (trial("finished", 0.5, 0.7), "tpe", Told(state=COMPLETE, values=(0.7,))),
        (trial("finished", 0.5, 0.7), "gp", Told(state=COMPLETE, values=(0.7,))),
        (trial("stopped", 0.5, 0.6), "tpe", Told(state=PRUNED, values=(0.6,), steps=((2, 0.6),))),
        (trial("stopped", 0.5, 0.6), "cmaes", Told(state=COMPLETE, values=(0.6,))),
        (trial("stopped", 0.6, cost=2.0), "tpe", Told(state=COMPLETE, values=(0.6, 2.0))),
        (trial("finished", 0.6, cost=2.0), "nsga2", Told(state=COMPLETE, values=(0.6, 2.0))),
        (trial("failed", 0.6), "tpe", Told(state=FAIL)),
        (trial("failed"), "gp", Told(state=FAIL)),
    ],
)
def test_a_trial_with_a_value(ended: TrialSummary, sampler: str, expected: Told) -> None:
    assert told(ended, sampler, worst=0.1) == expected


@pytest.mark.parametrize("state", ["diverged", "out_of_memory"])
@pytest.mark.parametrize(
    ("sampler", "worst", "expected"),
    [
        ("tpe", 0.1, Told(state=PRUNED)),
        ("tpe", None, Told(state=PRUNED)),
        ("gp", 0.1, Told(state=COMPLETE, values=(0.1,))),
        ("cmaes", None, Told(state=FAIL)),
    ],
)
def test_one_that_did_not_work_is_the_worst(
    state: str, sampler: str, worst: float | None, expected: Told
) -> None:
    assert told(trial(state, 0.5, math.nan), sampler, worst=worst) == expected
