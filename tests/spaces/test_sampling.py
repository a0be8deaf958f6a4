"""Drawing trials: initial rows, grids, and special cases of Optuna."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    distributions,
    from_optuna,
    grid_points,
    preview,
    suggest,
    trial_config,
)

LoadChanged = Callable[..., Space]


def test_the_same_seed_draws_the_same(load_changed: LoadChanged) -> None:
    assert preview(load_changed({}), 6) == preview(load_changed({}), 6)
    assert preview(load_changed({}), 6)[1:] != preview(load_changed({}, ("sampler.seed=4",)), 6)[1:]


def test_initial_rows_come_first_in_the_order_of_the_parameters(load_changed: LoadChanged) -> None:
    space = load_changed({17: "  - {drop_path: 0.0, batch_size: 32, learning_rate: 0.1, depth: 92}"})
    first = preview(space, 2)[0]
    assert list(first) == ["depth", "learning_rate", "batch_size", "drop_path"]
    assert preview(space, 0) == []


def test_a_grid_is_every_combination_of_active_values_once(load_changed: LoadChanged) -> None:
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


def test_a_list_among_choices_survives_a_storage(load_changed: LoadChanged) -> None:
    space = load_changed(
        {14: "  step_fractions: {type: categorical, choices: [[40, 60], [50]]}", 16: "", 17: ""}
    )
    trial = optuna.create_study(sampler=RandomSampler(seed=0)).ask()
    sampled = suggest(space, trial)
    assert sampled["step_fractions"] in ((40, 60), (50,))
    assert from_optuna(space, json.loads(json.dumps(trial.params))) == sampled
    assert trial_config(space, sampled).step_fractions == sampled["step_fractions"]


def test_a_step_keeps_the_upper_bound(load_changed: LoadChanged) -> None:
    """Optuna lowers ``high`` where binary arithmetic says that a step does not divide the range."""
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
    ("name", "value", "plain"),
    [
        ("learning_rate", np.float64(0.1), 0.1),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", Fraction(1, 4), 0.25),
        ("learning_rate", np.int64(1), 1.0),
        ("depth", np.int32(92), 92),
        ("step_fractions", (np.int64(40), 60), (40, 60)),
    ],
)
def test_a_number_of_any_real_type_is_a_number(name: str, value: Any, plain: Any) -> None:
    assert check_field(name, value) is None
    kept = getattr(TrialConfig.from_dict({name: value}), name)
    assert (kept, type(kept)) == (plain, type(plain))
    assert check_field(name, True) is not None


def test_a_range_of_two_neighbouring_floats_can_be_drawn_from(load_changed: LoadChanged) -> None:
    space = load_changed({}, ("parameters.learning_rate={type: float, low: 0.1, high: 0.10000000000000002}",))
    for sampled in preview(space, 8):
        assert type(sampled["learning_rate"]) is float
        trial_config(space, sampled)
