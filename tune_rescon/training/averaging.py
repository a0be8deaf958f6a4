"""The network a trial is judged by: averaged weights, and batch-norm statistics estimated for them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["AveragedNetwork", "batch_norm_statistics", "ema_decay_at", "reestimate_batch_norm"]


def ema_decay_at(step: int, decay: float) -> float:
    """Decay of the average at its ``step``-th update, from 0: short memory first, ``decay`` in the end.

    ``min(decay, (1 + step) / (10 + step))``, as in Tan & Le 2019's training code: with a fixed 0.999 the
    random first weights would still hold a third of the average after 1000 steps.

    >>> [round(ema_decay_at(step, 0.99), 3) for step in (0, 90, 10_000)]
    [0.1, 0.91, 0.99]
    """
    return min(decay, (1 + step) / (10 + step))


class AveragedNetwork(nn.Module):
    """An exponential moving average of a network's weights and batch-norm statistics.

    torch's own ``AveragedModel`` counts its updates in a tensor and reads it back at each one, which makes
    a GPU wait every step; here the step is handed in. The arithmetic is torch's.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start as a copy of ``network``; ``decay`` is per training step."""
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of the averaged network."""
        logits_BK: Tensor = self.network(images_BCHW)
        return logits_BK

    @torch.no_grad()
    def update(self, live: nn.Module, step: int) -> None:
        """Move towards ``live`` after its ``step``-th training step (from 0). Counters are copied."""
        pairs = list(zip(_tensors(self.network), _tensors(live), strict=True))
        floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        decay = ema_decay_at(step, self._decay)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        average([mine for mine, _ in floats], [theirs for _, theirs in floats], step)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from (parameter.detach() for parameter in network.parameters())
    yield from network.buffers()


def batch_norm_statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of ``network``."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    return [statistic for statistic in kept if statistic is not None]


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, batches_BCHW: Iterable[Tensor]) -> None:
    """Replace batch norm's running statistics by their plain average over ``batches_BCHW``.

    Training's own running statistics lag behind the weights: on 21 steps an epoch, the first two epochs
    validate at chance although training goes well. The network is left in eval mode.

    torch's ``swa_utils.update_bn`` does the same in full training mode; here only batch norm trains, so that
    the statistics are those of the network that is judged (no drop path) and no random number is drawn.
    No batches: nothing changes.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for count, images_BCHW in enumerate(batches_BCHW):
            if count == 0:
                _start_plain_average(norms)
            network(images_BCHW)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()


def _start_plain_average(norms: Iterable[_BatchNorm]) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain average over all batches since the reset
        norm.train()
