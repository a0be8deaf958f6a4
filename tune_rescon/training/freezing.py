"""Freezing: in the first epochs of a trial only the classifier is trained.

A classifier that is drawn at random sends useless gradients to the layers before it, whose weights were
trained elsewhere. So they stay as they are until the classifier has learned, and so do the statistics of
their batch norms, by which a frozen network normalises.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn
from typing_extensions import override

from tune_rescon.training.module import TrialModule
from tune_rescon.training.optim import layer_names

__all__ = ["FreezeTrunk", "Trunk"]


class Trunk:
    """All of a network but its classifier, which is its last layer."""

    def __init__(self, network: nn.Module) -> None:
        """Find the trunk of ``network``. Parameters that are not trained anyway do not belong to it."""
        trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        layers = layer_names(trained)
        classifier = next(reversed(layers.values()), "")
        self._weights = [weight for name, weight in trained.items() if layers[name] != classifier]
        self._modules = list(_without(network, classifier))

    def freeze(self, frozen: bool) -> None:
        """Freeze the trunk, or train it again.

        A frozen one is in eval mode: it normalises by the statistics that it has, and drops no paths.
        """
        for weight in self._weights:
            weight.requires_grad_(not frozen)
        for module in self._modules:
            module.train(not frozen)


def _without(module: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the largest parts of ``module`` that do not contain its part ``name``."""
    first, _, rest = name.partition(".")
    for child_name, child in module.named_children():
        if child_name != first:
            yield child
        elif rest:
            yield from _without(child, rest)


class FreezeTrunk(Callback):
    """Freeze the network's trunk in the first epochs of a training.

    Lightning restores the modes of a network's parts after a validation. A recorded step is recorded again
    when the trunk is trained, because other weights have gradients then.
    """

    def __init__(self, epochs: int) -> None:
        """Create the callback.

        Args:
            epochs: number of epochs; 0 freezes nothing.
        """
        self._epochs = epochs
        self._trunk: Trunk | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the trunk. Lightning does not call ``on_train_epoch_start`` for a resumed epoch."""
        if self._epochs:
            assert isinstance(pl_module, TrialModule)
            self._trunk = Trunk(pl_module.network)
            self._trunk.freeze(trainer.current_epoch < self._epochs)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train the trunk from this epoch on, if it is the first one after the frozen ones."""
        if self._trunk is not None and trainer.current_epoch == self._epochs:
            self._trunk.freeze(False)
