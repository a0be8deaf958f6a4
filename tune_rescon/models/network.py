"""The one network of the family, built from a :class:`~tune_rescon.models.spec.NetworkSpec`.

Shapes in names: B images, C channels, H and W height and width in pixels, K classes.
"""

# Annotations are types here, not text: torch.fx copies those of `forward` to where TorchScript reads them.
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, explain
from tune_rescon.models.attention import AttentionModule
from tune_rescon.models.resolve import resolve_network
from tune_rescon.models.spec import MINIMUM_IMAGE_SIZE, NetworkSpec, StageSpec
from tune_rescon.models.units import chain, conv

__all__ = [
    "ResidualAttentionNetwork",
    "Stage",
    "build_from_spec",
    "build_network",
    "check_sides",
    "drop_path_rates",
]


class Stage(nn.Module):
    """Opening units, which set width and size, then attention modules."""

    def __init__(
        self, spec: NetworkSpec, stage: StageSpec, in_channels: int, drop_paths: Iterator[float]
    ) -> None:
        """``drop_paths``: the trunk path's drop probabilities, from which this stage takes its share."""
        super().__init__()
        opening = spec.chain(in_channels, stage.channels, units=stage.openings, stride=stage.stride)
        self.opening = chain(opening, drop_paths)
        self.attention = nn.Sequential(
            *(AttentionModule(spec, stage, drop_paths) for _ in range(stage.modules))
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B x in_channels x H x W to B x channels x H/stride x W/stride, rounded up."""
        y_BCHW: Tensor = self.attention(self.opening(x_BCHW))
        return y_BCHW


class ResidualAttentionNetwork(nn.Module):
    """Stem, stages, final units, global average, classifier. ``spec`` is what it was built from."""

    def __init__(self, spec: NetworkSpec) -> None:
        """Weights as He et al. 2015 initialise them, from torch's global generator."""
        super().__init__()
        self.spec = spec
        self.least_side = MINIMUM_IMAGE_SIZE
        drop_paths = iter(drop_path_rates(spec))
        self.stem = _stem(spec)
        self.stages = nn.Sequential(
            *(
                Stage(spec, stage, in_channels, drop_paths)
                for stage, in_channels in zip(spec.stages, spec.stage_inputs(), strict=True)
            )
        )
        self.final = chain(spec.final_chain(), drop_paths)
        # A chain of pre-activation units ends in a bare sum; ResNeXt units have normalised theirs already.
        self.norm = nn.BatchNorm2d(spec.out_channels) if spec.preactivation else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if spec.preactivation else nn.Identity()
        self.classifier = nn.Linear(spec.out_channels, spec.classes)
        self.apply(_he_initialise)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, B x K. Raises as :meth:`features`."""
        logits_BK: Tensor = self.classifier(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits_BK

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The maps whose averages the classifier sees, B x out_channels x H x W.

        Raises:
            NetworkError: an image side is below 16 pixels.
        """
        check_sides(images_BCHW, self.least_side)
        x_BCHW = self.final(self.stages(self.stem(images_BCHW)))
        features_BCHW: Tensor = self.relu(self.norm(x_BCHW))
        return features_BCHW


def build_network(preset: str, *, classes: int, in_channels: int = 3) -> ResidualAttentionNetwork:
    """A freshly initialised network by name (see ``list_presets``), in training mode.

    Raises:
        NetworkError: no such preset, or fewer than one class or channel.
    """
    return build_from_spec(
        resolve_network(TrialConfig(preset=preset), classes=classes, in_channels=in_channels)
    )


def build_from_spec(spec: NetworkSpec) -> ResidualAttentionNetwork:
    """A freshly initialised network from its numbers, in training mode."""
    return ResidualAttentionNetwork(spec)


def drop_path_rates(spec: NetworkSpec) -> tuple[float, ...]:
    """Drop probability of each unit along the trunk path, linear in depth (Huang et al. 2016, equation 4).

    The l-th of L units has ``drop_path`` x l / L; masks are never dropped.
    """
    units = spec.trunk_path
    return tuple(spec.drop_path * index / units for index in range(1, units + 1))


# A leaf of torch.fx's graphs: the size of the images is not known when a graph is traced.
@torch.fx.wrap
def check_sides(images_BCHW: Tensor, least: int) -> None:
    """Check that no side of the images is below ``least`` pixels.

    Raises:
        NetworkError: one is.
    """
    if min(images_BCHW.shape[-2], images_BCHW.shape[-1]) >= least:
        return
    if torch.jit.is_scripting():
        # TorchScript knows Python's own exceptions only.
        raise ValueError(f"images must be at least {least} pixels a side")
    rule = f"images must be at least {least} pixels a side"
    raise NetworkError(explain(rule, got=f"{images_BCHW.shape[-2]}x{images_BCHW.shape[-1]}"))


def _stem(spec: NetworkSpec) -> nn.Sequential:
    stem = nn.Sequential()
    stem.add_module("conv", conv(spec.in_channels, spec.stem_channels, spec.stem_kernel, spec.stem_stride))
    if spec.stem_norm:
        stem.add_module("norm", nn.BatchNorm2d(spec.stem_channels))
        stem.add_module("relu", nn.ReLU(inplace=True))
    if spec.stem_pool:
        stem.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    return stem


def _he_initialise(module: nn.Module) -> None:
    """Variance 2 / fan-in for convolutions, 1 / fan-in for the classifier; batch norm starts at 1 and 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)
