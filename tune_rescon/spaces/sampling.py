"""From a space to trials: Optuna's distributions, the values drawn from them, and a trial's configuration.

Every sampled dict has only the active parameters, in the file's order, with values that a TrialConfig
accepts. Optuna's storages hold plain scalars, so a list among the choices is stored there as text;
:func:`to_optuna` and :func:`from_optuna` convert between the two forms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
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
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    FloatParameter,
    Parameter,
    combinations,
    is_active,
    is_finite,
)
from tune_rescon.spaces.space import Space

__all__ = [
    "count_points",
    "distributions",
    "first_rows",
    "free_points",
    "from_optuna",
    "grid_points",
    "pending_rows",
    "point_key",
    "preview",
    "random_points",
    "suggest",
    "to_optuna",
    "trial_config",
    "without_study_logs",
]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distribution of every parameter, active or not; :func:`suggest` draws from the same ones."""
    return {name: _distribution(parameter) for name, parameter in space.parameters.items()}


def suggest(space: Space, trial: BaseTrial) -> dict[str, Any]:
    """Draw a value for each active parameter from ``trial``, parents first."""
    values: dict[str, Any] = {}
    for name, parameter in space.parameters.items():
        if is_active(parameter, values):
            values[name] = _drawn(name, parameter, trial)
    return values


def trial_config(space: Space, sampled: Mapping[str, Any]) -> TrialConfig:
    """Return the configuration of a trial: its ``sampled`` values, the space's fixed ones, and defaults.

    Raises:
        ConfigError: ``sampled`` does not come from this space.
    """
    return TrialConfig.from_dict({**space.fixed, **sampled})


def grid_points(space: Space) -> list[dict[str, Any]]:
    """Return every combination of the active parameters' values; the last parameter changes fastest.

    The values of all parameters must be listable, as ``sampler.type: grid`` requires.
    """
    return list(combinations(space.parameters))


def first_rows(space: Space) -> Sequence[Mapping[str, Any]]:
    """Return the parameters of the trials that run first: a grid's points, or ``initial``.

    The sampler does not draw these.
    """
    return grid_points(space) if space.sampler.type == "grid" else space.initial


def preview(space: Space, n: int) -> list[dict[str, Any]]:
    """Return ``n`` samples: a grid's first points, or the initial rows and then draws by the space's seed."""
    if space.sampler.type == "grid":
        return grid_points(space)[:n]
    first = [_in_order(space, row) for row in space.initial[:n]]
    return first + list(islice(random_points(space, seed=space.sampler.seed), n - len(first)))


def random_points(space: Space, *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield independent uniform draws from a space, without end."""
    with without_study_logs():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    while True:
        yield suggest(space, study.ask())


def to_optuna(sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``sampled`` as Optuna stores it, which is the form that ``Study.enqueue_trial`` accepts."""
    return {name: _held(value) for name, value in sampled.items()}


def from_optuna(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's ``params`` as :func:`suggest` returned them."""
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
    # Optuna returns a NumPy float64 if it clips a draw to a narrow range.
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
def without_study_logs() -> Iterator[None]:
    """Suppress Optuna's log line about each new study."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def point_key(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> Hashable:
    """Return a key that is equal for ``values`` of the same point of the space.

    Args:
        parameters: the space's parameters.
        values: the values of the active parameters, as :func:`.suggest` returns or as Optuna stores them.

    >>> parameters = {"drop_path": FloatParameter(type="float", low=0.0, high=0.3, step=0.1)}
    >>> point_key(parameters, {"drop_path": 0.1 + 0.2}) == point_key(parameters, {"drop_path": 0.3})
    True
    """
    held = to_optuna(values)
    return frozenset((name, _place(parameters[name], value)) for name, value in held.items())


def _place(parameter: Parameter, value: Any) -> Hashable:
    if isinstance(parameter, FloatParameter) and parameter.step is not None:
        # In binary, 0.1 + 0.2 is not equal to 0.3, but both are the same step.
        step: int = round((value - parameter.low) / parameter.step)
        return step
    # True == 1, but they are two choices.
    return (isinstance(value, bool), value)


def count_points(parameters: Mapping[str, Parameter], *, most: int) -> int | None:
    """Return the number of points of a space; None if they cannot be listed or are more than ``most``."""
    if not all(map(is_finite, parameters.values())):
        return None
    found = sum(1 for _ in islice(combinations(parameters), most + 1))
    return found if found <= most else None


def free_points(
    parameters: Mapping[str, Parameter], taken: Collection[Hashable], *, most: int
) -> list[dict[str, Any]]:
    """Return the first ``most`` points of a space that have not run.

    Args:
        parameters: the space's parameters.
        taken: the keys of the points that have run, by :func:`point_key`.
        most: the largest number of points to return.

    Returns:
        The points; empty if all points have run or if the values of the space cannot be listed.
    """
    if not all(map(is_finite, parameters.values())):
        return []
    free = (point for point in combinations(parameters) if point_key(parameters, point) not in taken)
    return list(islice(free, most))


def pending_rows(
    rows: Iterable[Mapping[str, Any]],
    ran: Counter[Hashable],
    key: Callable[[Mapping[str, Any]], Hashable],
) -> list[Mapping[str, Any]]:
    """Return the ``rows`` that have not run, in order; a row that occurs twice runs twice.

    Args:
        rows: the points to run.
        ran: how often each point has run, by its key. Each run that matches a row is subtracted from it.
        key: returns the key of a row.
    """
    pending = []
    for row in rows:
        if ran[key(row)]:
            ran[key(row)] -= 1
        else:
            pending.append(row)
    return pending
