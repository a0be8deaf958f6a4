"""Describe a network in plain numbers, and compute its layers, parameters and multiply-adds, without torch.

Every variant of the family (Wang et al., CVPR 2017, and its successors) is a :class:`NetworkSpec`, so that
one network class covers all of them.

:func:`iter_layers` lists every convolution, batch norm and linear layer in the order of the forward pass,
which is the topological order of the authors' Caffe files. The name of a layer is its module's path in the
network that :func:`tune_rescon.models.network.build_from_spec` builds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.errors import NetworkError, format_error

__all__ = [
    "MINIMUM_IMAGE_SIZE",
    "Cost",
    "Layer",
    "NetworkSpec",
    "StageSpec",
    "UnitSpec",
    "checked_fields",
    "count_params_and_macs",
    "iter_layers",
    "minimum_image_size",
]


#: The smallest side of an image that these networks accept, pixels.
MINIMUM_IMAGE_SIZE: Final = 16


@dataclass(frozen=True, kw_only=True)
class UnitSpec:
    """A residual unit: 1x1 to ``middle``, 3x3 with ``stride`` in ``groups``, 1x1 to ``channels``."""

    in_channels: int
    channels: int
    middle: int
    stride: int
    groups: int
    preactivation: bool
    """True: BN and ReLU come before each convolution. False: they come after it, as in ResNeXt."""

    @property
    def projects(self) -> bool:
        """True if the shortcut needs a 1x1 convolution; otherwise the shortcut is the input itself."""
        return self.stride != 1 or self.in_channels != self.channels


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """Opening units, the first of which changes the width and applies the stride, then attention modules."""

    channels: int
    stride: int
    openings: int
    modules: int
    mask_poolings: int
    """Number of times the mask branch halves its map; fixed here and independent of the input image."""
    mask_middle: int
    """Number of units of the mask branch between its last pooling and its first interpolation."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A whole network in plain numbers and strings.

    The paper's hyperparameters p, t and r (section 3.3) are ``outer_units``, ``trunk_units`` and
    ``mask_units``: the number of units before and after the branches of a module, in its trunk, and at each
    level of its mask.

    Raises:
        NetworkError: ``classes`` or ``in_channels`` is below 1, or ``image_size`` is below
            :data:`MINIMUM_IMAGE_SIZE`.
    """

    layout: str
    """The key of ``presets.LAYOUTS`` that the numbers come from, for messages and name mappings."""
    classes: int
    in_channels: int
    image_size: int
    """Side of the square images the network is designed for, pixels. It runs at every size from 16 on."""
    stem_channels: int
    stem_kernel: int
    stem_stride: int
    stem_norm: bool
    """BN and ReLU after the stem's convolution."""
    stem_pool: bool
    """Max pooling (kernel 3, stride 2) at the end of the stem."""
    preactivation: bool
    squeeze: int
    """Ratio of the channels of a unit to its middle channels."""
    groups: int
    stages: tuple[StageSpec, ...]
    final_units: int
    """Units after the last stage, all ``final_channels`` wide; the first has the stride ``final_stride``."""
    final_channels: int
    final_stride: int
    outer_units: int
    trunk_units: int
    mask_units: int
    attention: str
    attention_learning: str
    added_reference: bool
    """Add to each interpolated map of a mask the features that set its size (the port ResCon follows)."""
    drop_path: float
    """Probability of dropping the branch of the last unit on the trunk path; linear in depth before it."""

    def __post_init__(self) -> None:
        """Check the values that a caller can get wrong; strings and widths come from tables."""
        for name, least in (("classes", 1), ("in_channels", 1), ("image_size", MINIMUM_IMAGE_SIZE)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                rule = f"must be a whole number of at least {least}"
                raise NetworkError(format_error(rule, got=repr(value), where=name))

    @property
    def trunk_path(self) -> int:
        """Number of residual units from stem to classifier, without masks."""
        in_stages = sum(
            stage.openings + stage.modules * (2 * self.outer_units + self.trunk_units)
            for stage in self.stages
        )
        return in_stages + self.final_units

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Drop probability of each unit along the trunk path (Huang et al. 2016, equation 4).

        It is linear in depth: ``drop_path`` x l / L for the l-th of L units. Masks are never dropped.
        """
        units = self.trunk_path
        return tuple(self.drop_path * index / units for index in range(1, units + 1))

    @property
    def depth(self) -> int:
        """Number of layers along the trunk, as in the networks' names: stem, three per unit, classifier."""
        return 2 + 3 * self.trunk_path

    @property
    def out_channels(self) -> int:
        """Number of channels that enter the classifier."""
        return self.final_channels if self.final_units else self.stages[-1].channels

    def unit(self, in_channels: int, channels: int, stride: int = 1) -> UnitSpec:
        """Return a residual unit of this network's kind.

        Args:
            in_channels: Channels of the map that enters the unit.
            channels: Channels of the map that leaves it.
            stride: Stride of its 3x3 convolution.
        """
        return UnitSpec(
            in_channels=in_channels,
            channels=channels,
            middle=channels // self.squeeze,
            stride=stride,
            groups=self.groups,
            preactivation=self.preactivation,
        )

    def chain(self, in_channels: int, channels: int, *, units: int, stride: int = 1) -> tuple[UnitSpec, ...]:
        """Return ``units`` residual units in sequence; the first changes the width and applies the stride.

        Args:
            in_channels: Channels of the map that enters the first unit.
            channels: Channels of the map that leaves each unit.
            units: Number of units; 0 returns an empty tuple.
            stride: Stride of the first unit.
        """
        first = self.unit(in_channels, channels, stride)
        return (first, *[self.unit(channels, channels)] * (units - 1)) if units else ()

    def plain(self, channels: int, *, units: int) -> tuple[UnitSpec, ...]:
        """Return ``units`` residual units in sequence that change neither width nor size."""
        return self.chain(channels, channels, units=units)

    def final_chain(self) -> tuple[UnitSpec, ...]:
        """Return the units after the last stage; the paper's CIFAR layout has no such units."""
        entering = self.stages[-1].channels
        return self.chain(entering, self.final_channels, units=self.final_units, stride=self.final_stride)

    def stage_inputs(self) -> tuple[int, ...]:
        """Return the number of channels that enter each stage."""
        return (self.stem_channels, *(stage.channels for stage in self.stages[:-1]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint or JSON; :meth:`from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Create the spec from the result of :meth:`to_dict`, also after a round trip through JSON.

        Raises:
            NetworkError: Fields are missing or unknown, because another version wrote them.
        """
        stages = tuple(StageSpec(**checked_fields(StageSpec, stage)) for stage in values.get("stages", ()))
        return cls(**{**checked_fields(cls, values), "stages": stages})


def checked_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored ``values`` of a dataclass.

    Raises:
        NetworkError: fields are missing or unknown.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    if known != set(values):
        wrong = [f"missing {name}" for name in sorted(known - set(values))]
        wrong += [f"unknown {name}" for name in sorted(set(values) - known)]
        rule = f"a stored {kind.__name__} must have exactly this version's fields"
        raise NetworkError(format_error(rule, got=", ".join(wrong)))
    return dict(values)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size of a network."""

    parameters: int
    """Number of learnt weights and biases."""
    macs: int
    """Multiply-adds of convolutions and linear layers for one image."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with parameters."""

    name: str
    kind: str
    """``conv`` (no bias), ``norm`` or ``linear`` (with bias)."""
    in_channels: int
    out_channels: int
    side: int
    """Side of its output map, pixels."""
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def parameters(self) -> int:
        """Number of parameters; a batch norm has a weight and a bias per channel."""
        if self.kind == "norm":
            return 2 * self.out_channels
        weights = self.out_channels * self.in_channels // self.groups * self.kernel**2
        return weights + (self.out_channels if self.kind == "linear" else 0)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image; a bias and a batch norm count as 0."""
        if self.kind == "norm":
            return 0
        return self.side**2 * self.out_channels * self.in_channels // self.groups * self.kernel**2


def count_params_and_macs(spec: NetworkSpec) -> Cost:
    """Return the exact number of parameters, and of multiply-adds at the spec's image size."""
    layers = list(iter_layers(spec))
    return Cost(parameters=sum(x.parameters for x in layers), macs=sum(x.macs for x in layers))


def minimum_image_size(spec: NetworkSpec) -> int:
    """Return the smallest side, at least 16 pixels, at which no mask pools a map of one pixel."""
    return next(size for size in itertools.count(MINIMUM_IMAGE_SIZE) if _pools_more_than_a_pixel(spec, size))


def _pools_more_than_a_pixel(spec: NetworkSpec, image_size: int) -> bool:
    table = zip(spec.stages, _map_sides(spec, image_size)[1:], strict=True)
    return all(before > 1 for stage, side in table for before in _mask_sides(side, stage.mask_poolings)[:-1])


def iter_layers(spec: NetworkSpec) -> Iterator[Layer]:
    """Yield every layer with parameters in forward order, for images of the spec's size."""
    side = _strided(spec.image_size, spec.stem_stride)
    yield _conv(
        "stem.conv",
        spec.in_channels,
        spec.stem_channels,
        side,
        kernel=spec.stem_kernel,
        stride=spec.stem_stride,
    )
    if spec.stem_norm:
        yield _norm("stem.norm", spec.stem_channels, side)
    sides = _map_sides(spec, spec.image_size)
    for index, (stage, entering) in enumerate(zip(spec.stages, spec.stage_inputs(), strict=True)):
        yield from _stage(spec, stage, f"stages.{index}", sides[index], entering=entering)
    yield from _chain("final", spec.final_chain(), sides[-1])
    if spec.preactivation:
        side = _strided(sides[-1], spec.final_stride)
        yield _norm("norm", spec.out_channels, side)
    yield Layer(
        name="classifier", kind="linear", in_channels=spec.out_channels, out_channels=spec.classes, side=1
    )


def _strided(side: int, stride: int) -> int:
    """Return the side after a stride. The size is rounded up, because every padding is half its kernel."""
    return -(-side // stride)


def _map_sides(spec: NetworkSpec, image_side: int) -> list[int]:
    """Return the side of the map that enters the first stage, then of the map that leaves each stage."""
    side = _strided(image_side, spec.stem_stride)
    sides = [_strided(side, 2) if spec.stem_pool else side]
    for stage in spec.stages:
        sides.append(_strided(sides[-1], stage.stride))
    return sides


def _mask_sides(side: int, poolings: int) -> list[int]:
    """Return the side of the map of a mask at full resolution and after each pooling.

    >>> _mask_sides(28, 2)
    [28, 14, 7]
    """
    return list(itertools.accumulate([2] * poolings, _strided, initial=side))


def _stage(spec: NetworkSpec, stage: StageSpec, path: str, side: int, *, entering: int) -> Iterator[Layer]:
    opening = spec.chain(entering, stage.channels, units=stage.openings, stride=stage.stride)
    yield from _chain(f"{path}.opening", opening, side)
    for index in range(stage.modules):
        yield from _attention(spec, stage, f"{path}.attention.{index}", _strided(side, stage.stride))


def _attention(spec: NetworkSpec, stage: StageSpec, path: str, side: int) -> Iterator[Layer]:
    outer = spec.plain(stage.channels, units=spec.outer_units)
    yield from _chain(f"{path}.pre", outer, side)
    yield from _chain(f"{path}.trunk", spec.plain(stage.channels, units=spec.trunk_units), side)
    yield from _mask(spec, stage, f"{path}.mask", side)
    yield from _chain(f"{path}.post", outer, side)


def _mask(spec: NetworkSpec, stage: StageSpec, path: str, side: int) -> Iterator[Layer]:
    level_units = spec.plain(stage.channels, units=spec.mask_units)
    sides = _mask_sides(side, stage.mask_poolings)
    levels = list(enumerate(sides[1:-1]))
    for index, level_side in levels:
        yield from _chain(f"{path}.down.{index}", level_units, level_side)
    yield from _chain(f"{path}.middle", spec.plain(stage.channels, units=stage.mask_middle), sides[-1])
    for index, level_side in reversed(levels):
        yield from _unit(f"{path}.skip.{index}", level_units[0], level_side)
        yield from _chain(f"{path}.up.{index}", level_units, level_side)
    yield from _head(f"{path}.head", stage.channels, side, preactivation=spec.preactivation)


def _head(path: str, channels: int, side: int, *, preactivation: bool) -> Iterator[Layer]:
    if preactivation:
        yield _norm(f"{path}.norm1", channels, side)
    yield _conv(f"{path}.conv1", channels, channels, side)
    yield _norm(f"{path}.norm2", channels, side)
    yield _conv(f"{path}.conv2", channels, channels, side)


def _chain(path: str, units: Iterable[UnitSpec], side: int) -> Iterator[Layer]:
    """Yield the layers of units in sequence; ``side`` is the side of the map that enters the first unit."""
    for index, unit in enumerate(units):
        yield from _unit(f"{path}.{index}", unit, side)
        side = _strided(side, unit.stride)


def _unit(path: str, unit: UnitSpec, side: int) -> Iterator[Layer]:
    """Yield the layers of a unit; the projection comes last.

    A norm comes before each convolution (pre-activation) or after it (ResNeXt).
    """
    middle, out_side = unit.middle, _strided(side, unit.stride)
    convs = (
        _conv(f"{path}.conv1", unit.in_channels, middle, side),
        _conv(f"{path}.conv2", middle, middle, out_side, kernel=3, stride=unit.stride, groups=unit.groups),
        _conv(f"{path}.conv3", middle, unit.channels, out_side),
    )
    entering = (side, side, out_side)
    for number, (conv, conv_side) in enumerate(zip(convs, entering, strict=True), start=1):
        norm = f"{path}.norm{number}"
        if unit.preactivation:
            yield _norm(norm, conv.in_channels, conv_side)
            yield conv
        else:
            yield conv
            yield _norm(norm, conv.out_channels, conv.side)
    if unit.projects:
        yield _conv(f"{path}.projection", unit.in_channels, unit.channels, out_side, stride=unit.stride)
        if not unit.preactivation:
            yield _norm(f"{path}.projection_norm", unit.channels, out_side)


def _conv(name: str, in_channels: int, out_channels: int, side: int, **kernel: int) -> Layer:
    """Return a convolution; ``kernel`` has further fields of :class:`Layer`."""
    channels = {"in_channels": in_channels, "out_channels": out_channels}
    return Layer(name=name, kind="conv", side=side, **channels, **kernel)


def _norm(name: str, channels: int, side: int) -> Layer:
    return Layer(name=name, kind="norm", in_channels=channels, out_channels=channels, side=side)
