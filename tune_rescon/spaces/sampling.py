"""Draw the trials of a space, list its points, and place the trials of another search in it.

Every sampled dict has only the active parameters, in the file's order, with values that a TrialConfig
accepts. Optuna's storages hold plain scalars, so a list among the choices is stored there as text;
:func:`to_optuna` and :func:`from_optuna` convert between the two forms.

A warm-started search learns from those trials of an earlier search that :func:`overlap` can place in its
space. A trial of the new search with the same parameters would have the same value.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from tune_rescon.config import DatasetConfig, TrialConfig, plain_number
from tune_rescon.errors import counted
from tune_rescon.spaces.field_rules import why_outside
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    combinations,
    is_active,
    is_among,
    is_finite,
)
from tune_rescon.spaces.space import Space

__all__ = [
    "Overlap",
    "can_have",
    "distributions",
    "first_rows",
    "free_points",
    "from_optuna",
    "grid_points",
    "overlap",
    "overlap_message",
    "pending_rows",
    "place_config",
    "point_key",
    "preview",
    "random_points",
    "suggest",
    "to_optuna",
    "trial_config",
    "with_parents",
    "without_study_logs",
]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distribution of every parameter, active or not. :func:`suggest` draws from the same ones."""
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
    """Return the parameters of the first trials, which no sampler draws: a grid's points, or ``initial``."""
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
    return {name: _stored(value) for name, value in sampled.items()}


def from_optuna(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's ``params`` as :func:`suggest` returned them."""
    return _in_order(
        space, {name: _from_stored(space.parameters[name], stored) for name, stored in params.items()}
    )


def can_have(space: Space, params: Mapping[str, Any]) -> bool:
    """Return whether a trial of a space can have all these values.

    Args:
        space: the space.
        params: values of some parameters, as Optuna stores them. Another program may have chosen them.
    """
    try:
        values = {name: _from_stored(space.parameters[name], stored) for name, stored in params.items()}
    except (KeyError, ValueError):
        return False
    if any(why_outside(space.parameters[name], value) for name, value in values.items()):
        return False
    return all(
        is_among(values[parent], allowed) if parent in values else bool(allowed)
        for parent, allowed in _parent_choices(space, params).items()
    )


def with_parents(space: Space, params: Mapping[str, Any], *, seed: int, number: int) -> dict[str, Any]:
    """Return ``params`` with values of the missing parameters on which they depend.

    Otherwise a sampler might draw parents without which the given parameters do not exist. Each parent is
    drawn at random from its possible values.

    Args:
        space: the space.
        params: values that :func:`can_have` accepts.
        seed: the seed of the search.
        number: the number of the trial.
    """
    generator = np.random.default_rng((seed, number))
    missing = {
        parent: _stored(choices[generator.integers(len(choices))])
        for parent, choices in _parent_choices(space, params).items()
        if parent not in params
    }
    return {**params, **missing}


def _parent_choices(space: Space, names: Iterable[str]) -> dict[str, list[Any]]:
    """Return the parents of the named parameters, each with the choices for which these parameters exist."""
    possible: dict[str, list[Any]] = {}
    pending = list(names)
    while pending:
        when = space.parameters[pending.pop()].when
        if when is None:
            continue
        parent = space.parameters[when.parameter]
        assert isinstance(parent, CategoricalParameter), "checked when the space is read"
        choices = possible.get(when.parameter, parent.choices)
        possible[when.parameter] = [choice for choice in choices if is_among(choice, when.within)]
        pending.append(when.parameter)
    return possible


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, CategoricalParameter):
        return CategoricalDistribution(_stored_choices(parameter))
    if isinstance(parameter, FloatParameter):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step or 1)


def _drawn(name: str, parameter: Parameter, trial: BaseTrial) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return _from_stored(parameter, trial.suggest_categorical(name, _stored_choices(parameter)))
    low, high, log = parameter.low, parameter.high, parameter.log
    # Optuna returns a NumPy float64 if it clips a draw to a narrow range.
    if isinstance(parameter, FloatParameter):
        return plain_number(trial.suggest_float(name, low, high, log=log, step=parameter.step))
    return plain_number(trial.suggest_int(name, int(low), int(high), log=log, step=parameter.step or 1))


def _stored(value: Any) -> Any:
    return str(list(value)) if isinstance(value, list | tuple) else value


def _stored_choices(parameter: CategoricalParameter) -> Sequence[Any]:
    return [_stored(choice) for choice in parameter.choices]


def _from_stored(parameter: Parameter, stored: Any) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices[_stored_choices(parameter).index(stored)]
    return stored


def _in_order(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in space.parameters if name in values}


