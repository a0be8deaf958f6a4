"""The attention module: a trunk, and a mask that weighs the trunk's output (paper, figures 1 and 2).

Shapes in names: B images, C channels, H and W the map's height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_rescon.models.spec import NetworkSpec, StageSpec
from tune_rescon.models.units import chain, conv, unit

__all__ = ["ATTENTIONS", "AttentionModule", "Mask", "channel_attention", "enlarged", "spatial_attention"]

#: Added to the variance of a map before its root: a map of one pixel, or a constant one, has none.
SPATIAL_EPS: Final = 1e-5


def channel_attention(x_BCHW: Tensor) -> Tensor:
    """Equation 5: f2(x) = x / ||x||_2, the norm over channels at each position."""
    return F.normalize(x_BCHW, dim=1)


def spatial_attention(x_BCHW: Tensor, eps: float = SPATIAL_EPS) -> Tensor:
    """Equation 6: f3(x) = sigmoid((x - mean_c) / std_c), both over each channel's own map.

    ``eps`` is added to the variance. It is an argument because TorchScript reads no global number.

    >>> spatial_attention(torch.zeros(1, 1, 1, 1)).item()
    0.5
    """
    # Not instance_norm: in training it refuses the map of one pixel that small images end in.
    variance_BC11, mean_BC11 = torch.var_mean(x_BCHW, dim=(2, 3), correction=0, keepdim=True)
    return torch.sigmoid((x_BCHW - mean_BC11) * torch.rsqrt(variance_BC11 + eps))


#: Attention types by TrialConfig's word; mixed is equation 4, f1(x) = sigmoid(x).
ATTENTIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "mixed": torch.sigmoid,
    "channel": channel_attention,
    "spatial": spatial_attention,
}


class Mask(nn.Module):
    """The soft mask branch M: down by max pooling, up by interpolation, a skip at each level between.

    Level i is the map after pooling i + 1; the last pooling leads to ``middle``. Without poolings it is
    ``middle`` at full resolution: the local mask, and the deepest stage of ResCon's small network.
    """

    def __init__(self, spec: NetworkSpec, stage: StageSpec) -> None:
        """A mask for one module of ``stage``."""
        super().__init__()
        channels, levels = stage.channels, max(stage.mask_poolings - 1, 0)
        level_units = spec.plain(channels, units=spec.mask_units)
        self.poolings = stage.mask_poolings
        self.added_reference = spec.added_reference
        self.down = nn.ModuleList(chain(level_units) for _ in range(levels))
        self.middle = chain(spec.plain(channels, units=stage.mask_middle))
        self.skip = nn.ModuleList(unit(level_units[0]) for _ in range(levels))
        self.up = nn.ModuleList(chain(level_units) for _ in range(levels))
        self.head = _head(channels, preactivation=spec.preactivation)
        # Padding 1, where Caffe has 0 and rounds up: the same sizes on even maps, and right on odd ones.
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.activation = ATTENTIONS[spec.attention]

    def forward(self, x_BCHW: Tensor, trunk_BCHW: Tensor) -> Tensor:
        """The mask of features ``x_BCHW``, in their shape; ``trunk_BCHW`` is used as a reference only."""
        if self.poolings:
            x_BCHW = self._interpolate(self._encode_decode(x_BCHW), trunk_BCHW)
        else:
            x_BCHW = self.middle(x_BCHW)
        return self.activation(self.head(x_BCHW))

    def _encode_decode(self, x_BCHW: Tensor) -> Tensor:
        """From full resolution down to the deepest level and up again to the first."""
        levels: list[Tensor] = []
        for down in self.down:
            x_BCHW = down(self.pool(x_BCHW))
            levels.append(x_BCHW)
        x_BCHW = self.middle(self.pool(x_BCHW))
        for deepest in range(len(levels) - 1, -1, -1):
            # TorchScript can neither index a list of modules by a variable nor walk it from its end.
            for index, (skip, up) in enumerate(zip(self.skip, self.up)):  # noqa: B905 - it has no `strict`
                if index == deepest:
                    level_BCHW = levels[index]
                    x_BCHW = up(self._interpolate(x_BCHW, level_BCHW) + skip(level_BCHW))
        return x_BCHW

    def _interpolate(self, x_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        """To the reference's real size, whatever the image's was."""
        x_BCHW = enlarged(x_BCHW, reference_BCHW)
        return x_BCHW + reference_BCHW if self.added_reference else x_BCHW


class AttentionModule(nn.Module):
    """p units, then trunk T (t units) and mask M side by side, combined, then p units.

    Attention residual learning combines them as (1 + M) * T (equation 3), naive learning as M * T.
    """

    def __init__(self, spec: NetworkSpec, stage: StageSpec, drop_paths: Iterator[float]) -> None:
        """``drop_paths``: the trunk path's drop probabilities, from which this module takes its 2p + t."""
        super().__init__()
        outer = spec.plain(stage.channels, units=spec.outer_units)
        self.pre = chain(outer, drop_paths)
        self.trunk = chain(spec.plain(stage.channels, units=spec.trunk_units), drop_paths)
        self.mask = Mask(spec, stage)
        self.post = chain(outer, drop_paths)
        self.residual = spec.attention_learning == "arl"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape in, shape out."""
        x_BCHW = self.pre(x_BCHW)
        trunk_BCHW = self.trunk(x_BCHW)
        mask_BCHW = self.mask(x_BCHW, trunk_BCHW)
        if self.residual:
            mask_BCHW = 1 + mask_BCHW
        y_BCHW: Tensor = self.post(mask_BCHW * trunk_BCHW)
        return y_BCHW


# A leaf of torch.fx's graphs: what it does depends on the type of the numbers, which a trace does not know.
@torch.fx.wrap
def enlarged(x_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """Interpolated to the height and width of ``reference_BCHW``, in its own format."""
    # TorchScript has no autocast for a device that is named at run time.
    if torch.jit.is_scripting() or x_BCHW.dtype not in (torch.bfloat16, torch.float16):
        return F.interpolate(x_BCHW, size=reference_BCHW.shape[-2:], mode="bilinear", align_corners=True)
    # Autocast would have it, and the sums that follow, in fp32: twice the bytes. Inside it adds in fp32.
    with torch.autocast(x_BCHW.device.type, enabled=False):
        return F.interpolate(x_BCHW, size=reference_BCHW.shape[-2:], mode="bilinear", align_corners=True)


def _head(channels: int, *, preactivation: bool) -> nn.Sequential:
    """Two 1x1 convolutions; ResNeXt units end in BN and ReLU, so theirs needs none before the first."""
    head = nn.Sequential()
    if preactivation:
        head.add_module("norm1", nn.BatchNorm2d(channels))
        head.add_module("relu1", nn.ReLU(inplace=True))
    head.add_module("conv1", conv(channels, channels))
    head.add_module("norm2", nn.BatchNorm2d(channels))
    head.add_module("relu2", nn.ReLU(inplace=True))
    head.add_module("conv2", conv(channels, channels))
    return head
