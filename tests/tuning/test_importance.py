"""The importance of parameters, where the answer is known."""

from __future__ import annotations

import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space, preview
from tune_rescon.tuning import TrialRecord, parameter_importance


def trials(space: Space, count: int) -> dict[int, TrialRecord]:
    rows = enumerate(preview(space, count))
    return {
        number: TrialRecord(
            number=number,
            state=TrialState.FINISHED,
            parameters=row,
            metric=space.metric.name,
            maximize=True,
            values=(0.5,),
        )
        for number, row in rows
    }


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_the_only_parameter_that_matters_comes_first(name: str) -> None:
    space = load_space("att92", ["initial=[]"])
    known = trials(space, 200)
    values = {number: -abs(trial.parameters[name] * 1e3) for number, trial in known.items()}
    shares = parameter_importance(space, known, values)
    assert next(iter(shares)) == name
    assert sum(shares.values()) == pytest.approx(1.0)
    assert set(shares) == set(space.parameters)


@pytest.mark.parametrize(("count", "step"), [(19, 1.0), (40, 0.0)])
def test_too_few_values_have_no_importance(count: int, step: float) -> None:
    space = load_space("digits")
    known = trials(space, count)
    assert parameter_importance(space, known, {number: number * step for number in known}) == {}


@pytest.mark.parametrize("better", [1, 4])
def test_nothing_is_known_of_a_best_tenth_that_equal_values_fill(better: int) -> None:
    """PED-ANOVA would give each parameter the same share."""
    space = load_space("digits")
    known = trials(space, 60)
    values = {number: 0.2 if number < better else 0.1 for number in known}
    assert parameter_importance(space, known, values) == {}
    enough = {number: 0.2 if number < 6 else 0.1 for number in known}
    assert len(set(parameter_importance(space, known, enough).values())) > 1


def test_trials_of_another_space_are_left_out() -> None:
    space = load_space("digits")
    known = trials(load_space("att92", ["initial=[]"]), 40)
    assert parameter_importance(space, known, {number: float(number) for number in known}) == {}
