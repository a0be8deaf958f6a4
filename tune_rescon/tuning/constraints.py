"""Which networks of a space keep to its constraints: counted from their configuration, never built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, format_error
from tune_rescon.spaces import first_rows, preview, trial_config
from tune_rescon.tuning.cost_model import CostModel

__all__ = ["check_constraints", "violation_of"]

#: Draws by which it is checked that some networks keep to the constraints.
_DRAWS: Final = 1000


def violation_of(model: CostModel) -> Callable[[Mapping[str, Any]], str | None] | None:
    """Return a function that says which constraint a configuration breaks; None without constraints.

    Args:
        model: The costs of the networks of the space.

    Returns:
        A function of a configuration, as plain values. It returns a sentence, or None if the network keeps to
        every constraint.
    """
    section = model.space.constraints
    limits = {
        name: limit.max
        for name, limit in (("params_m", section.params_m), ("gmacs", section.gmacs))
        if limit is not None
    }
    if not limits:
        return None

    def violation(config: Mapping[str, Any]) -> str | None:
        cost = model.cost_of(TrialConfig.from_dict(config))
        for name, most in limits.items():
            value = getattr(cost, name)
            if value > most:
                return f"its network has {value:.4g} {_UNITS[name]}, and constraints.{name} allows {most:g}"
        return None

    return violation


_UNITS: Final = {"params_m": "million parameters", "gmacs": "billion multiply-adds"}


def check_constraints(model: CostModel) -> str | None:
    """Check that the first trials keep to the constraints, and that other networks do.

    Returns:
        A message with the share of the draws that keep to them; None without constraints.

    Raises:
        ConfigError: If a row of ``initial`` breaks a constraint, or every network does.
    """
    space, violation = model.space, violation_of(model)
    if violation is None:
        return None
    if space.sampler.type != "grid":
        for index, row in enumerate(space.initial):
            found = violation(trial_config(space, row).to_dict())
            if found is not None:
                hint = "Leave the row out, or allow more."
                raise ConfigError(format_error(found, where=f"initial[{index}]", hint=hint))
    drawn = list(first_rows(space)) if space.sampler.type == "grid" else preview(space, _DRAWS)
    broken = [found for row in drawn if (found := violation(trial_config(space, row).to_dict()))]
    if len(broken) == len(drawn):
        rule = "some networks of the space must keep to the constraints"
        raise ConfigError(
            format_error(rule, got=f"none of {len(drawn)}; of one, {broken[0]}", where="constraints")
        )
    kept = len(drawn) - len(broken)
    return f"constraints: {kept / len(drawn):.0%} of the networks keep to them; the others are not trained"
