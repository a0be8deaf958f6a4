"""From a trial's configuration to a network's numbers: every choice is made here, once, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, explain, unknown_name
from tune_rescon.models.plan import minimum_image_size
from tune_rescon.models.presets import LAYOUTS, PRESETS, Layout, Preset, Variant, list_presets
from tune_rescon.models.spec import NetworkSpec, StageSpec

__all__ = ["resolve_network"]

#: ``layout: auto`` takes the paper's CIFAR layout up to this side, the ImageNet layout above it, pixels.
LARGEST_SMALL_IMAGE: Final = 64


def resolve_network(config: TrialConfig, *, classes: int, in_channels: int) -> NetworkSpec:
    """The numbers of the network ``config`` describes.

    A ``preset`` stands for a layout, a depth and an added reference. Another layout or depth beside it is an
    error (TrialConfig's default depth cannot be told from none); every other field of the network varies it.
    ``width`` scales stages and final units, not the stem. ``added_reference`` is a switch of its own: the
    layout ``rescon`` alone does not turn it on, the preset ``rescon_attention92_32`` does.

    Mask depths come from the layout's nominal size, not from ``image_size``: they decide the parameters, and
    a network trained at 224 must load at 320. The ``local`` mask (paper, section 4.1) has the units of that
    stage's encoder-decoder in a row at full resolution, so that the two differ in sampling alone.

    Raises:
        NetworkError: unknown preset; a depth the layout has not; an image too small for it; no classes.
    """
    chosen = _chosen(config)
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


def _chosen(config: TrialConfig) -> Preset:
    if config.preset is None:
        return Preset(layout=_layout_name(config), depth=config.depth)
    if config.preset not in PRESETS:
        raise NetworkError(unknown_name("preset", config.preset, list_presets()))
    preset = PRESETS[config.preset]
    if config.layout not in ("auto", preset.layout):
        raise NetworkError(_contradiction(config, "layout", preset.layout))
    if config.depth not in (TrialConfig().depth, preset.depth):
        raise NetworkError(_contradiction(config, "depth", preset.depth))
    return preset


def _contradiction(config: TrialConfig, field: str, stands_for: object) -> str:
    rule = f"a preset fixes the {field}; {config.preset} is {field} {stands_for}"
    hint = f"Leave out `{field}`, or drop `preset` and give `layout` and `depth`."
    return explain(rule, got=f"{field} {getattr(config, field)!r} beside it", where="preset", hint=hint)


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
    raise NetworkError(explain(rule, got=str(chosen.depth), where="depth", hint=hint))


def _stages(layout: Layout, variant: Variant, *, width: float, local: bool) -> Iterator[StageSpec]:
    table = zip(layout.channels, layout.strides, variant.modules, layout.mask_depths(), strict=True)
    for channels, stride, modules, depth in table:
        middle = 2 * variant.mask_units
        yield StageSpec(
            channels=_scaled(channels, width, layout.squeeze * layout.groups),
            stride=stride,
            openings=layout.openings,
            modules=modules,
            mask_poolings=0 if local else depth,
            mask_middle=_mask_total(depth, variant.mask_units) if local else middle,
        )


def _mask_total(depth: int, mask_units: int) -> int:
    """Units of an encoder-decoder mask: r at each level down and up, 2r in the middle, one per skip.

    >>> [_mask_total(depth, 1) for depth in (0, 1, 2, 3)]
    [2, 2, 5, 8]
    """
    levels = max(depth - 1, 0)
    return levels * (2 * mask_units + 1) + 2 * mask_units


def _scaled(channels: int, width: float, multiple: int) -> int:
    """``channels`` times ``width``, to the nearest positive multiple a unit can be split into.

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
        raise NetworkError(explain(rule, got=str(spec.image_size), where="image_size"))
