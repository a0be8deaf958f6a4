"""From a space to trials: Optuna's distributions, what is drawn from them, the configuration of a trial.

Every sampled dict holds the active parameters only, in the file's order, with values a TrialConfig takes.
Optuna's storages hold plain scalars, so a list among choices is kept there as its text; :func:`to_optuna` and
:func:`from_optuna` go between the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from tune_rescon.config import TrialConfig, plain_number
from tune_rescon.spaces.combinations import combinations, is_active
from tune_rescon.spaces.parameters import CategoricalParameter, FloatParameter, Parameter
from tune_rescon.spaces.space import Space

__all__ = ["distributions", "from_optuna", "grid_points", "preview", "suggest", "to_optuna", "trial_config"]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The distribution of every parameter, active or not: the very ones :func:`suggest` draws from."""
    return {name: _distribution(parameter) for name, parameter in space.parameters.items()}


def suggest(space: Space, trial: BaseTrial) -> dict[str, Any]:
    """Draw a value for each active parameter from ``trial``, parents first."""
    values: dict[str, Any] = {}
    for name, parameter in space.parameters.items():
        if is_active(parameter, values):
            values[name] = _drawn(name, parameter, trial)
    return values


def trial_config(space: Space, sampled: Mapping[str, Any]) -> TrialConfig:
    """What a trial with the values ``sampled`` is: they, what the space fixes, and defaults for the rest.

    Raises:
        ConfigError: ``sampled`` did not come from this space.
    """
    return TrialConfig.from_dict({**space.fixed, **sampled})


def grid_points(space: Space) -> list[dict[str, Any]]:
    """Every combination of the active parameters' values, the last parameter changing fastest.

    Only for a space of parameters whose values can be listed, as ``sampler.type: grid`` demands.
    """
    return list(combinations(space.parameters))


def preview(space: Space, n: int) -> list[dict[str, Any]]:
    """``n`` samples: a grid's first points; else the initial rows, then draws with the space's seed."""
    if space.sampler.type == "grid":
        return grid_points(space)[:n]
    first = [_in_order(space, row) for row in space.initial[:n]]
    with _quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=space.sampler.seed))
    return first + [suggest(space, study.ask()) for _ in range(n - len(first))]


def to_optuna(sampled: Mapping[str, Any]) -> dict[str, Any]:
    """``sampled`` as Optuna holds it: what ``Study.enqueue_trial`` takes."""
    return {name: _held(value) for name, value in sampled.items()}


def from_optuna(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's ``params`` as :func:`suggest` gave them."""
    return _in_order(space, {name: _given(space.parameters[name], held) for name, held in params.items()})


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, CategoricalParameter):
        return CategoricalDistribution(_held_choices(parameter))
    if isinstance(parameter, FloatParameter):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step or 1)


def _drawn(name: str, parameter: Parameter, trial: BaseTrial) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return _given(parameter, trial.suggest_categorical(name, _held_choices(parameter)))
    low, high, log = parameter.low, parameter.high, parameter.log
    # Optuna returns NumPy's float64 where it clips a draw to a narrow range.
    if isinstance(parameter, FloatParameter):
        return plain_number(trial.suggest_float(name, low, high, log=log, step=parameter.step))
    return plain_number(trial.suggest_int(name, int(low), int(high), log=log, step=parameter.step or 1))


def _held(value: Any) -> Any:
    return str(list(value)) if isinstance(value, list | tuple) else value


def _held_choices(parameter: CategoricalParameter) -> Sequence[Any]:
    return [_held(choice) for choice in parameter.choices]


def _given(parameter: Parameter, held: Any) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices[_held_choices(parameter).index(held)]
    return held


def _in_order(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in space.parameters if name in values}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line about each new study."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
