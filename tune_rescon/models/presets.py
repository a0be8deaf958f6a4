"""Named networks, and the conversion of a trial's configuration to a ``NetworkSpec``, without torch.

A layout defines everything around the attention modules. A variant defines the number of attention modules
and the paper's p, t and r (section 3.3). Together they give the depth: 2 + 3 x units along the trunk.
:func:`resolve_network` makes every choice that turns a :class:`~tune_rescon.config.TrialConfig` into a
``NetworkSpec``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, format_error, unknown_name_message
from tune_rescon.models.spec import NetworkSpec, StageSpec, minimum_image_size

__all__ = ["LAYOUTS", "PRESETS", "Layout", "Preset", "Variant", "list_presets", "resolve_network"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The number of attention modules per stage, and the paper's p, t and r in this order."""

    modules: tuple[int, ...]
    outer_units: int = 1
    trunk_units: int = 2
    mask_units: int = 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything around the attention modules. Sizes are in pixels."""

    image_size: int
    """Nominal side of the image: the default image size, and the size from which mask depths are computed."""
    mask_floor: int
    """At the nominal size, a mask halves its map (rounding up) until the side is at most ``mask_floor``."""
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
        """Return the number of layers along the trunk.

        >>> LAYOUTS["imagenet"].depth(Variant(modules=(1, 1, 1)))
        56
        """
        per_module = 2 * variant.outer_units + variant.trunk_units
        units = len(self.channels) * self.openings + self.final_units + per_module * sum(variant.modules)
        return 2 + 3 * units

    def by_depth(self) -> dict[int, Variant]:
        """Return every variant of this layout by its depth, shallowest first."""
        return {self.depth(variant): variant for variant in self.variants}

    def mask_poolings(self) -> tuple[int, ...]:
        """Return the number of poolings of a mask in each stage.

        >>> LAYOUTS["imagenet"].mask_poolings(), LAYOUTS["rescon"].mask_poolings()
        ((3, 2, 1), (2, 1, 0))
        """
        side = math.ceil(self.image_size / (self.stem_stride * (2 if self.stem_pool else 1)))
        poolings = []
        for stride in self.strides:
            side = math.ceil(side / stride)
            poolings.append(_halvings(side, self.mask_floor))
        return tuple(poolings)


def _halvings(side: int, floor: int) -> int:
    """Return how often ``side`` is halved, rounding up, until it is at most ``floor``."""
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

# Paper, table 2, and the authors' Caffe definitions. Depths 128 and 164 extend the table.
_IMAGENET: Final = Layout(
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
)

LAYOUTS: Final[Mapping[str, Layout]] = {
    "imagenet": _IMAGENET,
    # The authors' AttentionNeXt-56: ResNeXt units, 32 groups.
    "attentionnext": replace(
        _IMAGENET, variants=_THREE_STAGES[:1], preactivation=False, squeeze=2, groups=32
    ),
    # Paper, section 4.1: depth 36 m + 20. These widths reproduce the paper's depths and its parameters for
    # depth 92 (1.9 M) and depth 236 (5.1 M). For depth 452 the paper states 8.6 M, but its figure 2 gives
    # 10.2 M.
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
    "rescon": replace(
        _IMAGENET,
        image_size=32,
        mask_floor=8,
        stem_channels=32,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
        channels=(128, 256, 512),
        final_channels=1024,
        final_stride=1,
    ),
    # The port ResCon follows, for 448x448 images.
    "port448": replace(
        _IMAGENET,
        image_size=448,
        channels=(128, 256, 512, 1024),
        strides=(1, 2, 2, 2),
        variants=(Variant(modules=(1, 1, 2, 3)),),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named network: a layout, one of its depths, and ``added_reference`` (see ``NetworkSpec``)."""

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
    """Return the names that ``build_network`` and ``TrialConfig.preset`` accept, sorted."""
    return tuple(sorted(PRESETS))


#: Largest side, pixels, for which ``layout: auto`` selects the paper's CIFAR layout. Above it, ``auto``
#: selects the ImageNet layout.
LARGEST_SMALL_IMAGE: Final = 64


