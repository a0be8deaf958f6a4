"""Forward passes on the meta device that are cheap, because batch norm is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

__all__ = ["shapes_only"]


def _check_channels(norm: nn.BatchNorm2d, x_BCHW: Tensor) -> Tensor:
    assert x_BCHW.shape[1] == norm.num_features
    return x_BCHW


@contextmanager
def shapes_only() -> Iterator[None]:
    """In the block, a batch norm only checks the number of channels, and no gradients are recorded.

    torch computes a batch norm on the meta device step by step in Python. That takes most of the time of a
    forward pass, and changes no shape.
    """
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.BatchNorm2d, "forward", _check_channels)
        yield
