"""The points of a space: which trials have the same one, how many there are, which are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from itertools import islice
from typing import Any

from tune_rescon.spaces.combinations import combinations, is_finite
from tune_rescon.spaces.parameters import FloatParameter, Parameter
from tune_rescon.spaces.sampling import to_optuna

__all__ = ["count_points", "free_points", "pending_rows", "point_key"]


def point_key(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> Hashable:
    """Equal for ``values`` that are one point of the space.

    Args:
        parameters: the space's.
        values: of the active parameters, as :func:`.suggest` or as Optuna holds them.

    >>> parameters = {"drop_path": FloatParameter(type="float", low=0.0, high=0.3, step=0.1)}
    >>> point_key(parameters, {"drop_path": 0.1 + 0.2}) == point_key(parameters, {"drop_path": 0.3})
    True
    """
    held = to_optuna(values)
    return frozenset((name, _place(parameters[name], value)) for name, value in held.items())


def _place(parameter: Parameter, value: Any) -> Hashable:
    if isinstance(parameter, FloatParameter) and parameter.step is not None:
        # In binary, 0.1 + 0.2 is not 0.3, but the same step.
        step: int = round((value - parameter.low) / parameter.step)
        return step
    # True == 1, but they are two choices.
    return (isinstance(value, bool), value)


def count_points(parameters: Mapping[str, Parameter], *, most: int) -> int | None:
    """How many points a space has; None if they cannot be listed, or are more than ``most``."""
    if not all(map(is_finite, parameters.values())):
        return None
    found = sum(1 for _ in islice(combinations(parameters), most + 1))
    return found if found <= most else None


def free_points(
    parameters: Mapping[str, Parameter], taken: Collection[Hashable], *, most: int
) -> list[dict[str, Any]]:
    """The first ``most`` points of a space whose keys are not ``taken``.

    Empty if all points have run, or if the values of the space cannot be listed.
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
    """The ``rows`` that have not run, in order; a row that is there twice runs twice.

    Args:
        rows: points to run.
        ran: how often each point has run, by its key. What a row accounts for is taken off.
        key: of a row.
    """
    pending = []
    for row in rows:
        if ran[key(row)]:
            ran[key(row)] -= 1
        else:
            pending.append(row)
    return pending
