"""The residual units of the networks, and stochastic depth.

Suffixes of tensor names give their shapes: B images, C channels, H and W the height and width of the map.
"""

# This module has no `from __future__ import annotations`: torch.fx copies the annotations of `forward` into
# code that TorchScript reads, and TorchScript needs types there, not strings.

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from tune_rescon.models.spec import UnitSpec

__all__ = [
    "NEVER_DROPPED",
    "DropPath",
    "PreActivationUnit",
    "ResNeXtUnit",
    "chain",
    "conv",
    "unit",
]


NEVER_DROPPED: Final[Iterator[float]] = itertools.repeat(0.0)


#: fp32 numbers that fit in one AVX-512 register.
_VECTOR: Final = 16


class _SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed on every ``stride``-th pixel, with the same result.

    This class works around a fault of oneDNN, seen with torch 2.15.0 on a CPU with AVX-512. If the number of
    input channels is not a multiple of 16, the gradient of oneDNN's strided kernel (channels_last) writes out
    of bounds. The process then dies, or computes with overwritten memory.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Map B x C x H x W to B x channels x H/stride x W/stride, rounded up."""
        rows, columns = self.stride[0], self.stride[1]
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, None, 1, 0, 1, self.groups)


def conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias whose padding is half its kernel, so that a stride rounds sizes up.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel: Side of the kernel, pixels.
        stride: Stride along both axes.
        groups: Number of groups.
    """
    kind = _SubsampledConv2d if kernel == 1 and stride > 1 and in_channels % _VECTOR else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class PreActivationUnit(nn.Module):
    """Bottleneck of He et al. 2016 (identity mappings): 1x1, 3x3 and 1x1, each after BN and ReLU.

    If the width or the size changes, the shortcut is a strided 1x1 convolution of the activated input.
    """

    def __init__(self, spec: UnitSpec, drop_path: float = 0.0) -> None:
        """Build the unit; ``drop_path`` is the probability that training drops the branch of an image."""
        super().__init__()
        self.norm1 = nn.BatchNorm2d(spec.in_channels)
        self.conv1 = conv(spec.in_channels, spec.middle)
        self.norm2 = nn.BatchNorm2d(spec.middle)
        self.conv2 = conv(spec.middle, spec.middle, 3, spec.stride, groups=spec.groups)
        self.norm3 = nn.BatchNorm2d(spec.middle)
        self.conv3 = conv(spec.middle, spec.channels)
        self.projection = conv(spec.in_channels, spec.channels, 1, spec.stride) if spec.projects else None
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map B x in_channels x H x W to B x channels x H/stride x W/stride, rounded up."""
        activated_BCHW = self.relu(self.norm1(x_BCHW))
        branch_BCHW = self.conv1(activated_BCHW)
        branch_BCHW = self.conv2(self.relu(self.norm2(branch_BCHW)))
        branch_BCHW = self.conv3(self.relu(self.norm3(branch_BCHW)))
        shortcut_BCHW = x_BCHW if self.projection is None else self.projection(activated_BCHW)
        y_BCHW: Tensor = self.drop_path(branch_BCHW) + shortcut_BCHW
        return y_BCHW


class ResNeXtUnit(nn.Module):
    """Bottleneck of Xie et al. 2017: BN after each convolution, the 3x3 in groups, ReLU after the sum."""

    def __init__(self, spec: UnitSpec, drop_path: float = 0.0) -> None:
        """Build the unit; ``drop_path`` is the probability that training drops the branch of an image."""
        super().__init__()
        self.conv1 = conv(spec.in_channels, spec.middle)
        self.norm1 = nn.BatchNorm2d(spec.middle)
        self.conv2 = conv(spec.middle, spec.middle, 3, spec.stride, groups=spec.groups)
        self.norm2 = nn.BatchNorm2d(spec.middle)
        self.conv3 = conv(spec.middle, spec.channels)
        self.norm3 = nn.BatchNorm2d(spec.channels)
        self.projection = conv(spec.in_channels, spec.channels, 1, spec.stride) if spec.projects else None
        self.projection_norm = nn.BatchNorm2d(spec.channels) if spec.projects else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map B x in_channels x H x W to B x channels x H/stride x W/stride, rounded up."""
        branch_BCHW = self.relu(self.norm1(self.conv1(x_BCHW)))
        branch_BCHW = self.relu(self.norm2(self.conv2(branch_BCHW)))
        branch_BCHW = self.drop_path(self.norm3(self.conv3(branch_BCHW)))
        projected_BCHW = x_BCHW if self.projection is None else self.projection(x_BCHW)
        y_BCHW: Tensor = self.relu(branch_BCHW + self.projection_norm(projected_BCHW))
        return y_BCHW


def unit(spec: UnitSpec, drop_path: float = 0.0) -> nn.Module:
    """Return the residual unit that ``spec`` describes."""
    kind = PreActivationUnit if spec.preactivation else ResNeXtUnit
    return kind(spec, drop_path)


def chain(specs: Iterable[UnitSpec], drop_paths: Iterator[float] = NEVER_DROPPED) -> nn.Sequential:
    """Return the units in sequence.

    Each unit consumes the next probability of ``drop_paths``. Later chains may continue the same iterator.
    """
    return nn.Sequential(*(unit(spec, next(drop_paths)) for spec in specs))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, zeroes the branch of an image at random.

    The remaining branches are scaled up, so that the mean does not change. The random draws are those of
    ``torchvision.ops.StochasticDepth`` in mode ``"row"``. That class is not used because its import takes
    seconds: it loads all of torchvision's models and torch's compiler.
    """

    def __init__(self, probability: float) -> None:
        """Store ``probability``, in [0, 1): that of dropping the branch of an image."""
        super().__init__()
        self.probability = probability

    @override
    def forward(self, branch_BCHW: Tensor) -> Tensor:
        """Drop or scale the branch of each image; in eval mode return it unchanged."""
        if not self.training:
            return branch_BCHW
        kept = 1 - self.probability
        scale_B111 = branch_BCHW.new_empty((branch_BCHW.shape[0], 1, 1, 1)).bernoulli_(kept).div_(kept)
        return branch_BCHW * scale_B111

    @override
    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def _drop_path(probability: float) -> nn.Module:
    return DropPath(probability) if probability else nn.Identity()
