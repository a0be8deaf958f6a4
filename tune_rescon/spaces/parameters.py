"""One searched field of a trial: its range or choices, and the condition under which a trial has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from tune_rescon.spaces.sections import FROM_LIST, PositiveInt, Section, Value
from tune_rescon.spaces.yaml_document import Problem, broken_rule

__all__ = [
    "CategoricalParameter",
    "FloatParameter",
    "IntParameter",
    "Parameter",
    "When",
    "combinations",
    "count_points",
    "is_active",
    "is_among",
    "is_finite",
    "values_of",
]


#: The most steps of a range. More are a typing error, and Optuna cannot divide them exactly.
_MOST_STEPS: Final = 1_000_000

#: A whole number that a float represents exactly, because Optuna stores every parameter as a float.
_ExactInt = Annotated[int, Field(ge=-(2**53), le=2**53)]


class When(Section):
    """The condition of a parameter: another one, declared above it, has one of these values."""

    aliases: ClassVar[Mapping[str, str]] = {
        "name": "write `parameter`",
        "value": "write `in`",
        "values": "write `in`",
        "equals": "write `in`",
    }

    parameter: str
    """The other parameter, a categorical."""
    within: Annotated[tuple[Value, ...], FROM_LIST] = Field(alias="in", min_length=1)
    """The values of the other parameter for which this one exists."""


_RANGE_ALIASES: Final[Mapping[str, str]] = {
    "min": "write `low`",
    "max": "write `high`",
    "lower": "write `low`",
    "upper": "write `high`",
    "values": "write `type: categorical` with `choices`",
    "value": "a constant belongs in `fixed`",
    "distribution": "write `type`",
    "q": "write `step`",
    "base": "write `log: true`",
    "condition": "write `when`",
    "conditions": "write `when`",
    "choices": "only a categorical has choices",
}


class _NumberParameter(Section):
    aliases: ClassVar[Mapping[str, str]] = _RANGE_ALIASES

    def check_rules(self) -> Iterator[Problem]:
        """Check that ``low < high``, ``log`` has positive bounds and no step, and ``step`` fits the range."""
        low, high, step, log = (getattr(self, name) for name in ("low", "high", "step", "log"))
        got = f"low={low}, high={high}"
        if low >= high:
            hint = "A single value belongs in `fixed`." if low == high else ""
            yield broken_rule(("low",), "`low < high` must hold", got=got, hint=hint)
        elif step is not None and (rule := _broken_step(low, high, step)):
            yield broken_rule(("step",), rule, got=f"{got}, step={step}")
        if log and low <= 0:
            yield broken_rule(("low",), "`low > 0` must hold with `log: true`", got=f"low={low}")
        if log and step is not None:
            yield broken_rule(("step",), "`log: true` excludes a step", got=f"step={step}")


def _broken_step(low: float, high: float, step: float) -> str | None:
    """Return the rule that a step breaks, or None."""
    # In decimals, because 0.3 is no multiple of 0.1 in binary.
    steps = (Decimal(str(high)) - Decimal(str(low))) / Decimal(str(step))
    if steps > _MOST_STEPS:
        return f"must cut the range into at most {_MOST_STEPS} steps"
    return "must divide the range `high - low`" if steps % 1 else None


class IntParameter(_NumberParameter):
    """A whole number, both bounds included."""

    type: Literal["int"]
    """The kind of parameter."""
    low: _ExactInt
    """The lowest value."""
    high: _ExactInt
    """The highest value."""
    log: bool = False
    """Whether values are drawn on a logarithmic scale, as suits a learning rate."""
    step: PositiveInt | None = None
    """The values are low, low + step, ... high; null: every whole number."""
    when: When | None = None
    """The condition under which a trial has this parameter; null: always."""


class FloatParameter(_NumberParameter):
    """A number, both bounds included."""

    type: Literal["float"]
    """The kind of parameter."""
    low: float
    """The lowest value."""
    high: float
    """The highest value."""
    log: bool = False
    """Whether values are drawn on a logarithmic scale, as suits a learning rate."""
    step: Annotated[float, Field(gt=0)] | None = None
    """The values are low, low + step, ... high; null: any number between."""
    when: When | None = None
    """The condition under which a trial has this parameter; null: always."""


class CategoricalParameter(Section):
    """One of some values."""

    aliases: ClassVar[Mapping[str, str]] = {
        "values": "write `choices`",
        "categories": "write `choices`",
        "options": "write `choices`",
        "value": "a constant belongs in `fixed`",
        "distribution": "write `type`",
        "condition": "write `when`",
        "conditions": "write `when`",
        "low": "only `type: int` and `type: float` have bounds",
        "high": "only `type: int` and `type: float` have bounds",
    }

    type: Literal["categorical"]
    """The kind of parameter."""
    choices: Annotated[tuple[Value, ...], FROM_LIST] = Field(min_length=1)
    """The values to choose from."""
    when: When | None = None
    """The condition under which a trial has this parameter; null: always."""


Parameter = Annotated[IntParameter | FloatParameter | CategoricalParameter, Field(discriminator="type")]


def is_among(value: object, choices: Iterable[object]) -> bool:
    """Return whether ``value`` is one of ``choices``; unlike with ``in``, a bool does not equal a number.

    >>> is_among(1, [True, 2]), is_among(1.0, [1, 2])
    (False, True)
    """
    kind = isinstance(value, bool)
    return any(value == choice and kind == isinstance(choice, bool) for choice in choices)


def is_active(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Return whether a trial with ``values`` has ``parameter``: its ``when`` holds or is missing.

    If the trial does not have the parent, the parameter is not active either.
    """
    when = parameter.when
    return when is None or (when.parameter in values and is_among(values[when.parameter], when.within))


def is_finite(parameter: Parameter) -> bool:
    """Return whether the values of ``parameter`` can be listed."""
    return not isinstance(parameter, FloatParameter) or parameter.step is not None


def values_of(parameter: Parameter) -> Sequence[Any]:
    """Return every value of a finite parameter, in order.

    >>> values_of(FloatParameter(type="float", low=0.1, high=0.3, step=0.1))
    (0.1, 0.2, 0.3)
    """
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices
    if isinstance(parameter, IntParameter):
        return range(parameter.low, parameter.high + 1, parameter.step or 1)
    assert parameter.step is not None, "a continuous parameter has no list of values"
    # In decimals, because 0.1 + 2 * 0.1 is 0.30000000000000004 in binary.
    low, high, step = (Decimal(str(number)) for number in (parameter.low, parameter.high, parameter.step))
    return tuple(float(low + step * index) for index in range(int((high - low) / step) + 1))


def combinations(
    parameters: Mapping[str, Parameter], values: Callable[[Parameter], Sequence[Any]] = values_of
) -> Iterator[dict[str, Any]]:
    """Yield every combination of values of the active parameters once; the last parameter changes fastest.

    Args:
        parameters: the parameters of a space.
        values: returns the values of a parameter to combine.
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


def count_points(parameters: Mapping[str, Parameter], *, most: int) -> int | None:
    """Return the number of points of a space; None if they cannot be listed or are more than ``most``."""
    if not all(map(is_finite, parameters.values())):
        return None
    found = sum(1 for _ in islice(combinations(parameters), most + 1))
    return found if found <= most else None
