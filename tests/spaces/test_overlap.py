"""Warm starts: which trials of another search fit this space, and the message about the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tune_rescon.errors import ConfigError
from tune_rescon.spaces import Overlap, Space, overlap, overlap_message

LoadChanged = Callable[..., Space]

DEEP_TRIAL = {"depth": 92, "learning_rate": 0.1, "batch_size": 32, "drop_path": 0.1}
SHALLOW_TRIAL = {"depth": 56, "learning_rate": 0.1, "batch_size": 32}

_FEWER_PARAMETERS = "parameters={depth: {type: categorical, choices: [56, 92]}}"
_DATASETS = "parameters={dataset: {type: categorical, choices: [digits, cifar10]}}"
_STEPS = "parameters.step_fractions={type: categorical, choices: [[40, 60], [50]]}"
_CLIP = "parameters.gradient_clip={type: int, low: 0, high: 2}"

#: Overrides of this space, overrides of the other one, the other one's trial, the converted trial.
COMPATIBLE: list[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], dict[str, Any]]] = [
    ((), (), DEEP_TRIAL, DEEP_TRIAL),
    ((), (), SHALLOW_TRIAL, SHALLOW_TRIAL),
    (("parameters.learning_rate.low=0.05",), (), DEEP_TRIAL, DEEP_TRIAL),
    # A default that only one of them writes out.
    (("fixed.nesterov=true",), (), DEEP_TRIAL, DEEP_TRIAL),
    ((), ("fixed.weight_decay=1e-4",), DEEP_TRIAL, DEEP_TRIAL),
    # The sampler, the scheduler, the budget and the resources do not matter.
    (
        ("sampler.type=random", "scheduler.type=none", "fidelity.min=3", "budget.trials=1"),
        (),
        DEEP_TRIAL,
        DEEP_TRIAL,
    ),
    (("resources_per_trial.cpu=2", "name=x", "metric.against=gmacs"), (), DEEP_TRIAL, DEEP_TRIAL),
    # Fixed in one space and searched in the other.
    ((_FEWER_PARAMETERS, "fixed.learning_rate=0.1", "fixed.batch_size=32"), (), SHALLOW_TRIAL, {"depth": 56}),
    ((), (_FEWER_PARAMETERS, "fixed.learning_rate=0.1", "fixed.batch_size=32"), {"depth": 56}, SHALLOW_TRIAL),
    # Inactive in the other space, where the trial ran with the default.
    (
        ("parameters.drop_path={type: float, low: 0.0, high: 0.2}",),
        (),
        SHALLOW_TRIAL,
        SHALLOW_TRIAL | {"drop_path": 0.0},
    ),
    (
        (_DATASETS, "fixed.depth=56", "fixed.batch_size=32"),
        (_FEWER_PARAMETERS, "fixed.batch_size=32"),
        {"depth": 56},
        {"dataset": "digits"},
    ),
    ((_STEPS,), ("fixed.step_fractions=[50]",), SHALLOW_TRIAL, SHALLOW_TRIAL | {"step_fractions": (50,)}),
    ((_CLIP,), ("fixed.gradient_clip=1",), SHALLOW_TRIAL, SHALLOW_TRIAL | {"gradient_clip": 1}),
]

#: Overrides of this space, overrides of the other one, the other one's trial, the reason.
INCOMPATIBLE: list[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], str]] = [
    (("parameters.learning_rate.high=0.05",), (), DEEP_TRIAL, "outside learning_rate"),
    (("parameters.batch_size={type: categorical, choices: [16, 64]}",), (), DEEP_TRIAL, "outside batch_size"),
    (
        ("parameters.batch_size.step=32", "parameters.batch_size.high=48"),
        (),
        DEEP_TRIAL,
        "outside batch_size",
    ),
    ((_CLIP,), ("fixed.gradient_clip=1.5",), SHALLOW_TRIAL, "outside gradient_clip"),
    ((_STEPS,), ("fixed.step_fractions=[50, 75]",), SHALLOW_TRIAL, "outside step_fractions"),
    # If a parent's value is outside, its dependents are not compared.
    (
        ("parameters.depth.choices=[56, 128]", "parameters.drop_path.when.in=[128]"),
        (),
        DEEP_TRIAL,
        "outside depth",
    ),
    (("fixed.momentum=0.8",), (), DEEP_TRIAL, "differ in momentum"),
    (("fixed.weight_decay=1e-3",), (), DEEP_TRIAL, "differ in weight_decay"),
    (("fixed.momentum=0.8", "fixed.flip=false"), (), DEEP_TRIAL, "differ in momentum, flip"),
    # Active in the other space only.
    (("parameters.drop_path.when.in=[56]",), (), DEEP_TRIAL, "differ in drop_path"),
    ((_FEWER_PARAMETERS,), (), SHALLOW_TRIAL, "differ in batch_size"),
    (("fidelity.max=27",), (), DEEP_TRIAL, "differ in fidelity.max"),
    (("metric={name: val_loss, mode: min}",), (), DEEP_TRIAL, "differ in metric.name"),
    # Two functions with the same name.
    (
        ("metric={name: val_score, mode: max, log: ['ours.metrics:score']}",),
        ("metric={name: val_score, mode: max, log: ['theirs.metrics:score']}",),
        DEEP_TRIAL,
        "differ in the function of val_score",
    ),
    (
        ("dataset.limit=100", "dataset.split_seed=1"),
        (),
        DEEP_TRIAL,
        "differ in dataset.split_seed, dataset.limit",
    ),
    (("dataset.name=cifar10",), (), DEEP_TRIAL, "differ in dataset"),
    ((_DATASETS, "dataset.limit=9", "fixed.batch_size=32"), (), SHALLOW_TRIAL, "differ in dataset.limit"),
    (
        ("parameters.learning_rate.high=0.05", "fixed.momentum=0.8"),
        (),
        DEEP_TRIAL,
        "differ in momentum",
    ),
]


def _changed_space(load_changed: LoadChanged, overrides: tuple[str, ...]) -> Space:
    return load_changed({}, ("initial=[]", *overrides))


@pytest.mark.parametrize(("ours", "theirs", "sampled", "expected"), COMPATIBLE)
def test_a_compatible_trial_is_converted_to_this_space(
    load_changed: LoadChanged,
    ours: tuple[str, ...],
    theirs: tuple[str, ...],
    sampled: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    result = overlap(_changed_space(load_changed, ours), _changed_space(load_changed, theirs), sampled)
    assert result == Overlap(sampled=expected)
    assert result.sampled is not None
    assert list(result.sampled) == list(expected)
    assert [type(value) for value in result.sampled.values()] == [type(v) for v in expected.values()]


@pytest.mark.parametrize(("ours", "theirs", "sampled", "reason"), INCOMPATIBLE)
def test_an_incompatible_trial_has_a_reason(
    load_changed: LoadChanged,
    ours: tuple[str, ...],
    theirs: tuple[str, ...],
    sampled: dict[str, Any],
    reason: str,
) -> None:
    result = overlap(_changed_space(load_changed, ours), _changed_space(load_changed, theirs), sampled)
    assert result.sampled is None
    assert result.reason == reason


def test_a_trial_with_an_unknown_parameter_is_refused(load_changed: LoadChanged) -> None:
    with pytest.raises(ConfigError, match="unknown parameter 'dropout'"):
        overlap(_changed_space(load_changed, ()), _changed_space(load_changed, ()), {"dropout": 0.1})


def test_overlap_message_counts_trials_by_most_common_reason() -> None:
    used = Overlap(sampled=DEEP_TRIAL)
    differs = Overlap(sampled=None, differs=("batch_size",))
    outside = Overlap(sampled=None, outside=("depth", "learning_rate"))
    differs_and_outside = Overlap(sampled=None, differs=("batch_size",), outside=("depth",))
    assert overlap_message("first", [outside, used, differs, differs_and_outside]) == (
        "used 1 of 4 trials of first: 2 differ in batch_size, 1 outside depth, learning_rate"
    )
    assert overlap_message("first", [used]) == "used 1 of 1 trial of first"
    assert overlap_message("first", []) == "used 0 of 0 trials of first"