def resolve_network(config: TrialConfig, *, classes: int, in_channels: int) -> NetworkSpec:
    """Return the spec of the network that ``config`` describes.

    A ``preset`` fixes a layout, a depth and ``added_reference``. Another layout or depth beside it is an
    error, except TrialConfig's default depth, which is the same as an unset depth. Every other field that
    describes the network modifies the preset. ``width`` scales stages and final units, but not the stem.
    ``added_reference`` is a separate switch: the preset ``rescon_attention92_32`` turns it on, the layout
    ``rescon`` alone does not.

    The number of a mask's poolings follows from the layout's nominal size, not from ``image_size``: it
    determines the parameters, and a network trained at 224 must load at 320. The ``local`` mask (paper,
    section 4.1) runs the units of the encoder-decoder in sequence at full resolution, so that the two masks
    differ only in sampling.

    Args:
        config: The trial's configuration.
        classes: Number of classes.
        in_channels: Number of image channels.

    Raises:
        NetworkError: ``network`` is set, the preset is unknown or contradicts the layout or depth, the layout
            does not have the depth, the image is too small for the layout, or there is less than one class or
            channel.
    """
    if config.network is not None:
        rule = "a Residual Attention Network has no `network`; describe_network takes both kinds"
        raise NetworkError(format_error(rule, got=config.network, where="network"))
    chosen = _chosen_preset(config)
    layout = LAYOUTS[chosen.layout]
    variant = _variant(chosen)
    multiple = layout.squeeze * layout.groups
    spec = NetworkSpec(
        layout=chosen.layout,
        classes=classes,
        in_channels=in_channels,
        image_size=layout.image_size if config.image_size is None else config.image_size,
        stem_channels=layout.stem_channels,
        stem_kernel=layout.stem_kernel,
        stem_stride=layout.stem_stride,
        stem_norm=layout.stem_norm,
        stem_pool=layout.stem_pool,
        preactivation=layout.preactivation,
        squeeze=layout.squeeze,
        groups=layout.groups,
        stages=tuple(_stages(layout, variant, width=config.width, local=config.mask == "local")),
        final_units=layout.final_units,
        final_channels=_scaled(layout.final_channels, config.width, multiple) if layout.final_units else 0,
        final_stride=layout.final_stride,
        outer_units=variant.outer_units,
        trunk_units=variant.trunk_units,
        mask_units=variant.mask_units,
        attention=config.attention,
        attention_learning=config.attention_learning,
        added_reference=chosen.added_reference or config.added_reference,
        drop_path=config.drop_path,
    )
    _check_image_size(spec)
    return spec


def _chosen_preset(config: TrialConfig) -> Preset:
    """Return the preset of a configuration, or its layout and depth as a preset."""
    if config.preset is None:
        return Preset(layout=_layout_name(config), depth=config.depth)
    if config.preset not in PRESETS:
        raise NetworkError(unknown_name_message("preset", config.preset, list_presets()))
    preset = PRESETS[config.preset]
    if config.layout not in ("auto", preset.layout):
        raise NetworkError(_contradiction_message(config, "layout", preset.layout))
    if config.depth not in (TrialConfig().depth, preset.depth):
        raise NetworkError(_contradiction_message(config, "depth", preset.depth))
    return preset


def _contradiction_message(config: TrialConfig, field: str, value: object) -> str:
    rule = f"a preset fixes the {field}; {config.preset} is {field} {value}"
    hint = f"Leave out `{field}`, or drop `preset` and give `layout` and `depth`."
    return format_error(rule, got=f"{field} {getattr(config, field)!r} with it", where="preset", hint=hint)


def _layout_name(config: TrialConfig) -> str:
    if config.layout != "auto":
        return config.layout
    small = config.image_size is None or config.image_size <= LARGEST_SMALL_IMAGE
    return "cifar" if small else "imagenet"


def _variant(chosen: Preset) -> Variant:
    variants = LAYOUTS[chosen.layout].by_depth()
    if chosen.depth in variants:
        return variants[chosen.depth]
    rule = f"layout {chosen.layout} has the depths {', '.join(map(str, variants))}"
    if chosen.depth % 3 != 2:
        rule += (
            "; a network of three-layer units is 2 + 3 x units deep, so no depth but those 2 mod 3 can exist"
        )
    nearest = min(variants, key=lambda depth: abs(depth - chosen.depth))
    hint = f"The nearest is {nearest}."
    raise NetworkError(format_error(rule, got=str(chosen.depth), where="depth", hint=hint))


def _stages(layout: Layout, variant: Variant, *, width: float, local: bool) -> Iterator[StageSpec]:
    table = zip(layout.channels, layout.strides, variant.modules, layout.mask_poolings(), strict=True)
    for channels, stride, modules, poolings in table:
        middle = 2 * variant.mask_units
        yield StageSpec(
            channels=_scaled(channels, width, layout.squeeze * layout.groups),
            stride=stride,
            openings=layout.openings,
            modules=modules,
            mask_poolings=0 if local else poolings,
            mask_middle=_mask_total(poolings, variant.mask_units) if local else middle,
        )


def _mask_total(poolings: int, mask_units: int) -> int:
    """Return the number of units of an encoder-decoder mask.

    The mask has r units at each level down and up, 2r in the middle, and one per skip connection.

    >>> [_mask_total(poolings, 1) for poolings in (0, 1, 2, 3)]
    [2, 2, 5, 8]
    """
    levels = max(poolings - 1, 0)
    return levels * (2 * mask_units + 1) + 2 * mask_units


def _scaled(channels: int, width: float, multiple: int) -> int:
    """Return ``channels`` times ``width``, rounded to the nearest positive multiple of ``multiple``.

    ``multiple`` makes the channels divisible into the middle channels and groups of a unit.

    >>> _scaled(64, 1.0, 4), _scaled(64, 0.3, 4), _scaled(256, 0.1, 64)
    (64, 20, 64)
    """
    return max(1, round(channels * width / multiple)) * multiple


def _check_image_size(spec: NetworkSpec) -> None:
    least = minimum_image_size(spec)
    if spec.image_size < least:
        rule = (
            f"layout {spec.layout} needs at least {least} pixels, or its masks would pool a map of one pixel"
        )
        raise NetworkError(format_error(rule, got=str(spec.image_size), where="image_size"))
