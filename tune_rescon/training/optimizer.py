"""Optimisers and the scheduler over them, as a trial's configuration names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tune_rescon.config import TrialConfig

__all__ = ["decay_groups", "make_optimizer", "make_scheduler"]


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weights of convolutions and linear layers decay; 1-d parameters do not.

    The authors' Caffe solver decays every convolution and the classifier. Its batch norms keep scale and
    shift apart; decaying them, or biases, only pulls on what the next normalisation undoes (He et al. 2019,
    section 3.1), so they are left out here. 1-d is exactly those: batch norm's scale and shift, and biases.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(network: nn.Module, config: TrialConfig, *, device: torch.device) -> Optimizer:
    """SGD or AdamW over ``network``'s parameters, which must already be on ``device``.

    The fused kernels are used where ``device`` has them (one launch instead of one per tensor or list).
    """
    groups = decay_groups(network, config.weight_decay)
    fused = True if device.type in ("cuda", "cpu") else None
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999), fused=fused)
    return SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        # Nesterov's look-ahead is along the momentum: torch refuses it where there is none.
        nesterov=config.nesterov and config.momentum > 0,
        fused=fused,
    )


def make_scheduler(optimizer: Optimizer, multiplier: Callable[[int], float]) -> LambdaLR:
    """``multiplier`` of the step over ``optimizer``'s learning rate; step it once per training step."""
    return LambdaLR(optimizer, multiplier)
