"""The rows of a trial that the table and the page share."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tune_rescon.config import TrialState
from tune_rescon.reporting.rows import headings, ranked, row
from tune_rescon.tuning import StudyResult, TrialCost, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]
MakeCosts = Callable[..., dict[int, TrialCost]]


def test_a_row_has_a_cell_under_every_heading(
    make_result: MakeResult, one_of_each: list[TrialRecord]
) -> None:
    result = make_result(*one_of_each)
    for trial in result.trials:
        assert len(row(result, trial)) == len(headings(result))


def test_row_formats_each_column(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(make_trial(0, TrialState.STOPPED, (0.75, 0.123456)))
    cells = dict(zip(headings(result), row(result, result.trials[0]), strict=True))
    assert cells == {
        "trial": "0",
        "state": "stopped",
        "epochs": "2",
        "val_accuracy": "0.1235",
        "best": "0.75",
        "params M": "0.85",
        "GMACs": "0.125",
        "hours": "2.000",
        "depth": "56",
        "learning_rate": "0.1",
    }


def test_two_objectives_have_a_column_that_marks_the_front(
    make_result: MakeResult, make_trial: MakeTrial, make_costs: MakeCosts
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.7, 0.8))]
    result = make_result(*trials, against="gmacs", costs=make_costs(4.0, 2.0, 1.0))
    column = headings(result).index("front")
    assert [row(result, trial)[column] for trial in trials] == ["*", "", "*"]


@pytest.mark.parametrize("values", [(), (math.nan,)])
def test_a_missing_value_is_a_dash(
    values: tuple[float, ...], make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(
        make_trial(0, TrialState.FAILED, values, {"depth": 56}),
        make_trial(1, parameters={"depth": 92, "drop_path": 0.1}),
    )
    cells = dict(zip(headings(result), row(result, result.trials[0]), strict=True))
    assert (cells["val_accuracy"], cells["best"], cells["drop_path"]) == ("-", "-", "-")


def test_no_trials_no_rows(make_result: MakeResult) -> None:
    assert ranked(make_result()) == []
    assert "val_accuracy" in headings(make_result())


def test_the_best_come_first(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, TrialState.FAILED, ()),
        make_trial(1, TrialState.STOPPED, (0.9,)),
        make_trial(2, values=(0.1, 0.5)),
        make_trial(3, values=(0.1, 0.6)),
    ]
    assert [trial.number for trial in ranked(make_result(*trials))] == [3, 2, 1, 0]
