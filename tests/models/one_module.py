"""A Residual Attention Network with every kind of layer, and a third of the layers of the shallowest one."""

from __future__ import annotations

import dataclasses

from tune_rescon.config import TrialConfig
from tune_rescon.models import NetworkSpec, resolve_network

__all__ = ["one_module_spec"]


def one_module_spec(
    config: TrialConfig, *, classes: int, in_channels: int = 3, stem_channels: int = 8
) -> NetworkSpec:
    """Return the spec of ``config`` with only its first attention module, whose mask is the deepest.

    One opening unit comes before the module. It changes the width and has a stride, as in later stages.

    Args:
        config: The configuration.
        classes: Number of classes.
        in_channels: Number of image channels.
        stem_channels: Channels that enter the opening unit. If they are not a multiple of 16, its strided
            projection is of another type.
    """
    spec = resolve_network(config, classes=classes, in_channels=in_channels)
    stage = dataclasses.replace(spec.stages[0], stride=2, openings=1, modules=1)
    return dataclasses.replace(spec, stem_channels=stem_channels, stages=(stage,))
