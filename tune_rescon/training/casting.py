"""bf16 copies of a network's weights, all made by one kernel, and their gradients in fp32 by another.

Autocast casts each weight by a kernel of its own, and each gradient back: 300 of them in a step of
rescon_attention92_32, most of which take longer to begin than to run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["CastTogether"]


class CastTogether:
    """The weights of a network that autocast would cast: its convolutions' and linear layers'."""

    def __init__(self, network: nn.Module) -> None:
        """``network`` stays as it is."""
        self._weights = {
            f"{name}.weight": module.weight
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }

    def copies(self) -> dict[str, Tensor]:
        """Of each weight as it is now, by its name in the network; their gradients are wanted."""
        copies = [torch.empty_like(weight, dtype=torch.bfloat16) for weight in self._weights.values()]
        with torch.no_grad():
            torch._foreach_copy_(copies, list(self._weights.values()))
        return {name: copy.requires_grad_() for name, copy in zip(self._weights, copies, strict=True)}

    def hand_over(self, copies: Mapping[str, Tensor]) -> None:
        """Give the weights the gradients of their ``copies``."""
        pairs = [(self._weights[name], copy.grad) for name, copy in copies.items() if copy.grad is not None]
        gradients = [torch.empty_like(weight) for weight, _ in pairs]
        torch._foreach_copy_(gradients, [gradient for _, gradient in pairs])
        for (weight, _), gradient in zip(pairs, gradients, strict=True):
            weight.grad = gradient
