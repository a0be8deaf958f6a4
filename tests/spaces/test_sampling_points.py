"""Which points a space has, which trials have the same one, and which rows are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pytest

from tune_rescon.spaces import Space, count_points, free_points, pending_rows, point_key

LoadChanged = Callable[..., Space]

FINITE = (
    "parameters={depth: {type: categorical, choices: [56, 92]},"
    " drop_path: {type: float, low: 0.1, high: 0.3, step: 0.1, when: {parameter: depth, in: [92]}},"
    " step_fractions: {type: categorical, choices: [[50], [40, 60]]}}"
)


@pytest.fixture
def finite(load_changed: LoadChanged) -> Space:
    return load_changed({}, (FINITE, "initial=[]"))


def test_points_are_counted_as_far_as_that_matters(load_changed: LoadChanged, finite: Space) -> None:
    assert count_points(finite.parameters, most=100) == 2 * (1 + 3)
    assert count_points(finite.parameters, most=7) is None
    assert count_points(load_changed({}).parameters, most=100) is None, "a float without step"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"depth": 92, "drop_path": 0.1 + 0.2}, {"depth": 92, "drop_path": 0.3}, True),
        ({"depth": 92, "drop_path": 0.2}, {"depth": 92, "drop_path": 0.3}, False),
        ({"drop_path": 0.2, "depth": 92}, {"depth": 92, "drop_path": 0.2}, True),
        ({"step_fractions": (50,)}, {"step_fractions": "[50]"}, True),
        ({"depth": 56}, {"depth": 92}, False),
    ],
)
def test_a_point_is_the_same_however_it_is_written(
    finite: Space, one: dict[str, object], other: dict[str, object], same: bool
) -> None:
    assert (point_key(finite.parameters, one) == point_key(finite.parameters, other)) is same


def test_true_is_not_one(load_changed: LoadChanged) -> None:
    space = load_changed({}, ("parameters.flip={type: categorical, choices: [true, false]}", "initial=[]"))
    assert point_key(space.parameters, {"flip": True}) != point_key(space.parameters, {"flip": 1})


def test_free_points_are_those_that_have_not_run(load_changed: LoadChanged, finite: Space) -> None:
    every = free_points(finite.parameters, set(), most=100)
    assert len(every) == 8
    taken = {point_key(finite.parameters, point) for point in every[:5]}
    assert free_points(finite.parameters, taken, most=100) == every[5:]
    assert free_points(finite.parameters, taken, most=1) == every[5:6]
    assert free_points(load_changed({}).parameters, set(), most=100) == []


def test_a_row_that_has_run_is_not_pending_and_one_that_is_there_twice_runs_twice(finite: Space) -> None:
    def key(row: Mapping[str, Any]) -> Hashable:
        return point_key(finite.parameters, row)

    small, large = {"depth": 56}, {"depth": 92, "drop_path": 0.1}
    assert pending_rows([small, large], Counter(), key) == [small, large]
    assert pending_rows([small, large], Counter({key(small): 1}), key) == [large]
    assert pending_rows([small, small], Counter({key(small): 1}), key) == [small]
