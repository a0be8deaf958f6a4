"""Residual Attention Networks: in numbers (no torch), and built from those numbers (torch, on first use).

``resolve_network`` turns a trial's configuration into a :class:`NetworkSpec`; ``count`` prices it and
``build_from_spec`` builds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names
from tune_rescon.models.presets import list_presets, resolve_network
from tune_rescon.models.spec import (
    MINIMUM_IMAGE_SIZE,
    Cost,
    Layer,
    NetworkSpec,
    count,
    minimum_image_size,
    walk,
)

if TYPE_CHECKING:
    from tune_rescon.models.network import ResidualAttentionNetwork, build_from_spec, build_network
    from tune_rescon.models.rescon import load_rescon

__all__ = [
    "MINIMUM_IMAGE_SIZE",
    "Cost",
    "Layer",
    "NetworkSpec",
    "ResidualAttentionNetwork",
    "build_from_spec",
    "build_network",
    "count",
    "list_presets",
    "load_rescon",
    "minimum_image_size",
    "resolve_network",
    "walk",
]

#: Names whose modules import torch: a dry run prices networks without that second of start-up.
__getattr__ = lazy_names(
    __name__,
    {
        "ResidualAttentionNetwork": "network",
        "build_from_spec": "network",
        "build_network": "network",
        "load_rescon": "rescon",
    },
)
