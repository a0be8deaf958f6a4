"""Residual units, the bricks of trunk and mask alike.

Shapes in names: B images, C channels, H and W the map's height and width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from tune_rescon.models.spec import UnitSpec

__all__ = ["DropPath", "PreActivationUnit", "ResNeXtUnit", "chain", "conv", "unit"]


NEVER_DROPPED: Final[Iterator[float]] = itertools.repeat(0.0)


#: fp32 numbers of an AVX-512 register.
_VECTOR: Final = 16


class _SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution as a convolution of every ``stride``-th pixel: the same numbers.

    Its input channels are no multiple of 16. For those, the gradient of oneDNN's strided kernel (AVX-512,
    channels_last; torch 2.11 to 2.15) writes beyond its memory, and the process dies or computes with what it
    has overwritten.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        """B x C x H x W to B x channels x H/stride x W/stride, rounded up."""
        rows, columns = self.stride[0], self.stride[1]
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, None, 1, 0, 1, self.groups)


def conv(cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias whose padding is half its kernel, so that a stride rounds sizes up."""
    kind = _SubsampledConv2d if kernel == 1 and stride > 1 and cin % _VECTOR else nn.Conv2d
    return kind(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class PreActivationUnit(nn.Module):
    """Bottleneck of He et al. 2016 (identity mappings): BN, ReLU before each of 1x1, 3x3, 1x1.

    Where width or size changes, the shortcut is a strided 1x1 convolution of the activated input.
    """

    def __init__(self, spec: UnitSpec, drop_path: float = 0.0) -> None:
        """``drop_path``: probability that the branch of an image is dropped in training."""
        super().__init__()
        self.norm1 = nn.BatchNorm2d(spec.in_channels)
        self.conv1 = conv(spec.in_channels, spec.middle)
        self.norm2 = nn.BatchNorm2d(spec.middle)
        self.conv2 = conv(spec.middle, spec.middle, 3, spec.stride, spec.groups)
        self.norm3 = nn.BatchNorm2d(spec.middle)
        self.conv3 = conv(spec.middle, spec.channels)
        self.projection = conv(spec.in_channels, spec.channels, 1, spec.stride) if spec.projects else None
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B x in_channels x H x W to B x channels x H/stride x W/stride, rounded up."""
        activated_BCHW = self.relu(self.norm1(x_BCHW))
        branch_BCHW = self.conv1(activated_BCHW)
        branch_BCHW = self.conv2(self.relu(self.norm2(branch_BCHW)))
        branch_BCHW = self.conv3(self.relu(self.norm3(branch_BCHW)))
        shortcut_BCHW = x_BCHW if self.projection is None else self.projection(activated_BCHW)
        y_BCHW: Tensor = self.drop_path(branch_BCHW) + shortcut_BCHW
        return y_BCHW


class ResNeXtUnit(nn.Module):
    """Bottleneck of Xie et al. 2017: BN after every convolution, the 3x3 in groups, ReLU after the sum."""

    def __init__(self, spec: UnitSpec, drop_path: float = 0.0) -> None:
        """``drop_path``: probability that the branch of an image is dropped in training."""
        super().__init__()
        self.conv1 = conv(spec.in_channels, spec.middle)
        self.norm1 = nn.BatchNorm2d(spec.middle)
        self.conv2 = conv(spec.middle, spec.middle, 3, spec.stride, spec.groups)
        self.norm2 = nn.BatchNorm2d(spec.middle)
        self.conv3 = conv(spec.middle, spec.channels)
        self.norm3 = nn.BatchNorm2d(spec.channels)
        self.projection = conv(spec.in_channels, spec.channels, 1, spec.stride) if spec.projects else None
        self.projection_norm = nn.BatchNorm2d(spec.channels) if spec.projects else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = _drop_path(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B x in_channels x H x W to B x channels x H/stride x W/stride, rounded up."""
        branch_BCHW = self.relu(self.norm1(self.conv1(x_BCHW)))
        branch_BCHW = self.relu(self.norm2(self.conv2(branch_BCHW)))
        branch_BCHW = self.drop_path(self.norm3(self.conv3(branch_BCHW)))
        projected_BCHW = x_BCHW if self.projection is None else self.projection(x_BCHW)
        y_BCHW: Tensor = self.relu(branch_BCHW + self.projection_norm(projected_BCHW))
        return y_BCHW


def unit(spec: UnitSpec, drop_path: float = 0.0) -> nn.Module:
    """The residual unit ``spec`` describes."""
    kind = PreActivationUnit if spec.preactivation else ResNeXtUnit
    return kind(spec, drop_path)


def chain(specs: Iterable[UnitSpec], drop_paths: Iterator[float] = NEVER_DROPPED) -> nn.Sequential:
    """Units in a row; each takes the next of ``drop_paths``, which may run on through later chains."""
    return nn.Sequential(*(unit(spec, next(drop_paths)) for spec in specs))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, zeroes the branch of an image at random.

    What is kept is scaled up, so that the mean stays. It draws as ``torchvision.ops.StochasticDepth`` does in
    its mode ``"row"``. To import that one takes seconds: all of torchvision's models, and torch's compiler.
    """

    def __init__(self, probability: float) -> None:
        """``probability``: of an image's branch to be dropped, in [0, 1)."""
        super().__init__()
        self.probability = probability

    @override
    def forward(self, branch_BCHW: Tensor) -> Tensor:
        """The branch of each image, dropped or scaled; in eval mode as it is."""
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
