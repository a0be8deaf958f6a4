"""Residual Attention Networks, from the residual unit up: units, masks, attention modules, the whole network.

Suffixes of tensor names give their shapes: B images, C channels, H by W a map's size, K classes.
"""

# This module has no `from __future__ import annotations`: torch.fx copies the annotations of `forward` into
# code that TorchScript reads, and TorchScript needs types there, not strings.

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, format_error
from tune_rescon.models.presets import resolve_network
from tune_rescon.models.spec import MINIMUM_IMAGE_SIZE, NetworkSpec, StageSpec, UnitSpec

__all__ = [
    "ATTENTIONS",
    "NEVER_DROPPED",
    "AttentionModule",
    "DropPath",
    "Mask",
    "PreActivationUnit",
    "ResNeXtUnit",
    "ResidualAttentionNetwork",
    "build_from_spec",
    "build_network",
    "check_sides",
    "conv",
    "interpolate_like",
]

#: fp32 numbers that fit in one AVX-512 register.
_VECTOR: Final = 16


class _SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed on every ``stride``-th pixel, with the same result.

    It works around a bug of oneDNN, seen with torch 2.15.0 on a CPU with AVX-512. If the number of input
    channels is not a multiple of 16, the gradient of oneDNN's strided kernel (channels_last) writes out of
    bounds. The process then dies, or computes with overwritten memory.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Map B x C x H x W to B x channels x H/stride x W/stride, rounded up."""
        rows, columns = self.stride[0], self.stride[1]
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight, None, 1, 0, 1, self.groups)


def conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution without bias. Its padding is half its kernel, so a stride rounds sizes up.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel: Side of the kernel, pixels.
        stride: Stride along both axes.
        groups: Number of groups.
    """
    kind = _SubsampledConv2d if kernel == 1 and stride > 1 and in_channels % _VECTOR else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, zeroes the branch of an image at random.

    The remaining branches are scaled up, so that the mean does not change. The results and random draws are
    those of ``torchvision.ops.StochasticDepth`` in mode ``"row"``, which takes seconds to import.
    """

    def __init__(self, probability: float) -> None:
        """Store the probability of dropping the branch of an image, in [0, 1)."""
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
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

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
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

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


#: Drop probabilities of the units of a mask.
NEVER_DROPPED: Final[Iterator[float]] = itertools.repeat(0.0)


def chain(specs: Iterable[UnitSpec], drop_paths: Iterator[float] = NEVER_DROPPED) -> nn.Sequential:
    """Return the units in sequence.

    Each unit consumes the next probability of ``drop_paths``. Later chains may continue the same iterator.
    """
    return nn.Sequential(*(unit(spec, next(drop_paths)) for spec in specs))


def channel_attention(x_BCHW: Tensor) -> Tensor:
    """Compute equation 5: f2(x) = x / ||x||_2, with the norm over channels at each position."""
    return F.normalize(x_BCHW, dim=1)


def spatial_attention(x_BCHW: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute equation 6: f3(x) = sigmoid((x - mean_c) / std_c), mean and std over the map of each channel.

    ``eps`` is added to the variance, because a map of one pixel or a constant map has variance 0.

    >>> spatial_attention(torch.zeros(1, 1, 1, 1)).item()
    0.5
    """
    # instance_norm would raise in training for a map of one pixel, to which small images shrink.
    variance_BC11, mean_BC11 = torch.var_mean(x_BCHW, dim=(2, 3), correction=0, keepdim=True)
    return torch.sigmoid((x_BCHW - mean_BC11) * torch.rsqrt(variance_BC11 + eps))


#: Attention functions by the value of ``TrialConfig.attention``; mixed is equation 4, f1(x) = sigmoid(x).
ATTENTIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "mixed": torch.sigmoid,
    "channel": channel_attention,
    "spatial": spatial_attention,
}


