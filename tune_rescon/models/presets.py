"""The networks by name: tables of numbers, and one rule that reads them.

A layout says what surrounds the attention modules; a variant, how many there are and p, t, r (paper,
section 3.3). A variant's depth follows from them: 2 + 3 x units along the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["LAYOUTS", "PRESETS", "Layout", "Preset", "Variant", "list_presets"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Attention modules per stage, and the paper's p, t, r."""

    modules: tuple[int, ...]
    outer_units: int = 1
    trunk_units: int = 2
    mask_units: int = 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What surrounds the attention modules. Sizes are in pixels."""

    image_size: int
    """Nominal side of the image: the default, and what mask depths are resolved from."""
    mask_floor: int
    """A mask halves its map (rounding up) until the side is at most this, at the nominal size."""
    stem_channels: int
    stem_kernel: int
    stem_stride: int
    stem_norm: bool
    stem_pool: bool
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    openings: int
    final_units: int
    final_channels: int
    final_stride: int
    variants: tuple[Variant, ...]
    preactivation: bool = True
    squeeze: int = 4
    groups: int = 1

    def depth(self, variant: Variant) -> int:
        """Layers along the trunk.

        >>> LAYOUTS["imagenet"].depth(Variant(modules=(1, 1, 1)))
        56
        """
        per_module = 2 * variant.outer_units + variant.trunk_units
        units = len(self.channels) * self.openings + self.final_units + per_module * sum(variant.modules)
        return 2 + 3 * units

    def by_depth(self) -> dict[int, Variant]:
        """Every variant of this layout by its depth, shallowest first."""
        return {self.depth(variant): variant for variant in self.variants}

    def mask_depths(self) -> tuple[int, ...]:
        """Poolings of a mask in each stage.

        >>> LAYOUTS["imagenet"].mask_depths(), LAYOUTS["rescon"].mask_depths()
        ((3, 2, 1), (2, 1, 0))
        """
        side = math.ceil(self.image_size / (self.stem_stride * (2 if self.stem_pool else 1)))
        depths = []
        for stride in self.strides:
            side = math.ceil(side / stride)
            depths.append(_halvings(side, self.mask_floor))
        return tuple(depths)


def _halvings(side: int, floor: int) -> int:
    count = 0
    while side > floor:
        side = math.ceil(side / 2)
        count += 1
    return count


_THREE_STAGES: Final = (
    Variant(modules=(1, 1, 1)),
    Variant(modules=(1, 2, 3)),
    Variant(modules=(2, 3, 4)),
    Variant(modules=(3, 4, 5)),
)

LAYOUTS: Final[Mapping[str, Layout]] = {
    # Paper, table 2; its authors' Caffe definitions. Depths 128 and 164 extend it.
    "imagenet": Layout(
        image_size=224,
        mask_floor=7,
        stem_channels=64,
        stem_kernel=7,
        stem_stride=2,
        stem_norm=True,
        stem_pool=True,
        channels=(256, 512, 1024),
        strides=(1, 2, 2),
        openings=1,
        final_units=3,
        final_channels=2048,
        final_stride=2,
        variants=_THREE_STAGES,
    ),
    # The authors' AttentionNeXt-56: ResNeXt units, 32 groups.
    "attentionnext": Layout(
        image_size=224,
        mask_floor=7,
        stem_channels=64,
        stem_kernel=7,
        stem_stride=2,
        stem_norm=True,
        stem_pool=True,
        channels=(256, 512, 1024),
        strides=(1, 2, 2),
        openings=1,
        final_units=3,
        final_channels=2048,
        final_stride=2,
        variants=_THREE_STAGES[:1],
        preactivation=False,
        squeeze=2,
        groups=32,
    ),
    # Paper, section 4.1: depth 36 m + 20. It states the depths and the parameters of 92 (1.9 M) and 236
    # (5.1 M), which these widths give; its 8.6 M for 452 is not what its own figure 2 gives (10.2 M).
    "cifar": Layout(
        image_size=32,
        mask_floor=4,
        stem_channels=16,
        stem_kernel=3,
        stem_stride=1,
        stem_norm=False,
        stem_pool=False,
        channels=(64, 128, 256),
        strides=(1, 2, 2),
        openings=2,
        final_units=0,
        final_channels=0,
        final_stride=1,
        variants=(
            *(Variant(modules=(m, m, m)) for m in (1, 2, 3, 4, 6)),
            Variant(modules=(6, 6, 6), outer_units=2, trunk_units=4, mask_units=3),
        ),
    ),
    # ResCon's network for 32x32 images (its Attention-92); the other depths extend it.
    "rescon": Layout(
        image_size=32,
        mask_floor=8,
        stem_channels=32,
        stem_kernel=3,
        stem_stride=1,
        stem_norm=True,
        stem_pool=False,
        channels=(128, 256, 512),
        strides=(1, 2, 2),
        openings=1,
        final_units=3,
        final_channels=1024,
        final_stride=1,
        variants=_THREE_STAGES,
    ),
    # The port ResCon follows, for 448x448 images.
    "port448": Layout(
        image_size=448,
        mask_floor=7,
        stem_channels=64,
        stem_kernel=7,
        stem_stride=2,
        stem_norm=True,
        stem_pool=True,
        channels=(128, 256, 512, 1024),
        strides=(1, 2, 2, 2),
        openings=1,
        final_units=3,
        final_channels=2048,
        final_stride=2,
        variants=(Variant(modules=(1, 1, 2, 3)),),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A network by name: a layout, a depth of it, and whether masks add their reference."""

    layout: str
    depth: int
    added_reference: bool = False


PRESETS: Final[Mapping[str, Preset]] = {
    "attention56": Preset(layout="imagenet", depth=56),
    "attention92": Preset(layout="imagenet", depth=92),
    "attention128": Preset(layout="imagenet", depth=128),
    "attention164": Preset(layout="imagenet", depth=164),
    "attentionnext56": Preset(layout="attentionnext", depth=56),
    "cifar_attention56": Preset(layout="cifar", depth=56),
    "cifar_attention92": Preset(layout="cifar", depth=92),
    "cifar_attention128": Preset(layout="cifar", depth=128),
    "cifar_attention164": Preset(layout="cifar", depth=164),
    "cifar_attention236": Preset(layout="cifar", depth=236),
    "cifar_attention452": Preset(layout="cifar", depth=452),
    "port_attention_448": Preset(layout="port448", depth=107, added_reference=True),
    "rescon_attention56_224": Preset(layout="imagenet", depth=56, added_reference=True),
    "rescon_attention92_224": Preset(layout="imagenet", depth=92, added_reference=True),
    "rescon_attention92_32": Preset(layout="rescon", depth=92, added_reference=True),
}


def list_presets() -> tuple[str, ...]:
    """Names that ``build_network`` and ``TrialConfig.preset`` know, sorted."""
    return tuple(sorted(PRESETS))
