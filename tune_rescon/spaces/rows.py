"""Whether the trials a space asks to run first are ones it could have drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tune_rescon.errors import explain, unknown_name
from tune_rescon.spaces.combinations import is_active, is_among
from tune_rescon.spaces.fields import field_problem
from tune_rescon.spaces.parameters import CategoricalParameter, IntParameter, Parameter
from tune_rescon.spaces.problems import Path, Problem, shown

__all__ = ["broken_rows", "why_outside"]

#: How far from a step a number may be and still be on it, in steps: Optuna's own tolerance.
_STEP_TOLERANCE = 1e-8


def broken_rows(rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Every row of ``initial`` must give each active parameter, no other, a value that it can have."""
    for index, row in enumerate(rows):
        path = ("initial", index)
        for name in row:
            if name not in parameters:
                yield Problem(path=(*path, name), text=unknown_name("parameter", name, parameters))
        for name, parameter in parameters.items():
            problem = _problem((*path, name), name, parameter, row)
            if problem:
                yield problem


def _problem(path: Path, name: str, parameter: Parameter, row: Mapping[str, Any]) -> Problem | None:
    active = is_active(parameter, row)
    if name not in row:
        return Problem(path=path, text=explain("is missing")) if active else None
    if not active:
        assert parameter.when is not None, "a parameter without `when` is always active"
        values = ", ".join(map(shown, parameter.when.within))
        rule = f"must be left out unless {parameter.when.parameter} is {values}"
        return Problem(path=path, text=explain(rule, got=shown(row[name])))
    broken = field_problem(path, name, row[name])
    if broken:
        return broken
    outside = why_outside(parameter, row[name])
    return Problem(path=path, text=explain(outside, got=shown(row[name]))) if outside else None


def why_outside(parameter: Parameter, value: Any) -> str | None:
    """The rule that ``value`` breaks, which its field admits; None if the parameter can have it."""
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
