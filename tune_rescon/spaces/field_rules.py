"""The rules of the fields that a space fixes or searches: names, values, conditions, rows and networks.

Each check yields a :class:`.Problem` for every broken rule.

A network is described in numbers (:func:`tune_rescon.models.describe_network`), so it is cheap to check that
it exists. For a network from elsewhere, the check covers only which fields apply to it. A large space has too
many combinations: the network of one that is not checked here is checked when it is built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialConfig, check_field, field_names, field_rule
from tune_rescon.errors import KeyPath, NetworkError, unknown_name_message
from tune_rescon.models import describe_network
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    combinations,
    is_active,
    is_among,
    values_of,
)
from tune_rescon.spaces.yaml_document import Problem, broken_rule, quoting_hint, shown

if TYPE_CHECKING:
    from tune_rescon.spaces.space import Space

__all__ = [
    "check_batches",
    "check_conditions",
    "check_fields",
    "check_rows",
    "choices_hint",
    "corners",
    "extreme_value",
    "holds_text",
    "missing_networks",
    "only_rows",
    "unknown_fields",
    "why_outside",
]


#: Other tools' names for our fields.
_ALIASES: Final[Mapping[str, str]] = {
    "lr": "write `learning_rate`",
    "wd": "write `weight_decay`",
    "l2": "write `weight_decay`",
    "bs": "write `batch_size`",
    "batch": "write `batch_size`",
    "model": "write `preset`, or `layout` and `depth`, or `network`",
    "arch": "write `preset`, or `layout` and `depth`, or `network`",
    "img_size": "write `image_size`",
    "epochs": "write `fidelity.max`",
    "max_epochs": "write `fidelity.max`",
    "seed": "write `sampler.seed`",
    "scheduler": "write `schedule`",
    "stochastic_depth": "write `drop_path`",
    "clip_grad": "write `gradient_clip`",
}


def check_fields(fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Yield unknown names, names both fixed and searched, and values or bounds that their field refuses."""
    for name, value in fixed.items():
        yield from _field_problems(("fixed", name), name, {(): value})
    if "dataset" in fixed:
        rule = "the images of every trial are named in the section `dataset`"
        yield broken_rule(("fixed", "dataset"), rule, got="dataset here")
    for name, parameter in parameters.items():
        yield from _field_problems(("parameters", name), name, _limits(parameter))
        if name in fixed:
            rule, got = "a field is fixed or searched, not both", f"{name} in `fixed` too"
            hint = f"`--set {name}=VALUE` fixes it instead of searching it."
            yield broken_rule(("parameters", name), rule, got=got, hint=hint)
        if isinstance(parameter, CategoricalParameter):
            yield from _repeated(name, parameter)


def unknown_fields(names: Iterable[str]) -> Iterator[Problem]:
    """Yield the names in ``parameters`` that are no field of a trial."""
    yield from (_unknown(("parameters", name), name) for name in names if name not in field_names())


def _field_problems(path: KeyPath, name: str, values: Mapping[KeyPath, Any]) -> Iterator[Problem]:
    """Yield the problems of a field's ``values``, by their paths below ``path``."""
    if name not in field_names():
        yield _unknown(path, name)
        return
    for below, value in values.items():
        problem = _field_problem((*path, *below), name, value)
        if problem:
            yield problem


def _field_problem(path: KeyPath, name: str, value: Any) -> Problem | None:
    """Return the problem with ``value`` as a field of TrialConfig, or None."""
    rule = check_field(name, value)
    if rule is None:
        return None
    hint = quoting_hint(name, value) if holds_text(name) and path[-1] == name else ""
    return broken_rule(path, rule, got=shown(value), hint=hint)


def holds_text(name: str, kind: type = TrialConfig) -> bool:
    """Return whether a configuration's field holds free text, instead of one of a few words."""
    rule = field_rule(name, kind)
    return not rule.choices and set(rule.kinds) <= {str, type(None)}


def _unknown(path: KeyPath, name: str) -> Problem:
    answer = unknown_name_message("parameter", name, field_names())
    hint = f" That is another tool's word: {_ALIASES[name]}." if name in _ALIASES else ""
    return Problem(path=path, text=answer + hint)


def _limits(parameter: Parameter) -> dict[KeyPath, Any]:
    """Return the values of a parameter that its field must accept: every choice, or both bounds."""
    if isinstance(parameter, CategoricalParameter):
        return {("choices", index): choice for index, choice in enumerate(parameter.choices)}
    return {("low",): parameter.low, ("high",): parameter.high}


def _repeated(name: str, parameter: CategoricalParameter) -> Iterator[Problem]:
    for index, choice in enumerate(parameter.choices):
        if is_among(choice, parameter.choices[:index]):
            path = ("parameters", name, "choices", index)
            yield broken_rule(path, "choices must differ", got=f"{shown(choice)} again")


