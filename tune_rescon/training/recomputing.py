"""Activation checkpointing: a network's training keeps each unit's input only, and computes the rest again.

The batch stays whole where micro-batches would cut it, so batch norm sees what it would have seen. Outputs,
gradients, running statistics and random numbers are the plain network's.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tune_rescon.models.network import Mask, PreActivationUnit, ResNeXtUnit

__all__ = ["activations_recomputed", "recompute_activations"]


def recompute_activations(network: nn.Module) -> None:
    """Have every residual unit, and the end of every mask, computed again for its gradient.

    Only where gradients are wanted. Names stay as they are, and so does what a copy or an export of the
    weights holds.
    """
    for module in _recomputed(network):
        # A bound method, not a closure: it comes along in a deep copy, bound to the copy.
        module.forward = types.MethodType(_forward, module)


@contextlib.contextmanager
def activations_recomputed(network: nn.Module) -> Iterator[None]:
    """Within it ``network`` runs as after :func:`recompute_activations`; afterwards it is as it was.

    The gradient may be computed outside. A network can be scripted, copied and pickled between its runs.
    """
    recompute_activations(network)
    try:
        yield
    finally:
        for module in _recomputed(network):
            del module.forward


def _recomputed(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        if isinstance(module, PreActivationUnit | ResNeXtUnit):
            yield module
        elif isinstance(module, Mask):
            yield module.head


def _forward(self: nn.Module, x_BCHW: Tensor) -> Tensor:
    plain = types.MethodType(type(self).forward, self)
    if not torch.is_grad_enabled():
        unchanged_BCHW: Tensor = plain(x_BCHW)
        return unchanged_BCHW
    # torch keeps the state of the random numbers by itself: dropped paths are the same ones again.
    y_BCHW: Tensor = checkpoint(
        plain,
        x_BCHW,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_held(self)),
    )
    return y_BCHW


@contextlib.contextmanager
def _statistics_held(module: nn.Module) -> Iterator[None]:
    """Within it batch norm moves its running statistics by nothing: the first computation has moved them."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    held = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Without statistics torch would save fewer tensors for the gradient than it did the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