# A leaf of torch.fx graphs, because its behaviour depends on the dtype, which is not known while tracing.
@torch.fx.wrap
def interpolate_like(x_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """Interpolate ``x_BCHW`` to the height and width of ``reference_BCHW``; keep the dtype of ``x_BCHW``."""
    # TorchScript has no autocast for a device type that is only known at run time.
    if torch.jit.is_scripting() or x_BCHW.dtype not in (torch.bfloat16, torch.float16):
        return F.interpolate(x_BCHW, size=reference_BCHW.shape[-2:], mode="bilinear", align_corners=True)
    # Autocast would run the interpolation and the sums after it in fp32, which doubles the bytes. Without
    # autocast the kernel still accumulates in fp32.
    with torch.autocast(x_BCHW.device.type, enabled=False):
        return F.interpolate(x_BCHW, size=reference_BCHW.shape[-2:], mode="bilinear", align_corners=True)


def _head(channels: int, *, preactivation: bool) -> nn.Sequential:
    """Return the two 1x1 convolutions that end a mask.

    ResNeXt units end in BN and ReLU, so their head has no BN and ReLU before the first convolution.
    """
    head = nn.Sequential()
    if preactivation:
        head.add_module("norm1", nn.BatchNorm2d(channels))
        head.add_module("relu1", nn.ReLU(inplace=True))
    head.add_module("conv1", conv(channels, channels))
    head.add_module("norm2", nn.BatchNorm2d(channels))
    head.add_module("relu2", nn.ReLU(inplace=True))
    head.add_module("conv2", conv(channels, channels))
    return head


class Mask(nn.Module):
    """The soft mask branch M: max pooling down, interpolation up, and a skip connection at each inner level.

    Level i is the map after pooling i + 1. The last pooling leads to ``middle``. Without poolings the branch
    is ``middle`` at full resolution: the local mask, and the mask of the last stage of ResCon's small
    network.
    """

    def __init__(self, spec: NetworkSpec, stage: StageSpec) -> None:
        """Build the mask of one module of ``stage``."""
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
        # Caffe uses padding 0 and rounds sizes up. Padding 1 gives the same sizes for even maps and is also
        # right for odd maps.
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.activation = ATTENTIONS[spec.attention]

    def forward(self, x_BCHW: Tensor, trunk_BCHW: Tensor) -> Tensor:
        """Return the mask of the features ``x_BCHW``, in their shape.

        ``trunk_BCHW`` sets the size of the last interpolation, and is added to it if ``added_reference``.
        """
        if self.poolings:
            x_BCHW = self._interpolate(self._encode_decode(x_BCHW), trunk_BCHW)
        else:
            x_BCHW = self.middle(x_BCHW)
        return self.activation(self.head(x_BCHW))

    def _encode_decode(self, x_BCHW: Tensor) -> Tensor:
        """Run from full resolution down to the deepest level and back up to the first level."""
        levels: list[Tensor] = []
        for down in self.down:
            x_BCHW = down(self.pool(x_BCHW))
            levels.append(x_BCHW)
        x_BCHW = self.middle(self.pool(x_BCHW))
        for deepest in range(len(levels) - 1, -1, -1):
            # TorchScript can neither index a list of modules by a variable nor iterate over it in reverse.
            for index, (skip, up) in enumerate(zip(self.skip, self.up)):  # noqa: B905 - it has no `strict`
                if index == deepest:
                    level_BCHW = levels[index]
                    x_BCHW = up(self._interpolate(x_BCHW, level_BCHW) + skip(level_BCHW))
        return x_BCHW

    def _interpolate(self, x_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        # To the actual size of the reference, because that size depends on the image.
        x_BCHW = interpolate_like(x_BCHW, reference_BCHW)
        return x_BCHW + reference_BCHW if self.added_reference else x_BCHW


class AttentionModule(nn.Module):
    """p units, then the trunk T (t units) and the mask M in parallel, their combination, then p units.

    Attention residual learning combines them as (1 + M) * T (equation 3), naive learning as M * T.
    """

    def __init__(self, spec: NetworkSpec, stage: StageSpec, drop_paths: Iterator[float]) -> None:
        """Build one module of ``stage``, which consumes 2p + t of ``drop_paths``, one for each unit."""
        super().__init__()
        outer = spec.plain(stage.channels, units=spec.outer_units)
        self.pre = chain(outer, drop_paths)
        self.trunk = chain(spec.plain(stage.channels, units=spec.trunk_units), drop_paths)
        self.mask = Mask(spec, stage)
        self.post = chain(outer, drop_paths)
        self.residual = spec.attention_learning == "arl"

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features of the same shape."""
        x_BCHW = self.pre(x_BCHW)
        trunk_BCHW = self.trunk(x_BCHW)
        mask_BCHW = self.mask(x_BCHW, trunk_BCHW)
        if self.residual:
            mask_BCHW = 1 + mask_BCHW
        y_BCHW: Tensor = self.post(mask_BCHW * trunk_BCHW)
        return y_BCHW


class Stage(nn.Module):
    """Opening units, which set the width and the size, then attention modules."""

    def __init__(
        self, spec: NetworkSpec, stage: StageSpec, in_channels: int, drop_paths: Iterator[float]
    ) -> None:
        """Build one stage. Its units consume ``drop_paths`` as those of :class:`AttentionModule` do."""
        super().__init__()
        opening = spec.chain(in_channels, stage.channels, units=stage.openings, stride=stage.stride)
        self.opening = chain(opening, drop_paths)
        self.attention = nn.Sequential(
            *(AttentionModule(spec, stage, drop_paths) for _ in range(stage.modules))
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map B x in_channels x H x W to B x channels x H/stride x W/stride, rounded up."""
        y_BCHW: Tensor = self.attention(self.opening(x_BCHW))
        return y_BCHW


def _stem(spec: NetworkSpec) -> nn.Sequential:
    stem = nn.Sequential()
    stem.add_module("conv", conv(spec.in_channels, spec.stem_channels, spec.stem_kernel, spec.stem_stride))
    if spec.stem_norm:
        stem.add_module("norm", nn.BatchNorm2d(spec.stem_channels))
        stem.add_module("relu", nn.ReLU(inplace=True))
    if spec.stem_pool:
        stem.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    return stem


# A leaf of torch.fx graphs, because the size of the images is not known while tracing.
@torch.fx.wrap
def check_sides(images_BCHW: Tensor, least: int) -> None:
    """Check that no side of the images is below ``least`` pixels.

    Raises:
        NetworkError: A side is below ``least``.
    """
    if min(images_BCHW.shape[-2], images_BCHW.shape[-1]) >= least:
        return
    if torch.jit.is_scripting():
        # TorchScript supports only Python's built-in exceptions.
        raise ValueError(f"images must be at least {least} pixels a side")
    rule = f"images must be at least {least} pixels a side"
    raise NetworkError(format_error(rule, got=f"{images_BCHW.shape[-2]}x{images_BCHW.shape[-1]}"))


def _he_initialise(module: nn.Module) -> None:
    """Use variance 2 / fan-in for convolutions and 1 / fan-in for the classifier.

    Batch norm keeps its default weight 1 and bias 0.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)


class ResidualAttentionNetwork(nn.Module):
    """The whole network: stem, stages, final units, global average pooling, classifier.

    The attribute ``spec`` is the :class:`NetworkSpec` the network was built from.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        """Build the network; initialise its weights as in He et al. 2015, from torch's global generator."""
        super().__init__()
        self.spec = spec
        self.least_side = MINIMUM_IMAGE_SIZE
        drop_paths = iter(spec.drop_path_rates)
        self.stem = _stem(spec)
        self.stages = nn.Sequential(
            *(
                Stage(spec, stage, in_channels, drop_paths)
                for stage, in_channels in zip(spec.stages, spec.stage_inputs(), strict=True)
            )
        )
        self.final = chain(spec.final_chain(), drop_paths)
        # Unlike ResNeXt units, pre-activation units do not normalise the sum that they return.
        self.norm = nn.BatchNorm2d(spec.out_channels) if spec.preactivation else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if spec.preactivation else nn.Identity()
        self.classifier = nn.Linear(spec.out_channels, spec.classes)
        self.apply(_he_initialise)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits, B x K.

        Raises:
            NetworkError: An image side is below 16 pixels.
        """
        logits_BK: Tensor = self.classifier(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits_BK

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the maps whose averages enter the classifier, B x out_channels x H x W.

        Raises:
            NetworkError: An image side is below 16 pixels.
        """
        check_sides(images_BCHW, self.least_side)
        x_BCHW = self.final(self.stages(self.stem(images_BCHW)))
        features_BCHW: Tensor = self.relu(self.norm(x_BCHW))
        return features_BCHW


def build_from_spec(spec: NetworkSpec) -> ResidualAttentionNetwork:
    """Return a newly initialised network that ``spec`` describes, in training mode."""
    return ResidualAttentionNetwork(spec)


def build_network(
    preset: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    width: float = 1.0,
    drop_path: float = 0.0,
    image_size: int | None = None,
) -> ResidualAttentionNetwork:
    """Build a freshly initialised network by name, in training mode.

    Args:
        preset: a name from ``list_presets``.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: multiplier of every stage's channels.
        drop_path: probability that the residual branch of the last trunk unit is dropped in training.
        image_size: side in pixels of the images that the network is meant for; None for the preset's. The
            depth of the masks follows from it.

    Raises:
        ConfigError: a value is outside its limits.
        NetworkError: there is no such preset, or no such network.

    >>> build_network("cifar_attention56", num_classes=10).spec.classes
    10
    """
    config = TrialConfig(preset=preset, width=width, drop_path=drop_path, image_size=image_size)
    return build_from_spec(resolve_network(config, classes=num_classes, in_channels=in_channels))
