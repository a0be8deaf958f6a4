"""Optimizers that torch lacks, or has for matrices only: Lion, and Muon for the weights of convolutions.

The multiplier of a schedule, checkpoints and gradient clipping work as with torch's own optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

__all__ = ["Lion", "Muon"]


class _MomentumOptimizer(Optimizer):
    """The step of optimizers with decoupled weight decay and a momentum for each weight."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, after calling ``closure`` if there is one; return its result."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                momenta = [self._kept(weight, "momentum") for weight in weights]
                self._update(group, weights, [weight.grad for weight in weights], momenta)
        return loss

    def _kept(self, weight: Tensor, name: str) -> Tensor:
        """Return a tensor of the optimizer's state; it starts with zeros."""
        state: dict[str, Tensor] = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight)
        return state[name]

    def _update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> None:
        """Update the momenta and the weights, which have decayed."""
        raise NotImplementedError


class Lion(_MomentumOptimizer):
    """Lion: the sign of a momentum, with decoupled weight decay (Chen et al., 2023, algorithm 2).

    Every weight moves by the learning rate in each step, so a third to a tenth of AdamW's rate suits it.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        """Create the optimizer.

        Args:
            params: groups of parameters, each with its ``weight_decay``.
            lr: the learning rate of groups that have none.
            betas: share of the momentum in an update, and decay of the momentum.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @override
    def _update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> None:
        share, decay = group["betas"]
        updates = torch._foreach_lerp(gradients, momenta, share)
        torch._foreach_sign_(updates)
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
        torch._foreach_lerp_(momenta, gradients, 1 - decay)


#: Coefficients and steps of Muon's Newton-Schulz iteration (Jordan et al., 2024).
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5

_EPS: Final = 1e-8


class Muon(_MomentumOptimizer):
    """Muon for the groups with ``matrix: True``, AdamW for the others (Jordan et al., 2024).

    A momentum is replaced by the nearest matrix with orthogonal rows or columns. The weights of a convolution
    are a matrix of one row for each output channel. Updates are scaled to the size of AdamW's (Liu et al.,
    2025), so that both kinds of groups have one learning rate.

    ``torch.optim.Muon`` computes the same updates, but refuses convolutions and every other parameter.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.999),
        nesterov: bool = True,
    ) -> None:
        """Create the optimizer.

        Args:
            params: groups of parameters, each with its ``weight_decay`` and ``matrix``.
            lr: the learning rate of groups that have none.
            betas: decay of the momentum, and of the mean squared gradients of AdamW.
            nesterov: let Muon look ahead along the momentum.
        """
        defaults = {"lr": lr, "betas": betas, "nesterov": nesterov, "weight_decay": 0.0, "matrix": False}
        super().__init__(params, defaults)

    @override
    def _update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> None:
        torch._foreach_lerp_(momenta, gradients, 1 - group["betas"][0])
        step = self._orthogonal_step if group["matrix"] else self._adamw_step
        step(group, weights, gradients, momenta)

    def _orthogonal_step(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> None:
        for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
            ahead = gradient.lerp(momentum, group["betas"][0]) if group["nesterov"] else momentum
            update = _orthogonal(ahead.flatten(1))
            rate = group["lr"] * 0.2 * math.sqrt(max(update.shape))
            weight.add_(update.view(weight.shape), alpha=-rate)

    def _adamw_step(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> None:
        beta1, beta2 = group["betas"]
        group["steps"] = steps = group.get("steps", 0) + 1
        squares = [self._kept(weight, "squares") for weight in weights]
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        spreads = torch._foreach_sqrt(squares)
        torch._foreach_div_(spreads, math.sqrt(1 - beta2**steps))
        torch._foreach_add_(spreads, _EPS)
        torch._foreach_addcdiv_(weights, momenta, spreads, value=-group["lr"] / (1 - beta1**steps))


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return approximately the nearest matrix with orthogonal rows or columns.

    The singular values of the result are about 0.7 to 1.2. The iteration is stable in bfloat16.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.T.bfloat16()
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)