@contextmanager
def without_study_logs() -> Iterator[None]:
    """Suppress Optuna's log record of each new study within the block."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def point_key(
    parameters: Mapping[str, Parameter], values: Mapping[str, Any]
) -> frozenset[tuple[str, Hashable]]:
    """Return a key that is equal for ``values`` of the same point of the space.

    The key of some of a point's values is a subset of the point's key.

    Args:
        parameters: the space's parameters.
        values: the values of the active parameters, as :func:`.suggest` returns them or as Optuna stores
            them.

    >>> parameters = {"drop_path": FloatParameter(type="float", low=0.0, high=0.3, step=0.1)}
    >>> point_key(parameters, {"drop_path": 0.1 + 0.2}) == point_key(parameters, {"drop_path": 0.3})
    True
    """
    stored = to_optuna(values)
    return frozenset((name, _value_key(parameters[name], value)) for name, value in stored.items())


def _value_key(parameter: Parameter, value: Any) -> Hashable:
    if isinstance(parameter, FloatParameter) and parameter.step is not None:
        # In binary, 0.1 + 0.2 is not equal to 0.3, but both are the same step.
        step: int = round((value - parameter.low) / parameter.step)
        return step
    # True == 1, but they are two choices.
    return (isinstance(value, bool), value)


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


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A trial of another search, placed in this space."""

    sampled: Mapping[str, Any] | None
    """The active parameters here, as :func:`.suggest` would draw them; None if the trial does not fit."""
    differs: tuple[str, ...] = ()
    """Fields, or dotted keys of the file, that this space does not search and whose value differs here."""
    outside: tuple[str, ...] = ()
    """Parameters whose range or choices here do not contain the trial's value."""

    @property
    def reason(self) -> str:
        """Why the trial does not fit this space, in words; empty if it fits."""
        if self.differs:
            return f"differ in {', '.join(self.differs)}"
        return f"outside {', '.join(self.outside)}" if self.outside else ""


def overlap(space: Space, other: Space, sampled: Mapping[str, Any]) -> Overlap:
    """Place a trial of ``other`` in ``space``.

    The trial fits if ``space`` could draw the same trial: each parameter that ``space`` searches has a value
    that it can draw, and every other field (fixed, default, or an inactive parameter) has the value that all
    trials of ``space`` have. Everything else that a trial's value depends on must be equal too: the metric,
    the images, their split, and ``fidelity.max``, which sets the length of the learning-rate schedule. The
    sampler, the stopping rule and the hardware do not matter. Configurations are compared field by field, so
    a preset differs from the same layout and depth written out.

    Args:
        space: the search that learns.
        other: the search to which the trial belongs.
        sampled: the trial's active parameters in ``other``, as :func:`.suggest` returned them.

    Raises:
        ConfigError: ``sampled`` does not come from ``other``.
    """
    return _placed(space, trial_config(other, sampled).to_dict(), other)


def place_config(space: Space, config: Mapping[str, Any], other: Space | None = None) -> Overlap:
    """Place a trial in ``space`` by the configuration that it ran with; see :func:`overlap`.

    Args:
        space: the search that learns.
        config: every field of the trial's :class:`.TrialConfig`.
        other: the search to which the trial belongs; None: ``space`` itself, in its present state.

    Raises:
        ConfigError: ``config`` comes from a version of this package with other fields.
    """
    return _placed(space, TrialConfig.from_dict(config).to_dict(), other or space)


def _placed(space: Space, config: dict[str, Any], other: Space) -> Overlap:
    theirs = config | {"dataset": config["dataset"] or other.dataset.name}
    taken: dict[str, Any] = {}
    outside = []
    for name, parameter in space.parameters.items():
        if not is_active(parameter, taken):
            continue
        taken[name] = _as_drawn(parameter, theirs[name])
        if why_outside(parameter, taken[name]):
            outside.append(name)
    ours = trial_config(space, taken).to_dict()
    ours |= {"dataset": ours["dataset"] or space.dataset.name}
    # With a value outside the space, it is not known which parameters are active: compare none of them.
    searched = space.parameters if outside else taken
    fields = [name for name in ours if name not in searched and not _same(ours[name], theirs[name])]
    differs = (*_unlike(space, other, theirs["dataset"]), *fields)
    fits = not differs and not outside
    return Overlap(sampled=taken if fits else None, differs=differs, outside=tuple(outside))


def overlap_message(name: str, placed: Sequence[Overlap]) -> str:
    """Report how many trials of search ``name`` are used, and why the others are not, by frequency.

    >>> placed = [Overlap(sampled={"depth": 56}), Overlap(sampled=None, outside=("learning_rate",))]
    >>> overlap_message("first", placed)
    'used 1 of 2 trials of first: 1 outside learning_rate'
    """
    used = sum(one.sampled is not None for one in placed)
    reasons = Counter(one.reason for one in placed if one.reason)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"used {used} of {counted(len(placed), 'trial')} of {name}" + (f": {why}" if why else "")


def _unlike(space: Space, other: Space, dataset: str) -> Iterator[str]:
    """Yield the differences between two spaces that no configuration of a trial on ``dataset`` shows."""
    if space.metric.name != other.metric.name:
        yield "metric.name"
    elif space.metric.function != other.metric.function:
        yield f"the function of {space.metric.name}"
    if space.fidelity.max != other.fidelity.max:
        yield "fidelity.max"
    ours, theirs = space.dataset_config(dataset), other.dataset_config(dataset)
    for field in dataclasses.fields(DatasetConfig):
        if getattr(ours, field.name) != getattr(theirs, field.name):
            yield f"dataset.{field.name}"


def _as_drawn(parameter: Parameter, value: Any) -> Any:
    """Return a configuration's value in the parameter's type: as one of the choices, or as a whole number."""
    if isinstance(parameter, CategoricalParameter):
        return next((choice for choice in parameter.choices if _same(choice, value)), value)
    if isinstance(parameter, IntParameter) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _same(a: Any, b: Any) -> bool:
    return is_among(a, [b])
