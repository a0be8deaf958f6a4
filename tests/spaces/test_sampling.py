"""Drawing trials: initial rows, grids, special cases of Optuna, and the points that have not run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler

from tune_rescon.config import TrialConfig, check_field
from tune_rescon.errors import ConfigError
from tune_rescon.spaces import (
    Space,
    count_points,
    distributions,
    free_points,
    from_optuna,
    grid_points,
    pending_rows,
    point_key,
    preview,
    suggest,
    trial_config,
)

LoadChanged = Callable[..., Space]


def test_the_same_seed_gives_the_same_samples(load_changed: LoadChanged) -> None:
    assert preview(load_changed({}), 6) == preview(load_changed({}), 6)
    assert preview(load_changed({}), 6)[1:] != preview(load_changed({}, ("sampler.seed=4",)), 6)[1:]


def test_initial_rows_come_first_in_the_order_of_the_parameters(load_changed: LoadChanged) -> None:
    space = load_changed({17: "  - {drop_path: 0.0, batch_size: 32, learning_rate: 0.1, depth: 92}"})
    first = preview(space, 2)[0]
    assert list(first) == ["depth", "learning_rate", "batch_size", "drop_path"]
    assert preview(space, 0) == []


def test_a_grid_has_every_combination_of_active_values_once(load_changed: LoadChanged) -> None:
    overrides = (
        "sampler.type=grid",
        "initial=[]",
        "parameters.learning_rate={type: categorical, choices: [0.1]}",
        "parameters.batch_size={type: int, low: 16, high: 32, step: 16}",
        "parameters.drop_path.low=0.1",
        "parameters.drop_path.high=0.3",
        "parameters.drop_path.step=0.1",
        "budget.trials=8",
    )
    space = load_changed({}, overrides)
    points = grid_points(space)
    assert points == [
        *({"depth": 56, "learning_rate": 0.1, "batch_size": size} for size in (16, 32)),
        *(
            {"depth": 92, "learning_rate": 0.1, "batch_size": size, "drop_path": rate}
            for size in (16, 32)
            for rate in (0.1, 0.2, 0.3)
        ),
    ]
    assert preview(space, 3) == points[:3]


def test_a_list_choice_round_trips_through_optuna_storage(load_changed: LoadChanged) -> None:
    space = load_changed(
        {14: "  step_fractions: {type: categorical, choices: [[40, 60], [50]]}", 16: "", 17: ""}
    )
    trial = optuna.create_study(sampler=RandomSampler(seed=0)).ask()
    sampled = suggest(space, trial)
    assert sampled["step_fractions"] in ((40, 60), (50,))
    assert from_optuna(space, json.loads(json.dumps(trial.params))) == sampled
    assert trial_config(space, sampled).step_fractions == sampled["step_fractions"]


def test_a_step_keeps_the_upper_bound(load_changed: LoadChanged) -> None:
    """Optuna lowers ``high`` if the step does not divide the range in binary arithmetic."""
    space = load_changed(
        {13: "  learning_rate: {type: float, low: 0.1, high: 0.7, step: 0.2}", 16: "", 17: ""}
    )
    distribution = distributions(space)["learning_rate"]
    assert isinstance(distribution, optuna.distributions.FloatDistribution)
    assert Decimal(str(distribution.high)) == Decimal("0.7")


def test_fields_that_the_space_does_not_name_have_their_default(load_changed: LoadChanged) -> None:
    config = trial_config(load_changed({}), {"depth": 56})
    assert (config.layout, config.momentum, config.depth, config.optimizer) == ("cifar", 0.9, 56, "sgd")


def test_values_of_another_space_are_refused(load_changed: LoadChanged) -> None:
    with pytest.raises(ConfigError, match="unknown parameter 'dropout'"):
        trial_config(load_changed({}), {"dropout": 0.1})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", np.float64(0.1), 0.1),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", Fraction(1, 4), 0.25),
        ("learning_rate", np.int64(1), 1.0),
        ("depth", np.int32(92), 92),
        ("step_fractions", (np.int64(40), 60), (40, 60)),
    ],
)
def test_numbers_of_any_real_type_become_plain_numbers(name: str, value: Any, expected: Any) -> None:
    assert check_field(name, value) is None
    converted = getattr(TrialConfig.from_dict({name: value}), name)
    assert (converted, type(converted)) == (expected, type(expected))
    assert check_field(name, True) is not None


def test_a_range_of_two_adjacent_floats_can_be_sampled(load_changed: LoadChanged) -> None:
    space = load_changed({}, ("parameters.learning_rate={type: float, low: 0.1, high: 0.10000000000000002}",))
    for sampled in preview(space, 8):
        assert type(sampled["learning_rate"]) is float
        trial_config(space, sampled)


FINITE_PARAMETERS = (
    "parameters={depth: {type: categorical, choices: [56, 92]},"
    " drop_path: {type: float, low: 0.1, high: 0.3, step: 0.1, when: {parameter: depth, in: [92]}},"
    " step_fractions: {type: categorical, choices: [[50], [40, 60]]}}"
)


@pytest.fixture
def finite_space(load_changed: LoadChanged) -> Space:
    return load_changed({}, (FINITE_PARAMETERS, "initial=[]"))


def test_points_are_counted_up_to_a_limit(load_changed: LoadChanged, finite_space: Space) -> None:
    assert count_points(finite_space.parameters, most=100) == 2 * (1 + 3)
    assert count_points(finite_space.parameters, most=7) is None
    assert count_points(load_changed({}).parameters, most=100) is None, "a float without step"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"depth": 92, "drop_path": 0.1 + 0.2}, {"depth": 92, "drop_path": 0.3}, True),
        ({"depth": 92, "drop_path": 0.2}, {"depth": 92, "drop_path": 0.3}, False),
        ({"drop_path": 0.2, "depth": 92}, {"depth": 92, "drop_path": 0.2}, True),
        ({"step_fractions": (50,)}, {"step_fractions": "[50]"}, True),
        ({"depth": 56}, {"depth": 92}, False),
    ],
)
def test_a_point_is_the_same_however_it_is_written(
    finite_space: Space, first: dict[str, object], second: dict[str, object], same: bool
) -> None:
    assert (point_key(finite_space.parameters, first) == point_key(finite_space.parameters, second)) is same


def test_true_and_one_have_different_point_keys(load_changed: LoadChanged) -> None:
    space = load_changed({}, ("parameters.flip={type: categorical, choices: [true, false]}", "initial=[]"))
    assert point_key(space.parameters, {"flip": True}) != point_key(space.parameters, {"flip": 1})


def test_free_points_are_those_that_have_not_run(load_changed: LoadChanged, finite_space: Space) -> None:
    all_points = free_points(finite_space.parameters, set(), most=100)
    assert len(all_points) == 8
    run_points = {point_key(finite_space.parameters, point) for point in all_points[:5]}
    assert free_points(finite_space.parameters, run_points, most=100) == all_points[5:]
    assert free_points(finite_space.parameters, run_points, most=1) == all_points[5:6]
    assert free_points(load_changed({}).parameters, set(), most=100) == []


def test_a_row_is_pending_until_it_ran_as_often_as_it_is_listed(finite_space: Space) -> None:
    def key(row: Mapping[str, Any]) -> Hashable:
        return point_key(finite_space.parameters, row)

    small, large = {"depth": 56}, {"depth": 92, "drop_path": 0.1}
    assert pending_rows([small, large], Counter(), key) == [small, large]
    assert pending_rows([small, large], Counter({key(small): 1}), key) == [large]
    assert pending_rows([small, small], Counter({key(small): 1}), key) == [small]
