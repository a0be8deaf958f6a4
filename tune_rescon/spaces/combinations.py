"""Which parameters a trial has, and the combinations of values that trials can have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from tune_rescon.spaces.parameters import CategoricalParameter, FloatParameter, IntParameter, Parameter

__all__ = ["combinations", "is_active", "is_among", "is_finite", "values_of"]


def is_among(value: object, choices: Iterable[object]) -> bool:
    """Whether ``value`` is one of ``choices``; unlike ``in``, a bool is no number.

    >>> is_among(1, [True, 2]), is_among(1.0, [1, 2])
    (False, True)
    """
    kind = isinstance(value, bool)
    return any(value == choice and kind == isinstance(choice, bool) for choice in choices)


def is_active(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Whether a trial with ``values`` has ``parameter``: its ``when``, if any, holds.

    A parameter whose parent the trial does not have is not active either.
    """
    when = parameter.when
    return when is None or (when.parameter in values and is_among(values[when.parameter], when.within))


def is_finite(parameter: Parameter) -> bool:
    """Whether the values of ``parameter`` can be listed."""
    return not isinstance(parameter, FloatParameter) or parameter.step is not None


def values_of(parameter: Parameter) -> Sequence[Any]:
    """Every value of a finite parameter, in order.

    >>> values_of(FloatParameter(type="float", low=0.1, high=0.3, step=0.1))
    (0.1, 0.2, 0.3)
    """
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices
    if isinstance(parameter, IntParameter):
        return range(parameter.low, parameter.high + 1, parameter.step or 1)
    assert parameter.step is not None, "a continuous parameter has no list of values"
    # In decimals: 0.1 + 2 * 0.1 is 0.30000000000000004 in binary.
    low, high, step = (Decimal(str(number)) for number in (parameter.low, parameter.high, parameter.step))
    return tuple(float(low + step * index) for index in range(int((high - low) / step) + 1))


def combinations(
    parameters: Mapping[str, Parameter], values: Callable[[Parameter], Sequence[Any]] = values_of
) -> Iterator[dict[str, Any]]:
    """Every combination of ``values`` of the active parameters, the last parameter changing fastest.

    Each is made once: parameters that are not active do not multiply.
    """
    names = tuple(parameters)

    def extend(chosen: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
        if index == len(names):
            yield chosen
            return
        parameter = parameters[names[index]]
        if not is_active(parameter, chosen):
            yield from extend(chosen, index + 1)
            return
        for value in values(parameter):
            yield from extend({**chosen, names[index]: value}, index + 1)

    return extend({}, 0)
