"""Describe the network of a trial: a Residual Attention Network, a network of timm, or a user's own.

This module does not import torch. :func:`describe_network` turns a trial's configuration into a
``NetworkSpec`` (a Residual Attention Network) or an :class:`ExternalSpec`. A checkpoint keeps either as plain
values. :mod:`tune_rescon.models.external` builds the network from it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, format_error
from tune_rescon.models.presets import resolve_network
from tune_rescon.models.spec import Cost, NetworkSpec, checked_fields, count_params_and_macs
from tune_rescon.user_code import split_function

__all__ = [
    "RESIDUAL_ATTENTION_FIELDS",
    "TIMM",
    "ExternalSpec",
    "NetworkDescription",
    "describe_network",
    "description_from_dict",
    "network_cost",
]

#: Prefix of the name of a network of timm.
TIMM: Final = "timm/"

#: Side of the input in pixels if ``image_size`` is None, as with ``layout: auto``. The nominal sizes of
#: timm's networks are not used: reading them would need timm.
_IMAGE_SIZE: Final = 32

#: TrialConfig's fields that describe a Residual Attention Network only.
RESIDUAL_ATTENTION_FIELDS: Final = (
    *("preset", "layout", "depth", "width"),
    *("attention", "attention_learning", "mask", "added_reference"),
)


@dataclass(frozen=True, kw_only=True)
class ExternalSpec:
    """A network of timm, or of a user's function, and the arguments with which it is built."""

    network: str
    """``timm/NAME`` or ``MODULE:FUNCTION``."""
    classes: int
    in_channels: int
    image_size: int
    """Side of the network's square input, pixels."""
    drop_path: float
    """``timm/NAME`` only: ``drop_path_rate``."""

    @property
    def timm_name(self) -> str | None:
        """The name of the network in timm; None if a user's function builds it."""
        return self.network.removeprefix(TIMM) if self.network.startswith(TIMM) else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint or JSON; :func:`description_from_dict` reads them back."""
        return dataclasses.asdict(self)


#: The description of any network that a trial can train.
NetworkDescription: TypeAlias = NetworkSpec | ExternalSpec


def description_from_dict(values: Mapping[str, Any]) -> NetworkDescription:
    """Return the description whose ``to_dict`` returned ``values``, also after a round trip through JSON.

    Raises:
        NetworkError: fields are missing or unknown, because another version wrote them.
    """
    if "network" in values:
        return ExternalSpec(**checked_fields(ExternalSpec, values))
    return NetworkSpec.from_dict(values)


def describe_network(config: TrialConfig, *, classes: int, in_channels: int) -> NetworkDescription:
    """Return the description of the network that ``config`` names.

    It does not check whether timm or the user's module has a network of this name.

    Args:
        config: the trial's configuration.
        classes: number of classes.
        in_channels: number of image channels.

    Raises:
        NetworkError: ``network`` has another form, a field does not apply to it, or the network of this
            family does not exist (see :func:`.resolve_network`).
    """
    if config.network is None:
        if config.pretrained:
            rule = f"only a network of timm has pretrained weights (`network: {TIMM}NAME`)"
            hint = "`init_from` names a file of weights."
            raise NetworkError(format_error(rule, got="pretrained true", where="pretrained", hint=hint))
        return resolve_network(config, classes=classes, in_channels=in_channels)
    spec = ExternalSpec(
        network=config.network,
        classes=classes,
        in_channels=in_channels,
        image_size=config.image_size or _IMAGE_SIZE,
        drop_path=config.drop_path,
    )
    if not spec.timm_name and split_function(config.network) is None:
        rule = f"must be {TIMM}NAME, or MODULE:FUNCTION of your own code"
        raise NetworkError(format_error(rule, got=config.network, where="network"))
    _check_applicable(config, spec)
    return spec


def _check_applicable(config: TrialConfig, spec: ExternalSpec) -> None:
    """Check that every field that is set applies to this network. A default counts as not set.

    Raises:
        NetworkError: a field does not apply.
    """
    defaults = TrialConfig()
    timm_only = () if spec.timm_name else ("drop_path", "pretrained")
    for name in (*RESIDUAL_ATTENTION_FIELDS, *timm_only):
        value = getattr(config, name)
        if value != getattr(defaults, name):
            rule = f"`{name}` does not apply to the network {spec.network}"
            hint = (
                f"Leave out `{name}`; where a search compares networks, let it be a parameter with"
                " `when: {parameter: network, in: [...]}`, which may have a single choice."
            )
            raise NetworkError(format_error(rule, got=f"{name} {value}", where=name, hint=hint))
    if config.pretrained and config.init_from is not None:
        rule = "weights begin as timm's pretrained ones or as those of a file, not both"
        raise NetworkError(format_error(rule, got=f"init_from {config.init_from}", where="pretrained"))


def network_cost(spec: NetworkDescription) -> Cost:
    """Return the number of a network's parameters, and of its multiply-adds for an image of its size.

    For a network from elsewhere, torch is imported and counts them, without computing the network.

    Raises:
        NetworkError: a network from elsewhere cannot be built.
    """
    if isinstance(spec, NetworkSpec):
        return count_params_and_macs(spec)
    # Imported late and by its name: that module imports torch, and this module.
    external = importlib.import_module("tune_rescon.models.external")
    measured: Callable[[ExternalSpec], Cost] = external.measured_cost
    # Dropped paths do not change the cost. Without them, trials with different rates share a cached cost.
    return measured(dataclasses.replace(spec, drop_path=0.0))
