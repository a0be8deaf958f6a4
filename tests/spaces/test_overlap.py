"""Warm starts: which trials of another search fit this space, and the message about the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tune_rescon.errors import ConfigError
from tune_rescon.spaces import Overlap, Space, overlap, overlap_message

LoadChanged = Callable[..., Space]

DEEP = {"depth": 92, "learning_rate": 0.1, "batch_size": 32, "drop_path": 0.1}
SHALLOW = {"depth": 56, "learning_rate": 0.1, "batch_size": 32}

_FEWER = "parameters={depth: {type: categorical, choices: [56, 92]}}"
_DATASETS = "parameters={dataset: {type: categorical, choices: [digits, cifar10]}}"
_STEPS = "parameters.step_fractions={type: categorical, choices: [[40, 60], [50]]}"
_CLIP = "parameters.gradient_clip={type: int, low: 0, high: 2}"

#: What this space changes of VALID_YAML, the other one's changes, the trial there, and the trial here.
USED: list[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], dict[str, Any]]] = [
    ((), (), DEEP, DEEP),
    ((), (), SHALLOW, SHALLOW),
    (("parameters.learning_rate.low=0.05",), (), DEEP, DEEP),
    # Written out here, a default there.
    (("fixed.nesterov=true",), (), DEEP, DEEP),
    ((), ("fixed.weight_decay=1e-4",), DEEP, DEEP),
    # Who drew it, who might have stopped it, and what it ran on.
    (("sampler.type=random", "scheduler.type=none", "fidelity.min=3", "budget.trials=1"), (), DEEP, DEEP),
    (("resources_per_trial.cpu=2", "name=x", "metric.against=gmacs"), (), DEEP, DEEP),
    # Fixed here and searched there, or the other way.
    ((_FEWER, "fixed.learning_rate=0.1", "fixed.batch_size=32"), (), SHALLOW, {"depth": 56}),
    ((), (_FEWER, "fixed.learning_rate=0.1", "fixed.batch_size=32"), {"depth": 56}, SHALLOW),
    # Always searched here; there it was not active, and so at its default.
    (("parameters.drop_path={type: float, low: 0.0, high: 0.2}",), (), SHALLOW, SHALLOW | {"drop_path": 0.0}),
    (
        (_DATASETS, "fixed.depth=56", "fixed.batch_size=32"),
        (_FEWER, "fixed.batch_size=32"),
        {"depth": 56},
        {"dataset": "digits"},
    ),
    ((_STEPS,), ("fixed.step_fractions=[50]",), SHALLOW, SHALLOW | {"step_fractions": (50,)}),
    ((_CLIP,), ("fixed.gradient_clip=1",), SHALLOW, SHALLOW | {"gradient_clip": 1}),
]

#: The same, and why there is no such trial here.
NOT_USED: list[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], str]] = [
    (("parameters.learning_rate.high=0.05",), (), DEEP, "outside learning_rate"),
    (("parameters.batch_size={type: categorical, choices: [16, 64]}",), (), DEEP, "outside batch_size"),
    (
        ("parameters.batch_size.step=32", "parameters.batch_size.high=48"),
        (),
        DEEP,
        "outside batch_size",
    ),
    ((_CLIP,), ("fixed.gradient_clip=1.5",), SHALLOW, "outside gradient_clip"),
    ((_STEPS,), ("fixed.step_fractions=[50, 75]",), SHALLOW, "outside step_fractions"),
    # What hangs on a parent that has no such value is not compared: only the parent is named.
    (
        ("parameters.depth.choices=[56, 128]", "parameters.drop_path.when.in=[128]"),
        (),
        DEEP,
        "outside depth",
    ),
    (("fixed.momentum=0.8",), (), DEEP, "differ in momentum"),
    (("fixed.weight_decay=1e-3",), (), DEEP, "differ in weight_decay"),
    (("fixed.momentum=0.8", "fixed.flip=false"), (), DEEP, "differ in momentum, flip"),
    # Active there, not here.
    (("parameters.drop_path.when.in=[56]",), (), DEEP, "differ in drop_path"),
    ((_FEWER,), (), SHALLOW, "differ in batch_size"),
    (("fidelity.max=27",), (), DEEP, "differ in fidelity.max"),
    (("metric={name: val_loss, mode: min}",), (), DEEP, "differ in metric.name"),
    # Two functions of one name.
    (
        ("metric={name: val_score, mode: max, log: ['ours.metrics:score']}",),
        ("metric={name: val_score, mode: max, log: ['theirs.metrics:score']}",),
        DEEP,
        "differ in the function of val_score",
    ),
    (("dataset.limit=100", "dataset.split_seed=1"), (), DEEP, "differ in dataset.split_seed, dataset.limit"),
    (("dataset.name=cifar10",), (), DEEP, "differ in dataset"),
    ((_DATASETS, "dataset.limit=9", "fixed.batch_size=32"), (), SHALLOW, "differ in dataset.limit"),
    (
        ("parameters.learning_rate.high=0.05", "fixed.momentum=0.8"),
        (),
        DEEP,
        "differ in momentum",
    ),
]


def _space(load_changed: LoadChanged, overrides: tuple[str, ...]) -> Space:
    return load_changed({}, ("initial=[]", *overrides))


@pytest.mark.parametrize(("ours", "theirs", "sampled", "expected"), USED)
def test_a_compatible_trial_is_converted_to_this_space(
    load_changed: LoadChanged,
    ours: tuple[str, ...],
    theirs: tuple[str, ...],
    sampled: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    placed = overlap(_space(load_changed, ours), _space(load_changed, theirs), sampled)
    assert placed == Overlap(sampled=expected)
    assert placed.sampled is not None
    assert list(placed.sampled) == list(expected)
    assert [type(value) for value in placed.sampled.values()] == [type(v) for v in expected.values()]


@pytest.mark.parametrize(("ours", "theirs", "sampled", "reason"), NOT_USED)
def test_an_incompatible_trial_has_a_reason(
    load_changed: LoadChanged,
    ours: tuple[str, ...],
    theirs: tuple[str, ...],
    sampled: dict[str, Any],
    reason: str,
) -> None:
    placed = overlap(_space(load_changed, ours), _space(load_changed, theirs), sampled)
    assert placed.sampled is None
    assert placed.reason == reason


def test_a_trial_with_an_unknown_parameter_is_refused(load_changed: LoadChanged) -> None:
    with pytest.raises(ConfigError, match="unknown parameter 'dropout'"):
        overlap(_space(load_changed, ()), _space(load_changed, ()), {"dropout": 0.1})


def test_overlap_message_counts_trials_by_most_common_reason() -> None:
    used = Overlap(sampled=DEEP)
    differs = Overlap(sampled=None, differs=("batch_size",))
    strange = Overlap(sampled=None, outside=("depth", "learning_rate"))
    both = Overlap(sampled=None, differs=("batch_size",), outside=("depth",))
    assert overlap_message("first", [strange, used, differs, both]) == (
        "used 1 of 4 trials of first: 2 differ in batch_size, 1 outside depth, learning_rate"
    )
    assert overlap_message("first", [used]) == "used 1 of 1 trial of first"
    assert overlap_message("first", []) == "used 0 of 0 trials of first"