def check_conditions(parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Check that each ``when`` names a categorical declared above it, and some of its choices."""
    above: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        if parameter.when:
            path = ("parameters", name, "when")
            parent = above.get(parameter.when.parameter)
            if isinstance(parent, CategoricalParameter):
                for index, value in enumerate(parameter.when.within):
                    if outside := why_outside(parent, value):
                        yield broken_rule((*path, "in", index), outside, got=shown(value))
            else:
                known = [other for other, one in above.items() if isinstance(one, CategoricalParameter)]
                rule = "must name a categorical parameter declared above this one"
                got, hint = shown(parameter.when.parameter), choices_hint(known)
                yield broken_rule((*path, "parameter"), rule, got=got, hint=hint)
        above[name] = parameter


def choices_hint(names: Sequence[str]) -> str:
    """Return a hint with the parameters from which to choose."""
    return f"Choose from: {', '.join(names)}." if names else "The space has no such parameter."


#: The largest distance of a value from a step, in steps: Optuna's own tolerance.
_STEP_TOLERANCE: Final = 1e-8


def check_rows(rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Check that every row of ``initial`` gives each active parameter, and no other, a value in its range.

    A parameter that is no field of a trial is left out: :func:`check_fields` yields its problem.
    """
    fields = {name: parameter for name, parameter in parameters.items() if name in field_names()}
    for index, row in enumerate(rows):
        path = ("initial", index)
        for name in row:
            if name not in parameters:
                yield Problem(path=(*path, name), text=unknown_name_message("parameter", name, parameters))
        for name, parameter in fields.items():
            problem = _row_problem((*path, name), name, parameter, row)
            if problem:
                yield problem


def _row_problem(path: KeyPath, name: str, parameter: Parameter, row: Mapping[str, Any]) -> Problem | None:
    active = is_active(parameter, row)
    if name not in row:
        return broken_rule(path, "is missing") if active else None
    if not active:
        assert parameter.when is not None, "a parameter without `when` is always active"
        values = ", ".join(map(shown, parameter.when.within))
        rule = f"must be left out unless {parameter.when.parameter} is {values}"
        return broken_rule(path, rule, got=shown(row[name]))
    broken = _field_problem(path, name, row[name])
    if broken:
        return broken
    outside = why_outside(parameter, row[name])
    return broken_rule(path, outside, got=shown(row[name])) if outside else None


def why_outside(parameter: Parameter, value: Any) -> str | None:
    """Return the rule that ``value`` breaks; None if the parameter can have this value.

    The parameter's field must accept ``value``.
    """
    if isinstance(parameter, CategoricalParameter):
        choices = ", ".join(map(shown, parameter.choices))
        return None if is_among(value, parameter.choices) else f"must be one of the choices {choices}"
    if not isinstance(value, int | float):
        return "must be a number"
    if isinstance(parameter, IntParameter) and value != int(value):
        return "must be a whole number"
    if not parameter.low <= value <= parameter.high:
        return f"must be in [{parameter.low}, {parameter.high}]"
    steps = (value - parameter.low) / parameter.step if parameter.step else 0
    if abs(steps - round(steps)) > _STEP_TOLERANCE:
        return f"must be a multiple of step {parameter.step} above {parameter.low}"
    return None


#: The fewest images of a batch for each worker, because batch norm has no variance over one image.
_IMAGES_PER_WORKER: Final = 2


def check_batches(
    workers: int, fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> Iterator[Problem]:
    """Check that the smallest batch has two images for each worker, if there are several.

    Args:
        workers: the number of workers of a trial.
        fixed: the fixed fields.
        parameters: the searched fields.
    """
    path, images = extreme_value("batch_size", fixed, parameters, largest=False)
    least = _IMAGES_PER_WORKER * workers
    if workers > 1 and images < least:
        rule = f"must be at least {least}: {_IMAGES_PER_WORKER} images for each of the {workers} `workers`"
        yield broken_rule(path, rule, got=str(images))


def extreme_value(
    name: str, fixed: Mapping[str, Any], parameters: Mapping[str, Parameter], *, largest: bool
) -> tuple[KeyPath, Any]:
    """Return the place of the largest or smallest value that a trial can have in a field, and that value.

    Args:
        name: the field, which holds numbers.
        fixed: the fixed fields.
        parameters: the searched fields.
        largest: True for the largest value, False for the smallest.
    """
    choose, bound = (max, "high") if largest else (min, "low")
    parameter = parameters.get(name)
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", name, "choices"), choose(parameter.choices)
    if parameter:
        return ("parameters", name, bound), getattr(parameter, bound)
    return ("fixed", name), fixed.get(name, getattr(TrialConfig(), name))


#: The most combinations of values to check.
_MOST_COMBINATIONS: Final = 2_000

#: The most values of a whole-number parameter to check. For a longer range, only the bounds are checked.
_LONGEST_RANGE: Final = 64

#: Fields that decide whether a network exists, the most likely cause first.
_NETWORK_FIELDS: Final = ("preset", "depth", "image_size", "layout", "width", "mask", "added_reference")

#: Fields that choose a network from elsewhere, and all fields that may not apply to such a network.
_EXTERNAL_FIELDS: Final = ("network", "pretrained")
_APPLICABLE_FIELDS: Final = (
    *("attention", "attention_learning", "drop_path", "init_from"),
    *_EXTERNAL_FIELDS,
)


def corners(space: Space, fields: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the combinations of the searched ``fields`` that trials can have.

    They combine every choice and every value of a short range, and the bounds of a long one. If ``initial``
    has a row for each trial, as in final trainings of networks without common fields, they are these rows.
    """
    rows = only_rows(space.initial, trials=space.budget.trials)
    if rows:
        yield from ({name: value for name, value in row.items() if name in fields} for row in rows)
    else:
        yield from _corners(space.parameters, fields)


def only_rows(initial: Sequence[Mapping[str, Any]], *, trials: int) -> Sequence[Mapping[str, Any]]:
    """Return the first ``trials`` rows of ``initial`` if no trial comes after them, else nothing.

    >>> only_rows([{"depth": 56}, {"depth": 92}], trials=1), only_rows([{"depth": 56}], trials=2)
    ([{'depth': 56}], ())
    """
    return initial[:trials] if trials <= len(initial) else ()


def _corners(parameters: Mapping[str, Parameter], fields: Collection[str]) -> Iterator[dict[str, Any]]:
    for chosen in islice(
        combinations(_with_parents(parameters, fields), _checked_values), _MOST_COMBINATIONS
    ):
        yield {name: value for name, value in chosen.items() if name in fields}


def missing_networks(
    fixed: Mapping[str, Any],
    parameters: Mapping[str, Parameter],
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[Problem]:
    """Yield a problem for each value that requests a network that does not exist, at that value's path.

    Args:
        fixed: the fixed fields.
        parameters: the searched fields.
        rows: the values of every trial (:func:`only_rows`); empty if they are not known.
    """
    external = any(name in fixed or name in parameters for name in _EXTERNAL_FIELDS)
    fields = (*_NETWORK_FIELDS, *_APPLICABLE_FIELDS) if external else _NETWORK_FIELDS
    shared = {name: value for name, value in fixed.items() if name in fields and not check_field(name, value)}
    reported: set[KeyPath] = set()
    places: Iterable[tuple[KeyPath, Mapping[str, Any]]] = (((), row) for row in _corners(parameters, fields))
    if rows:
        places = ((("initial", index), row) for index, row in enumerate(rows) if row not in rows[:index])
    for place, row in places:
        wanted = shared | {name: value for name, value in row.items() if name in fields}
        error = _network_error(wanted)
        if error is None:
            continue
        name = _field_to_blame(wanted)
        path = (*place, name) if place and name in row else _path_of(name, wanted, parameters)
        if path not in reported:
            reported.add(path)
            yield Problem(path=path, text=str(error))


def _with_parents(parameters: Mapping[str, Parameter], fields: Collection[str]) -> dict[str, Parameter]:
    """Return the searched parameters among ``fields``, and the parents that their ``when`` names."""
    names = {name for name in parameters if name in fields}
    for name, parameter in reversed(list(parameters.items())):
        if name in names and parameter.when:
            names.add(parameter.when.parameter)
    return {name: parameter for name, parameter in parameters.items() if name in names}


def _checked_values(parameter: Parameter) -> Sequence[Any]:
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices
    if not isinstance(parameter, FloatParameter) and len(values_of(parameter)) <= _LONGEST_RANGE:
        return values_of(parameter)
    return (parameter.low, parameter.high)


def _network_error(wanted: Mapping[str, Any]) -> NetworkError | None:
    try:
        # The number of classes and of image channels does not decide whether a network exists.
        describe_network(TrialConfig.from_dict(wanted), classes=10, in_channels=3)
    except NetworkError as error:
        return error
    return None


def _field_to_blame(wanted: Mapping[str, Any]) -> str:
    """Return the field without which the network would exist, or the first field if several are to blame."""
    given = [name for name in (*_NETWORK_FIELDS, *_APPLICABLE_FIELDS) if name in wanted]
    for name in given:
        if _network_error({other: value for other, value in wanted.items() if other != name}) is None:
            return name
    return given[0]


def _path_of(name: str, wanted: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> KeyPath:
    """Return the place that gives the field ``name`` its value in ``wanted``."""
    if name not in parameters:
        return ("fixed", name)
    parameter = parameters[name]
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", name, "choices", parameter.choices.index(wanted[name]))
    return ("parameters", name)
