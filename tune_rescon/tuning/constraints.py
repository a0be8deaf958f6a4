"""The constraints of a space: a network's size is counted, and its latency is measured once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, format_error
from tune_rescon.models import NetworkDescription, describe_network
from tune_rescon.spaces import Latency, first_rows, preview, trial_config
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.study import StudyRecord

__all__ = ["check_constraints", "violation_of"]

#: The limits on a network's size, and their units.
_UNITS: Final = {"params_m": "million parameters", "gmacs": "billion multiply-adds"}

#: Number of draws from which the share of networks that keep to the constraints is estimated.
_DRAWS: Final = 1000

#: Seconds of measuring latencies after which no more draws are checked, if one has kept to the constraints.
_MEASURING: Final = 30.0


class Latencies:
    """The latencies of a search's networks on one device, each measured once for the whole search.

    They are stored in the study, so that a resumed search makes the same decisions, also on another machine.
    """

    def __init__(self, section: Latency, record: StudyRecord | None) -> None:
        """Read the device's latencies from ``record``; None keeps new ones in this process only."""
        self.section = section
        self._device, self._record = section.device, record
        self._prefix = f"latency_ms:{section.device}:"
        recorded = {} if record is None else record.attributes()
        self._known = {
            name: float(value) for name, value in recorded.items() if name.startswith(self._prefix)
        }

    def words(self) -> str:
        """Return a sentence with the range of the measured latencies; empty if none was measured."""
        if not self._known:
            return ""
        least, most = (f"{choose(self._known.values()):.3g}" for choose in (min, max))
        return f". An image takes {least if least == most else f'{least} to {most}'} ms on {self._device}"

    def of(self, spec: NetworkDescription) -> float:
        """Return a network's latency for one image in milliseconds. The first call measures it.

        Raises:
            ResourceError: If this machine does not have the device.
        """
        # In eval mode no path is dropped.
        same = dataclasses.replace(spec, drop_path=0.0)
        plain = json.dumps(same.to_dict(), sort_keys=True)
        name = f"{self._prefix}{blake2b(plain.encode(), digest_size=12).hexdigest()}"
        if name not in self._known:
            # Imported here because it imports torch, which the driver of most searches does not need.
            from tune_rescon.training import probe

            self._known[name] = probe.measure_latency(same, self._device)
            if self._record is not None:
                self._record.set_attribute(name, self._known[name])
        return self._known[name]


def violation_of(
    model: CostModel, record: StudyRecord | None = None
) -> Callable[[Mapping[str, Any]], str | None] | None:
    """Return a function that says which constraint a configuration (plain values) breaks.

    The function returns None if the configuration breaks no constraint. If the space has no constraints, the
    result is None instead of a function. ``record`` stores the measured latencies.
    """
    return _violation(model, _latencies(model, record))


def _latencies(model: CostModel, record: StudyRecord | None) -> Latencies | None:
    section = model.space.constraints.latency_ms
    return None if section is None else Latencies(section, record)


def _violation(
    model: CostModel, latencies: Latencies | None
) -> Callable[[Mapping[str, Any]], str | None] | None:
    section = model.space.constraints
    limits = {name: limit.max for name in _UNITS if (limit := getattr(section, name)) is not None}
    if not limits and latencies is None:
        return None

    def violation(values: Mapping[str, Any]) -> str | None:
        config = TrialConfig.from_dict(values)
        cost = model.cost_of(config)
        for name, most in limits.items():
            value = getattr(cost, name)
            if value > most:
                return f"its network has {value:.4g} {_UNITS[name]}, and constraints.{name} allows {most:g}"
        if latencies is None:
            return None
        # Measured last, and only for networks of a size that is allowed.
        images = model.datasets.get(config.dataset or model.space.dataset.name)
        if images is None:
            return None
        found = latencies.of(describe_network(config, classes=images.classes, in_channels=images.channels))
        if found <= latencies.section.max:
            return None
        return (
            f"its network takes {found:.4g} ms for an image on {latencies.section.device}, and"
            f" constraints.latency_ms allows {latencies.section.max:g}"
        )

    return violation


def check_constraints(model: CostModel, record: StudyRecord | None = None) -> str | None:
    """Check that the initial trials keep to the constraints, and that other networks of the space can.

    Args:
        model: The costs of the networks of the space.
        record: The record of a resumed search; None for a new one.

    Returns:
        A message with the share of the draws that keep to the constraints; None without constraints.

    Raises:
        ConfigError: If a row of ``initial`` breaks a constraint, or every network does.
        ResourceError: If this machine does not have the device on which latency is measured.
    """
    space, latencies = model.space, _latencies(model, record)
    violation = _violation(model, latencies)
    if violation is None:
        return None
    if space.sampler.type != "grid":
        for index, row in enumerate(space.initial):
            found = violation(trial_config(space, row).to_dict())
            if found is not None:
                hint = "Leave the row out, or allow more."
                raise ConfigError(format_error(found, where=f"initial[{index}]", hint=hint))
    drawn = list(first_rows(space)) if space.sampler.type == "grid" else preview(space, _DRAWS)
    broken: list[str] = []
    kept, began = 0, time.monotonic()
    for values in drawn:
        found = violation(trial_config(space, values).to_dict())
        if found is None:
            kept += 1
        else:
            broken.append(found)
        if latencies is not None and kept and time.monotonic() - began > _MEASURING:
            break
    if not kept:
        rule = "some networks of the space must keep to the constraints"
        raise ConfigError(
            format_error(rule, got=f"none of {len(drawn)} draws: in one, {broken[0]}", where="constraints")
        )
    share = f"{kept / (kept + len(broken)):.0%}"
    words = f"constraints: {share} of the networks keep to them; the others are not trained"
    return words if latencies is None else f"{words}{latencies.words()}"
