"""Properties of any valid space: samples obey it, Optuna stores its values, its file reads back equal."""

from __future__ import annotations

import math
from typing import Any, Final

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.samplers import RandomSampler

from tune_rescon.metric_names import METRICS, metric_mode
from tune_rescon.spaces import (
    CategoricalParameter,
    Parameter,
    Space,
    distributions,
    dump_space,
    from_optuna,
    overlap,
    parse_space,
    preview,
    suggest,
    to_optuna,
    trial_config,
)

pytestmark = pytest.mark.timeout(30)  # dozens of spaces each

#: Fields of each kind with valid values. No value makes a network invalid.
_CHOICES: Final[dict[str, list[Any]]] = {
    "optimizer": ["sgd", "adamw"],
    "schedule": ["cosine", "constant", "multistep"],
    "nesterov": [True, False],
    "batch_size": [16, 32, 64],
    "attention": ["mixed", "channel", "spatial"],
    "step_fractions": [[40, 60], [50], [30, 60, 90]],
    "ema_decay": [0, 0.5, 0.999],
}
_FLOATS: Final = ("learning_rate", "weight_decay", "mixup", "cutmix", "gradient_clip")
_INTS: Final = ("precise_bn_batches", "warmup_epochs", "crop_padding")

_SCHEDULERS: Final[list[dict[str, Any]]] = [
    {"type": "asha"},
    {"type": "asha", "variant": "promote", "reduction_factor": 4},
    {"type": "median"},
    {"type": "none"},
]

_NUMBERS = st.floats(1e-6, 50).map(lambda number: float(f"{number:.4g}"))


@st.composite
def _categoricals(draw: st.DrawFn, name: str) -> dict[str, Any]:
    choices = draw(st.lists(st.sampled_from(_CHOICES[name]), min_size=1, unique_by=str))
    return {"type": "categorical", "choices": choices}


@st.composite
def _floats(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    if kind == "step":
        # In tenths: the step divides the range in decimal arithmetic and often not in binary.
        first, steps, width = draw(st.integers(1, 50)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
        return {"type": "float", "low": first / 10, "high": (first + steps * width) / 10, "step": width / 10}
    low = draw(_NUMBERS)
    return {"type": "float", "low": low, "high": low + draw(_NUMBERS), "log": kind == "log"}


@st.composite
def _ints(draw: st.DrawFn) -> dict[str, Any]:
    low, steps = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        return {"type": "int", "low": low, "high": low + steps, "log": True}
    step = draw(st.integers(1, 5))
    return {"type": "int", "low": low, "high": low + steps * step, "step": step}


def _parameter(name: str) -> st.SearchStrategy[dict[str, Any]]:
    if name in _CHOICES:
        return _categoricals(name)
    return _floats() if name in _FLOATS else _ints()


@st.composite
def _parameters(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from([*_CHOICES, *_FLOATS, *_INTS]), min_size=1, unique=True))
    parameters: dict[str, Any] = {}
    for name in names:
        parents = [other for other in parameters if other in _CHOICES]
        parameter = draw(_parameter(name))
        conditional = bool(parents) and draw(st.booleans())
        if conditional:
            parent = draw(st.sampled_from(parents))
            within = draw(st.lists(st.sampled_from(parameters[parent]["choices"]), min_size=1, unique_by=str))
            parameter["when"] = {"parameter": parent, "in": within}
        parameters[name] = parameter
    return parameters


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Any valid space without initial rows."""
    metric = draw(st.sampled_from([name for name in METRICS if metric_mode(name)]))
    against = draw(st.sampled_from([None, "gmacs", "compute_hours"]))
    parameters, scheduler = draw(_parameters()), draw(st.sampled_from(_SCHEDULERS))
    warmup = parameters.get("warmup_epochs", {}).get("high", 1) if scheduler["type"] != "none" else 1
    words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), max_size=40)
    return Space.model_validate(
        {
            "version": 1,
            "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
            "description": draw(words),
            "dataset": {"name": "cifar10", "limit": draw(st.none() | st.integers(2, 10**6))},
            "metric": {"name": metric, "mode": metric_mode(metric), "against": against},
            "fidelity": {"min": draw(st.integers(math.ceil(warmup), 60)), "max": 100},
            "sampler": {
                "type": draw(st.sampled_from(["tpe", "random", "nsga2"])),
                "seed": draw(st.integers(0, 99)),
            },
            "scheduler": scheduler,
            "budget": {"trials": draw(st.integers(1, 99)), "hours": draw(st.none() | _NUMBERS)},
            "resources_per_trial": {"gpu": draw(st.sampled_from([0, 0.25, 1, "auto"]))},
            "fixed": {"depth": 92, "label_smoothing": draw(st.floats(0, 0.5)), "preset": None},
            "parameters": parameters,
        }
    )


def _is_valid(parameter: Parameter, value: object) -> bool:
    if isinstance(parameter, CategoricalParameter):
        return value in parameter.choices
    assert isinstance(value, int | float)
    steps = (value - parameter.low) / parameter.step if parameter.step else 0
    return parameter.low <= value <= parameter.high and abs(steps - round(steps)) < 1e-9


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_samples_respect_every_bound_step_and_condition(space: Space) -> None:
    for sampled in preview(space, 4):
        for name, parameter in space.parameters.items():
            when = parameter.when
            active = when is None or (when.parameter in sampled and sampled[when.parameter] in when.within)
            assert (name in sampled) == active
            if active:
                assert _is_valid(parameter, sampled[name])
        config = trial_config(space, sampled)
        assert all(getattr(config, name) == value for name, value in sampled.items())


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_a_trial_has_the_distributions_of_the_space(space: Space) -> None:
    trial = optuna.create_study(sampler=RandomSampler(seed=0)).ask()
    suggest(space, trial)
    expected = distributions(space)
    assert trial.distributions == {name: expected[name] for name in trial.distributions}
    for distribution in expected.values():
        assert json_to_distribution(distribution_to_json(distribution)) == distribution  # as a storage does


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_values_round_trip_through_optuna(space: Space) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    sampled = preview(space, 1)[0]
    study.enqueue_trial(to_optuna(sampled))
    trial = study.ask()
    assert suggest(space, trial) == sampled
    assert from_optuna(space, trial.params) == sampled
    assert list(from_optuna(space, trial.params)) == list(sampled)


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_a_space_round_trips_through_its_file(space: Space) -> None:
    text = dump_space(space)
    loaded = parse_space(text, source="dumped.yaml")
    assert loaded == space
    assert list(loaded.parameters) == list(space.parameters)
    assert dump_space(loaded) == text


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_every_sample_overlaps_with_its_own_space(space: Space) -> None:
    for sampled in preview(space, 4):
        result = overlap(space, space, sampled)
        assert result.sampled == sampled
        assert list(result.sampled) == list(sampled)


@settings(max_examples=40, deadline=None)
@given(spaces(), spaces())
def test_an_overlapping_trial_has_the_same_configuration(space: Space, other: Space) -> None:
    for sampled in preview(other, 4):
        result = overlap(space, other, sampled)
        assert (result.sampled is None) == bool(result.reason)
        if result.sampled is not None:
            assert trial_config(space, result.sampled) == trial_config(other, sampled)
