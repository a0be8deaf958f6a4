"""The moving average of a network's weights, and the re-estimation of its batch-norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from itertools import compress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["AveragedNetwork", "batch_norm_statistics", "ema_decay_at", "reestimate_batch_norm"]


def ema_decay_at(step: int, decay: float) -> float:
    """Return the decay of the average at its ``step``-th update, counted from 0.

    It is ``min(decay, (1 + step) / (10 + step))``, as in the training code of Tan & Le 2019. So the average
    forgets quickly at first. With a fixed 0.999 the random initial weights would still be a third of the
    average after 1000 steps.

    >>> [round(ema_decay_at(step, 0.99), 3) for step in (0, 90, 10_000)]
    [0.1, 0.91, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


class AveragedNetwork(nn.Module):
    """An exponential moving average of a network's weights and batch-norm statistics.

    torch's ``AveragedModel`` counts its updates in a tensor and reads it at each update, for which the host
    waits for a GPU. Here the caller passes the step. The arithmetic is torch's.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start as a copy of ``network``; ``decay`` is per training step."""
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay
        # The average of a mask's infinities would be nan. Counters are not averaged either.
        self._averages = [t.is_floating_point() and bool(t.isfinite().all()) for t in _tensors(network)]

    @torch.no_grad()
    def update(self, live: nn.Module, step: int) -> None:
        """Update the average with ``live`` after its ``step``-th training step (from 0); copy the rest."""
        ours, newest = list(_tensors(self.network)), list(_tensors(live))
        decay = ema_decay_at(step, self._decay)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        average([*compress(ours, self._averages)], [*compress(newest, self._averages)], step)
        for tensor, value, is_averaged in zip(ours, newest, self._averages, strict=True):
            if not is_averaged:
                tensor.copy_(value)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from (parameter.detach() for parameter in network.parameters())
    yield from network.buffers()


def batch_norm_statistics(network: nn.Module) -> list[Tensor]:
    """Return the running means and variances of ``network``."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    return [buffer for buffer in buffers if buffer is not None]


@torch.no_grad()
def reestimate_batch_norm(
    network: nn.Module, batches_BCHW: Iterable[Tensor], *, frozen: Collection[str] = ()
) -> None:
    """Replace batch norm's running statistics by their plain average over ``batches_BCHW``, if there are any.

    The running statistics of the training lag behind the weights: after 42 steps the accuracy may still be at
    chance level. Unlike torch's ``swa_utils.update_bn``, this function puts only batch norm into training
    mode, so no path is dropped and no random number is drawn. At the end, the network is in eval mode.

    Args:
        network: the network.
        batches_BCHW: images of the batches.
        frozen: names of modules that keep their statistics, with which training normalises.
    """
    network.eval()
    modules = [module for name, module in network.named_modules() if name not in frozen]
    norms = [module for module in modules if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for count, images_BCHW in enumerate(batches_BCHW):
            if count == 0:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # in torch: the plain average over all batches after the reset
                    norm.train()
            network(images_BCHW)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
