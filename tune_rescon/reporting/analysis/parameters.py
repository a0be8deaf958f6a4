"""The position of each trial on each parameter's axis: numbers for plots, labels for readers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.reporting.formatting import format_number, setting_text
from tune_rescon.spaces import CategoricalParameter, Space
from tune_rescon.tuning import StudyResult

__all__ = [
    "Axis",
    "parameter_axes",
]


#: Position of trials without the parameter: below the axis.
ABSENT: Final = -0.12

_ABSENT: Final = object()

#: Number of labels on a numeric axis, and the most characters of a label.
LABELS: Final = 4
LONGEST_LABEL: Final = 14


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A parameter's values as positions on a scale from 0 to 1."""

    name: str
    positions: Mapping[int, float]
    """Position of every trial by its number, 0..1; :data:`ABSENT` for a trial without the parameter."""
    ticks: tuple[tuple[float, str], ...]
    """Positions and their labels, in ascending order."""
    log: bool = False
    is_categorical: bool = False


def parameter_axes(result: StudyResult) -> tuple[Axis, ...]:
    """Return an axis for each sampled parameter whose values differ, in the order of the space."""
    sampled = dict.fromkeys(name for trial in result.trials for name in trial.parameters)
    names = [*(name for name in result.space.parameters if name in sampled)]
    names += [name for name in sampled if name not in names]
    axes = (_axis(result, name) for name in names)
    return tuple(axis for axis in axes if len(set(axis.positions.values())) > 1)


def _axis(result: StudyResult, name: str) -> Axis:
    # A trial that was sampled before the space had the parameter still has a value of it.
    settings = {trial.number: trial.setting(name, _ABSENT) for trial in result.trials}
    values = {number: value for number, value in settings.items() if value is not _ABSENT}
    is_categorical = _is_categorical(result.space, name, values.values())
    log = False
    if is_categorical:
        choices = _choices(result.space, name, list(values.values()))
        places = {str(choice): _place(index, len(choices)) for index, choice in enumerate(choices)}
        ticks = [(place, _short(setting_text(name, choice))) for choice, place in places.items()]
        positions = {number: places[str(value)] for number, value in values.items()}
    else:
        low, high = _range(result.space, name, values)
        log = bool(getattr(result.space.parameters.get(name), "log", False)) and low > 0
        steps = [step / (LABELS - 1) for step in range(LABELS)] if low < high else [0.0]
        ticks = [(step, _value_at(step, low, high, log=log)) for step in steps]
        positions = {number: _share(float(value), low, high, log=log) for number, value in values.items()}
    if len(values) < len(settings):
        ticks = [(ABSENT, "none"), *ticks]
    return Axis(
        name=name,
        positions={number: positions.get(number, ABSENT) for number in settings},
        ticks=tuple(ticks),
        log=log,
        is_categorical=is_categorical,
    )


def _is_categorical(space: Space, name: str, values: Any) -> bool:
    if isinstance(space.parameters.get(name), CategoricalParameter):
        return True
    return not all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _choices(space: Space, name: str, values: Sequence[Any]) -> list[str]:
    """Return the choices in the file's order, in the form that Optuna stores: a list as its text."""
    parameter = space.parameters.get(name)
    declared = parameter.choices if isinstance(parameter, CategoricalParameter) else ()
    held = [str(list(choice)) if isinstance(choice, tuple) else str(choice) for choice in declared]
    used = set(map(str, values))
    return [choice for choice in held if choice in used] + sorted(used - set(held))


def _range(space: Space, name: str, values: Mapping[int, Any]) -> tuple[float, float]:
    parameter = space.parameters.get(name)
    bounds = [getattr(parameter, bound) for bound in ("low", "high") if hasattr(parameter, bound)]
    # Trials of an earlier version of the space may lie outside the current bounds.
    whole = [*bounds, *values.values()]
    return float(min(whole)), float(max(whole))


def _place(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 0.5


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    """Return the position of a value between the bounds, 0..1.

    >>> round(_share(0.01, 0.001, 0.1, log=True), 3), _share(5.0, 5.0, 5.0, log=False)
    (0.5, 0.0)
    """
    if low == high:
        return 0.0
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _value_at(share: float, low: float, high: float, *, log: bool) -> str:
    value = low * (high / low) ** share if log else low + (high - low) * share
    return format_number(float(f"{value:.2g}")) if log else format_number(round(value, 6))


def _short(label: str) -> str:
    """Shorten a label so that it leaves room for its neighbours.

    >>> _short("a very long name of a choice")
    'a very long n…'
    """
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
