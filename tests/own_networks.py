"""Networks of a user, named ``tests.own_networks:FUNCTION``: valid ones and faulty ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "SMALL_SEARCH",
    "broken",
    "no_network",
    "normalised",
    "placed",
    "reading",
    "small",
    "tied",
    "unused",
    "wrong_logits",
]

#: Settings of the space `digits` for searches whose network does not matter: an epoch takes milliseconds.
SMALL_SEARCH = (
    "fixed={network: tests.own_networks:small, image_size: 16, batch_size: 32, crop_padding: 0, flip: false}",
    "parameters={learning_rate: {type: float, low: 0.03, high: 0.3, log: true}}",
    "initial=[]",
)

#: The image sizes of the calls of :func:`small`.
CALLS: list[int] = []


def small(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A network with batch norm and dropout."""
    CALLS.append(image_size)
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


class WithUnusedParameter(nn.Module):
    """A linear network with a frozen parameter and an unused one."""

    def __init__(self, pixels: int, num_classes: int) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(pixels, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.linear(images_BCHW.flatten(1)) * self.frozen
        return logits_BK


def unused(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return WithUnusedParameter(in_channels * image_size**2, num_classes)


def normalised(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The weight of its linear layer is computed from two parameters."""
    linear = nn.Linear(in_channels * image_size**2, num_classes)
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(linear))


def with_frozen_norm(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    pixels = in_channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(pixels).eval(), nn.Linear(pixels, num_classes))


def evaluating(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """In eval mode, as a network whose weights were loaded from a file often is."""
    return with_frozen_norm(num_classes=num_classes, in_channels=in_channels, image_size=image_size).eval()


class Tied(nn.Module):
    """A network whose only convolution has two names, so that its state dict has each tensor of it twice."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.second = self.first
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.linear(self.second(self.first(images_BCHW).relu()).mean((2, 3)))
        return logits_BK


def tied(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    del image_size
    return Tied(in_channels, num_classes)


class WithPositionTable(nn.Module):
    """A network with a position table: one number per row of its images."""

    def __init__(self, side: int, num_classes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(side))
        self.linear = nn.Linear(1, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        rows_BH = images_BCHW.mean(dim=(1, 3)) + self.table
        logits_BK: Tensor = self.linear(rows_BH.mean(dim=1, keepdim=True))
        return logits_BK


def placed(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    del in_channels
    return WithPositionTable(image_size, num_classes)


def reading(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Reads the value of a tensor while it is built, which fails on the meta device."""
    width = int(torch.tensor(8).item())
    return nn.Sequential(
        nn.Conv2d(in_channels, width, image_size), nn.Flatten(), nn.Linear(width, num_classes)
    )


class Attending(nn.Module):
    """A linear layer of each patch, torch's encoder layer, and a linear layer of the patches' mean."""

    def __init__(self, patch_values: int, num_classes: int) -> None:
        super().__init__()
        self.side = int(torch.tensor(8).item())  # fails on the meta device
        self.embedding = nn.Linear(patch_values * self.side**2, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.linear = nn.Linear(16, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        patches_BVN = nn.functional.unfold(images_BCHW, self.side, stride=self.side)
        tokens_BNC = self.encoder(self.embedding(patches_BVN.mT))
        logits_BK: Tensor = self.linear(tokens_BNC.mean(dim=1))
        return logits_BK


def attending(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A vision transformer that reads the value of a tensor while it is built."""
    del image_size
    return Attending(in_channels, num_classes)


class Recurrent(nn.Module):
    """An LSTM over the rows of an image, and a linear layer of its last state."""

    def __init__(self, row_values: int, num_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(row_values, int(torch.tensor(8).item()), batch_first=True)
        self.linear = nn.Linear(8, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        states_BHC, _ = self.lstm(images_BCHW.transpose(1, 2).flatten(2))
        logits_BK: Tensor = self.linear(states_BHC[:, -1])
        return logits_BK


def recurrent(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """An LSTM that reads the value of a tensor while it is built."""
    return Recurrent(in_channels * image_size, num_classes)


def wrong_logits(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    del num_classes, image_size
    return nn.Conv2d(in_channels, 7, 1)


def no_network(*, num_classes: int, in_channels: int, image_size: int) -> int:
    return num_classes + in_channels + image_size


def broken(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    raise ValueError(f"cannot do {num_classes} classes\nof {in_channels} channels at {image_size}")
