"""Check the constraints of a space. A network's size is counted; its latency is measured once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, format_error
from tune_rescon.models import NetworkDescription
from tune_rescon.spaces import Latency, first_rows, preview, trial_config
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.study import StudyRecord

__all__ = ["CONSTRAINED_DRAWS", "check_constraints", "violation_of"]

#: The limits on a network's size, and their units.
_UNITS: Final = {"params_m": "million parameters", "gmacs": "billion multiply-adds"}

#: Number of draws that estimate which share of the networks keeps to the constraints.
CONSTRAINED_DRAWS: Final = 1000

#: Seconds after which the estimate measures no more latencies, if one draw has kept to the constraints.
_MEASURING_SECONDS: Final = 30.0


class Latencies:
    """The latencies of a search's networks on one device, each measured once for the whole search.

    They are stored in the study, so that a resumed search makes the same decisions, also on another machine.
    """

    def __init__(self, section: Latency, record: StudyRecord | None) -> None:
        """Read the device's latencies from ``record``; None keeps new ones in this process only."""
        self.section = section
        self._record = record
        self._prefix = f"latency_ms:{section.device}:"
        recorded = {} if record is None else record.attributes()
        self._measured = {
            name: float(value) for name, value in recorded.items() if name.startswith(self._prefix)
        }

    def message(self) -> str:
        """Return a sentence with the range of the measured latencies; empty if none was measured."""
        if not self._measured:
            return ""
        low, high = (f"{choose(self._measured.values()):.3g}" for choose in (min, max))
        return f". An image takes {low if low == high else f'{low} to {high}'} ms on {self.section.device}"

    def measure(self, spec: NetworkDescription) -> float:
        """Return a network's latency for one image in milliseconds. The first call measures it.

        Raises:
            ResourceError: If this machine does not have the device.
        """
        # Networks that differ only in drop_path are equal in eval mode, in which no path is dropped.
        spec = dataclasses.replace(spec, drop_path=0.0)
        text = json.dumps(spec.to_dict(), sort_keys=True)
        name = f"{self._prefix}{blake2b(text.encode(), digest_size=12).hexdigest()}"
        if name not in self._measured:
            # Imported here because it imports torch, which the driver of most searches does not need.
            from tune_rescon.training import probe

            self._measured[name] = probe.measure_latency(spec, self.section.device)
            if self._record is not None:
                self._record.set_attribute(name, self._measured[name])
        return self._measured[name]


def violation_of(
    costs: CostModel, record: StudyRecord | None = None
) -> Callable[[Mapping[str, Any]], str | None] | None:
    """Return a function that says which constraint a configuration (plain values) breaks.

    The function returns None if the configuration breaks no constraint. If the space has no constraints, the
    result is None instead of a function. ``record`` stores the measured latencies.
    """
    return _violation(costs, _latencies(costs, record))


def _latencies(costs: CostModel, record: StudyRecord | None) -> Latencies | None:
    section = costs.space.constraints.latency_ms
    return None if section is None else Latencies(section, record)


def _violation(
    costs: CostModel, latencies: Latencies | None
) -> Callable[[Mapping[str, Any]], str | None] | None:
    section = costs.space.constraints
    limits = {name: limit.max for name in _UNITS if (limit := getattr(section, name)) is not None}
    if not limits and latencies is None:
        return None

    def violation(values: Mapping[str, Any]) -> str | None:
        config = TrialConfig.from_dict(values)
        cost = costs.cost_of(config)
        for name, limit in limits.items():
            value = getattr(cost, name)
            if value > limit:
                return f"its network has {value:.4g} {_UNITS[name]}, and constraints.{name} allows {limit:g}"
        # Last, because measuring takes long.
        spec = None if latencies is None else costs.network(config)
        if latencies is None or spec is None:
            return None
        latency = latencies.measure(spec)
        if latency <= latencies.section.max:
            return None
        return (
            f"its network takes {latency:.4g} ms for an image on {latencies.section.device}, and"
            f" constraints.latency_ms allows {latencies.section.max:g}"
        )

    return violation


def check_constraints(costs: CostModel, record: StudyRecord | None = None) -> str | None:
    """Check that the initial trials keep to the constraints, and that other networks of the space can.

    Args:
        costs: The costs of the networks of the space.
        record: The record of a resumed search; None for a new one.

    Returns:
        A message with the share of the draws that keep to the constraints; None without constraints.

    Raises:
        ConfigError: If a row of ``initial`` breaks a constraint, or every network does.
        ResourceError: If this machine does not have the device on which latency is measured.
    """
    space, latencies = costs.space, _latencies(costs, record)
    violation = _violation(costs, latencies)
    if violation is None:
        return None
    if space.sampler.type != "grid":
        for index, row in enumerate(space.initial):
            broken = violation(trial_config(space, row).to_dict())
            if broken is not None:
                hint = "Leave the row out, or allow more."
                raise ConfigError(format_error(broken, where=f"initial[{index}]", hint=hint))
    draws = list(first_rows(space)) if space.sampler.type == "grid" else preview(space, CONSTRAINED_DRAWS)
    violations: list[str] = []
    allowed, began = 0, time.monotonic()
    for values in draws:
        broken = violation(trial_config(space, values).to_dict())
        if broken is None:
            allowed += 1
        else:
            violations.append(broken)
        if latencies is not None and allowed and time.monotonic() - began > _MEASURING_SECONDS:
            break
    if not allowed:
        rule = "some networks of the space must keep to the constraints"
        raise ConfigError(
            format_error(
                rule, got=f"none of {len(draws)} draws: in one, {violations[0]}", where="constraints"
            )
        )
    share = allowed / (allowed + len(violations))
    message = f"constraints: {share:.0%} of the networks keep to them; the others are not trained"
    return message if latencies is None else f"{message}{latencies.message()}"
