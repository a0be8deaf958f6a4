"""A trained network as its users see it: pixels in, probabilities out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tune_rescon.training.trained import TrainedNetwork

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """A trained network with what belongs before and behind it: pixels in, probabilities out."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, network: nn.Module, about: TrainedNetwork) -> None:
        """Wrap ``network``, which is in eval mode."""
        super().__init__()
        preprocessing = about.preprocessing
        self.network = network
        self.register_buffer("mean_C11", torch.tensor(preprocessing.mean).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Probabilities, B x classes, of images in 0..1 at the size the network was trained with."""
        logits_BK: Tensor = self.network((images_BCHW - self.mean_C11) / self.std_C11)
        return logits_BK.softmax(1)
