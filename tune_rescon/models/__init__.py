"""Residual Attention Networks: their description in numbers, and the networks built from it.

``resolve_network`` turns a trial's configuration into a :class:`NetworkSpec`. ``count_params_and_macs``
returns its parameters and multiply-adds, and ``build_from_spec`` builds the network. ``describe_network``,
``network_cost`` and ``build_described`` do the same for every network that a trial can train, also timm's and
a user's own. Only the names that build or load networks need torch; they import it on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names
from tune_rescon.models.external_spec import (
    ExternalSpec,
    NetworkDescription,
    describe_network,
    description_from_dict,
    network_cost,
)
from tune_rescon.models.presets import list_presets, resolve_network
from tune_rescon.models.spec import (
    MINIMUM_IMAGE_SIZE,
    Cost,
    Layer,
    NetworkSpec,
    count_params_and_macs,
    iter_layers,
    minimum_image_size,
)

if TYPE_CHECKING:
    from tune_rescon.models.external import build_described
    from tune_rescon.models.network import ResidualAttentionNetwork, build_from_spec, build_network
    from tune_rescon.models.rescon import load_rescon
else:  # hidden from the type checker, which would accept any name
    # A dry run computes the cost of networks without the second that importing torch takes.
    __getattr__, __all__ = lazy_names(__name__)
