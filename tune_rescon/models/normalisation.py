"""Batch norm and the ReLU after it, as one module.

Shapes in names: B images, C channels, H and W the map's height and width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BatchNormReLU"]


class BatchNormReLU(nn.BatchNorm2d):
    """ReLU of the batch norm; names and shapes of its weights are batch norm's."""

    fused: Callable[[BatchNormReLU, Tensor], Tensor | None] | None = None
    """Does both at once, where it can; None, or its answer None: one after the other."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape in, shape out."""
        y_BCHW = None if self.fused is None else self.fused(self, x_BCHW)
        if y_BCHW is None:
            y_BCHW = F.relu(super().forward(x_BCHW), inplace=True)
        return y_BCHW
