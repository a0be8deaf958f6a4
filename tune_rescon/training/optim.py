"""Optimizers and learning-rate schedules.

Lion is here because torch lacks it, and Muon because torch's accepts only matrices, not convolutions.
Schedules, checkpoints and gradient clipping work as with torch's own optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from typing_extensions import override

from tune_rescon.config import TrialConfig
from tune_rescon.training.layers import trained_layers, without_decay

__all__ = [
    "Lion",
    "Muon",
    "constant",
    "cosine",
    "make_optimizer",
    "make_schedule",
    "multistep",
    "parameter_groups",
    "warmup_stable_decay",
]


def make_schedule(config: TrialConfig, *, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning-rate multiplier of ``config``, as a function of the step alone.

    Args:
        config: the schedule and its parameters.
        total_steps: training steps of the whole training.
        steps_per_epoch: training steps of an epoch.

    >>> config = TrialConfig(schedule="cosine", warmup_epochs=1)
    >>> rate = make_schedule(config, total_steps=9, steps_per_epoch=1)
    >>> [rate(step) for step in (0, 1, 5, 9)]
    [1.0, 1.0, 0.5, 0.0]
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    match config.schedule:
        case "multistep":
            return lambda step: multistep(step, total_steps, warmup_steps, fractions=config.step_fractions)
        case "cosine":
            return lambda step: cosine(step, total_steps, warmup_steps)
        case "cosine_restarts":
            return lambda step: cosine(step, total_steps, warmup_steps, cycles=config.cycles)
        case "warmup_stable_decay":
            return lambda step: warmup_stable_decay(
                step, total_steps, warmup_steps, decay_fraction=config.decay_fraction
            )
        case _:
            return lambda step: constant(step, warmup_steps)


def constant(step: int, warmup_steps: int = 0) -> float:
    """Return 1 after a linear warm-up.

    >>> [constant(step, 4) for step in (0, 3, 4, 100)]
    [0.25, 1.0, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def multistep(step: int, total_steps: int, warmup_steps: int = 0, *, fractions: Sequence[int]) -> float:
    """Return a multiplier that is divided by 10 at each of ``fractions``.

    Wang et al. 2017, section 4.1: 160k iterations, divided at 64k and 96k.

    Args:
        step: counted from 0.
        total_steps: training steps of the whole training.
        warmup_steps: training steps of the warm-up.
        fractions: per cent of ``total_steps``.

    >>> [multistep(step, 160_000, fractions=(40, 60)) for step in (0, 63_999, 64_000, 95_999, 96_000)]
    [1.0, 1.0, 0.1, 0.1, 0.01]
    """
    drops = sum(100 * step >= fraction * total_steps for fraction in fractions)
    return float(constant(step, warmup_steps) / 10**drops)


def cosine(step: int, total_steps: int, warmup_steps: int = 0, *, cycles: int = 1) -> float:
    """Return a multiplier that falls from 1 to 0 along half a cosine, ``cycles`` times after the warm-up.

    Loshchilov & Hutter 2017, eq. 5, with T_mult = 1.

    Args:
        step: counted from 0.
        total_steps: training steps of the whole training.
        warmup_steps: training steps of the warm-up.
        cycles: number of cosines.

    >>> [round(cosine(step, 110, 10), 3) for step in (0, 9, 10, 35, 60, 110)]
    [0.1, 1.0, 1.0, 0.854, 0.5, 0.0]
    >>> [round(cosine(step, 210, 10, cycles=2), 3) for step in (0, 10, 60, 109, 110, 160, 210)]
    [0.1, 1.0, 0.5, 0.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return constant(step, warmup_steps)
    done = cycles * _progress(step, warmup_steps, total_steps)
    within = done - math.floor(done) if done < cycles else 1.0
    return 0.5 * (1.0 + math.cos(math.pi * within))


def warmup_stable_decay(
    step: int, total_steps: int, warmup_steps: int = 0, *, decay_fraction: float = 0.2
) -> float:
    """Return 1 after the warm-up, decaying linearly to 0 over the last ``decay_fraction`` of ``total_steps``.

    Hu et al. 2024, section 4. If warm-up and decay overlap, the lower of the two applies.

    Args:
        step: counted from 0.
        total_steps: training steps of the whole training.
        warmup_steps: training steps of the warm-up.
        decay_fraction: share of ``total_steps``.

    >>> [warmup_stable_decay(step, 100, 10, decay_fraction=0.2) for step in (0, 9, 80, 90, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    decay_start = (1.0 - decay_fraction) * total_steps
    return min(constant(step, warmup_steps), 1.0 - _progress(step, decay_start, total_steps))


def _progress(step: float, start: float, end: float) -> float:
    """Return ``step``'s position between ``start`` (0) and ``end`` (1), clamped; 1 if they are equal."""
    return min(1.0, max(0.0, (step - start) / (end - start))) if end > start else 1.0


def parameter_groups(network: nn.Module, config: TrialConfig) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: by weight decay, layer and kind of parameter.

    The weights of convolutions and linear layers decay, as in the authors' Caffe solver. Vectors (scales and
    shifts of batch norm, biases) do not, because the next normalisation undoes the effect (He et al. 2019,
    section 3.1). The ``no_weight_decay`` of a network of timm names further parameters that do not: tables of
    positions, and tokens.

    With ``layer_decay``, each layer has groups with a learning rate of their own. The classifier's groups
    come first. It also has its own groups if its rate differs, or if it is trained before the other layers.
    With Muon, ``matrix`` is True in the groups that Muon updates. AdamW updates the others: the parameters
    that do not decay, and the heads.
    """
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    layers = trained_layers(network)
    layers_above = {layer: above for above, layer in enumerate(reversed(dict.fromkeys(layers.values())))}
    classifier, exempt = next(reversed(layers.values()), ""), without_decay(network)
    outputs = next((weight.shape[0] for name, weight in reversed(trained.items()) if name not in exempt), 0)
    apart = config.classifier_lr_mult != 1 or config.freeze_epochs > 0
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, weight in trained.items():
        below = layers_above[layers[name]]
        # The state of parameters that begin to train later must not be mixed with that of the classifier.
        by_layer = below if config.layer_decay < 1 else int(apart and below > 0)
        decays = name not in exempt
        # A classifier may have several heads, and hidden layers before them.
        is_head = layers[name] == classifier and weight.shape[:1] == (outputs,)
        matrix = config.optimizer == "muon" and decays and not is_head
        group = groups.setdefault(
            (by_layer, not decays, matrix),
            {"params": [], "weight_decay": config.weight_decay if decays else 0.0},
        )
        group["params"].append(weight)
        if config.layer_decay < 1 or apart:
            factor = config.layer_decay**below * (1 if below else config.classifier_lr_mult)
            group["lr"] = config.learning_rate * factor
        if config.optimizer == "muon":
            group["matrix"] = matrix
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    network: nn.Module, config: TrialConfig, *, device: torch.device, scaled: bool = False
) -> Optimizer:
    """Return the configured optimizer over ``network``'s parameters, which must already be on ``device``.

    The fused kernels are used if ``device`` has them: one launch instead of one for each tensor or list.

    Args:
        network: the network to train.
        config: the optimiser and its parameters.
        device: the device of ``network``.
        scaled: True if a gradient scaler steps the optimiser.
    """
    groups, rate, momentum = parameter_groups(network, config), config.learning_rate, config.momentum
    # In a fused optimizer, the kernel skips the steps that the scaler would skip. Then SGD's momentum begins
    # with uninitialised memory if the first step has infinite gradients (torch 2.15), and Lightning does not
    # clip.
    fused = not scaled if device.type in ("cuda", "cpu") else None
    match config.optimizer:
        case "adamw":
            return AdamW(groups, lr=rate, betas=(momentum, 0.999), fused=fused)
        case "rmsprop":
            return RMSprop(groups, lr=rate, momentum=momentum)
        case "lion":
            return Lion(groups, lr=rate, betas=(momentum, 0.99))
        case "muon":
            return Muon(groups, lr=rate, betas=(momentum, 0.999), nesterov=config.nesterov)
        case _:
            # Nesterov's look-ahead follows the momentum, so torch rejects it without momentum.
            nesterov = config.nesterov and momentum > 0
            return SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov, fused=fused)


_Group = dict[str, Any]
_Tensors = list[Tensor]


class _MomentumOptimizer(Optimizer):
    """Base class of optimizers with decoupled weight decay and a momentum for each weight."""

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
                momenta = [self._state_tensor(weight, "momentum") for weight in weights]
                self._update(group, weights, [weight.grad for weight in weights], momenta)
        return loss

    def _state_tensor(self, weight: Tensor, name: str) -> Tensor:
        """Return a tensor of the optimizer's state, which starts with zeros."""
        state: dict[str, Tensor] = self.state[weight]
        if name not in state:
            state[name] = torch.zeros_like(weight)
        return state[name]

    def _update(self, group: _Group, weights: _Tensors, gradients: _Tensors, momenta: _Tensors) -> None:
        """Update the momenta and the weights. The weight decay is applied already."""
        raise NotImplementedError


class Lion(_MomentumOptimizer):
    """Lion: the sign of a momentum, with decoupled weight decay (Chen et al., 2023, algorithm 2).

    Every weight moves by the learning rate in each step, so a third to a tenth of AdamW's rate suits it.
    """

    def __init__(self, params: Iterable[_Group], *, lr: float, betas: tuple[float, float]) -> None:
        """Create the optimizer.

        Args:
            params: groups, each with its ``weight_decay``.
            lr: the learning rate of groups that have none.
            betas: share of the momentum in an update, and decay of the momentum.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @override
    def _update(self, group: _Group, weights: _Tensors, gradients: _Tensors, momenta: _Tensors) -> None:
        share, decay = group["betas"]
        updates = torch._foreach_lerp(gradients, momenta, share)
        torch._foreach_sign_(updates)
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
        torch._foreach_lerp_(momenta, gradients, 1 - decay)


#: Coefficients and steps of Muon's Newton-Schulz iteration (Jordan et al., 2024).
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
_ITERATIONS: Final = 5


class Muon(_MomentumOptimizer):
    """Muon for the groups with ``matrix: True``, AdamW for the others (Jordan et al., 2024).

    The update is the matrix with orthogonal rows or columns that is nearest to the momentum. The weights of a
    convolution are a matrix with one row per output channel. Updates are scaled to the size of AdamW's (Liu
    et al., 2025), so that both kinds of groups have the same learning rate.

    ``torch.optim.Muon`` computes the same updates, but accepts only matrices.
    """

    def __init__(
        self, params: Iterable[_Group], *, lr: float, betas: tuple[float, float], nesterov: bool = True
    ) -> None:
        """Create the optimizer.

        Args:
            params: groups, each with its ``weight_decay`` and ``matrix``.
            lr: the learning rate of groups that have none.
            betas: decay of the momentum, and of the mean squared gradients of AdamW.
            nesterov: let Muon look ahead along the momentum.
        """
        defaults = {"lr": lr, "betas": betas, "nesterov": nesterov, "weight_decay": 0.0, "matrix": False}
        super().__init__(params, defaults)

    @override
    def _update(self, group: _Group, weights: _Tensors, gradients: _Tensors, momenta: _Tensors) -> None:
        torch._foreach_lerp_(momenta, gradients, 1 - group["betas"][0])
        step = self._orthogonal_step if group["matrix"] else self._adamw_step
        step(group, weights, gradients, momenta)

    def _orthogonal_step(
        self, group: _Group, weights: _Tensors, gradients: _Tensors, momenta: _Tensors
    ) -> None:
        for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
            ahead = gradient.lerp(momentum, group["betas"][0]) if group["nesterov"] else momentum
            update = _orthogonal(ahead.flatten(1))
            rate = group["lr"] * 0.2 * math.sqrt(max(update.shape))
            weight.add_(update.view(weight.shape), alpha=-rate)

    def _adamw_step(self, group: _Group, weights: _Tensors, gradients: _Tensors, momenta: _Tensors) -> None:
        beta1, beta2 = group["betas"]
        group["steps"] = steps = group.get("steps", 0) + 1
        squares = [self._state_tensor(weight, "squares") for weight in weights]
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        spreads = torch._foreach_sqrt(squares)
        torch._foreach_div_(spreads, math.sqrt(1 - beta2**steps))
        torch._foreach_add_(spreads, 1e-8)
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
