"""The networks that a space can request, and a check that all of them exist.

Networks are resolved from numbers (:func:`tune_rescon.models.describe_network`), so the check is cheap; of a
network from elsewhere it checks that the other fields apply to it, and not that it exists. The
product of a large space is still cut off; a network beyond the cut is checked when its trial is built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialConfig, check_field
from tune_rescon.errors import KeyPath, NetworkError
from tune_rescon.models import describe_network
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    FloatParameter,
    Parameter,
    combinations,
    values_of,
)
from tune_rescon.spaces.yaml_document import Problem

if TYPE_CHECKING:
    from tune_rescon.spaces.space import Space

__all__ = ["corners", "missing_networks", "only_rows"]

#: The number of combinations to check.
_MOST: Final = 2_000
#: The most values to check of a whole-number parameter; of a longer range, only its bounds are checked.
_LONGEST_RANGE: Final = 64

#: Fields that decide whether a network exists, the most likely cause first.
_FIELDS: Final = ("preset", "depth", "image_size", "layout", "width", "mask", "added_reference")

#: Fields that may not apply to a network from elsewhere. They matter only where a space names one.
_EXTERNAL: Final = ("network", "pretrained")
_APPLICABLE: Final = ("attention", "attention_learning", "drop_path", "init_from", *_EXTERNAL)


def corners(space: Space, fields: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the combinations of the searched ``fields`` that trials can have.

    These are all choices, and the bounds of long ranges; or the rows of ``initial``, if there is one for each
    trial, as in the final trainings of networks that have no fields in common.
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
    for chosen in islice(combinations(_deciding(parameters, fields), _looked_at), _MOST):
        yield {name: value for name, value in chosen.items() if name in fields}


def missing_networks(
    fixed: Mapping[str, Any],
    parameters: Mapping[str, Parameter],
    rows: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Problem]:
    """Yield a problem for each value that requests a network that does not exist, at that value's path.

    Args:
        fixed: the fixed fields.
        parameters: the searched fields.
        rows: the values of every trial, if they are known (:func:`only_rows`).
    """
    external = any(name in fixed or name in parameters for name in _EXTERNAL)
    fields = (*_FIELDS, *_APPLICABLE) if external else _FIELDS
    shared = {name: value for name, value in fixed.items() if name in fields and not check_field(name, value)}
    reported: set[KeyPath] = set()
    places: Iterable[tuple[KeyPath, Mapping[str, Any]]] = (((), row) for row in _corners(parameters, fields))
    if rows:
        places = ((("initial", index), row) for index, row in enumerate(rows) if row not in rows[:index])
    for place, row in places:
        wanted = shared | {name: value for name, value in row.items() if name in fields}
        error = _error(wanted)
        if error is None:
            continue
        name = _blamed(wanted)
        path = (*place, name) if place and name in row else _path(name, wanted, parameters)
        if path not in reported:
            reported.add(path)
            yield Problem(path=path, text=str(error))


def _deciding(parameters: Mapping[str, Parameter], fields: Collection[str]) -> dict[str, Parameter]:
    """Return the searched parameters among ``fields``, and the parents that their ``when`` names."""
    names = {name for name in parameters if name in fields}
    for name, parameter in reversed(list(parameters.items())):
        if name in names and parameter.when:
            names.add(parameter.when.parameter)
    return {name: parameter for name, parameter in parameters.items() if name in names}


def _looked_at(parameter: Parameter) -> Sequence[Any]:
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices
    if not isinstance(parameter, FloatParameter) and len(values_of(parameter)) <= _LONGEST_RANGE:
        return values_of(parameter)
    return (parameter.low, parameter.high)


def _error(wanted: Mapping[str, Any]) -> NetworkError | None:
    try:
        # The number of classes and of image channels does not decide whether a network exists.
        describe_network(TrialConfig.from_dict(wanted), classes=10, in_channels=3)
    except NetworkError as error:
        return error
    return None


def _blamed(wanted: Mapping[str, Any]) -> str:
    """Return the field without which the network would exist, or the first field if several are to blame."""
    given = [name for name in (*_FIELDS, *_APPLICABLE) if name in wanted]
    for name in given:
        if _error({other: value for other, value in wanted.items() if other != name}) is None:
            return name
    return given[0]


def _path(name: str, wanted: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> KeyPath:
    if name not in parameters:
        return ("fixed", name)
    parameter = parameters[name]
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", name, "choices", parameter.choices.index(wanted[name]))
    return ("parameters", name)
