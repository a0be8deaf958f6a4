"""A network in numbers: what the builder builds, the plan counts and a checkpoint stores.

Nothing here knows torch. Every variant of the family (Wang et al., CVPR 2017, and what followed it) is a
:class:`NetworkSpec`; there is one network class, not one per row of a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.errors import NetworkError, explain

__all__ = ["MINIMUM_IMAGE_SIZE", "NetworkSpec", "StageSpec", "UnitSpec"]

#: The least side of an image any of these networks takes, pixels.
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
    """BN and ReLU before each convolution; else after it, as in ResNeXt."""

    @property
    def projects(self) -> bool:
        """Whether the shortcut needs a 1x1 convolution; elsewhere it is the input itself."""
        return self.stride != 1 or self.in_channels != self.channels


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """Opening units, of which the first changes width and stride, then attention modules."""

    channels: int
    stride: int
    openings: int
    modules: int
    mask_poolings: int
    """How often the mask branch halves its map; resolved once, never derived from the image at hand."""
    mask_middle: int
    """Units of the mask branch between its last pooling and its first interpolation."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A whole network, as plain numbers and words.

    The paper's hyperparameters p, t and r (section 3.3) are ``outer_units``, ``trunk_units`` and
    ``mask_units``: units before and after a module's branches, in its trunk, and at each level of its mask.

    Raises:
        NetworkError: no classes, no channels, or an image below :data:`MINIMUM_IMAGE_SIZE`.
    """

    layout: str
    """Where the numbers come from (a key of ``presets.LAYOUTS``); decides nothing here."""
    classes: int
    in_channels: int
    image_size: int
    """Side of the square the network is meant for, pixels. It runs at any size from 16 on, odd ones too."""
    stem_channels: int
    stem_kernel: int
    stem_stride: int
    stem_norm: bool
    """BN and ReLU after the stem's convolution."""
    stem_pool: bool
    """Max pool 3/2 at the stem's end."""
    preactivation: bool
    squeeze: int
    """A unit's channels over its middle channels."""
    groups: int
    stages: tuple[StageSpec, ...]
    final_units: int
    """Units after the last stage; the first has ``final_stride``, all ``final_channels``."""
    final_channels: int
    final_stride: int
    outer_units: int
    trunk_units: int
    mask_units: int
    attention: str
    attention_learning: str
    added_reference: bool
    """At each interpolation of a mask, add the features whose size it takes (the port ResCon follows)."""
    drop_path: float
    """Probability of dropping the branch of the trunk path's last unit; linear in depth before it."""

    def __post_init__(self) -> None:
        """Check what a caller can get wrong; words and widths come from tables."""
        for name, least in (("classes", 1), ("in_channels", 1), ("image_size", MINIMUM_IMAGE_SIZE)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                rule = f"must be a whole number of at least {least}"
                raise NetworkError(explain(rule, got=repr(value), where=name))

    @property
    def trunk_path(self) -> int:
        """Residual units from stem to classifier, masks left out."""
        in_stages = sum(
            stage.openings + stage.modules * (2 * self.outer_units + self.trunk_units)
            for stage in self.stages
        )
        return in_stages + self.final_units

    @property
    def depth(self) -> int:
        """Layers along the trunk, as in the networks' names: stem, three per unit, classifier."""
        return 2 + 3 * self.trunk_path

    @property
    def out_channels(self) -> int:
        """Width of the features the classifier sees."""
        return self.final_channels if self.final_units else self.stages[-1].channels

    def unit(self, in_channels: int, channels: int, stride: int = 1) -> UnitSpec:
        """A residual unit of this network's kind."""
        return UnitSpec(
            in_channels=in_channels,
            channels=channels,
            middle=channels // self.squeeze,
            stride=stride,
            groups=self.groups,
            preactivation=self.preactivation,
        )

    def chain(self, in_channels: int, channels: int, *, units: int, stride: int = 1) -> tuple[UnitSpec, ...]:
        """``units`` residual units in a row; the first takes the change of width and the stride."""
        first = self.unit(in_channels, channels, stride)
        return (first, *[self.unit(channels, channels)] * (units - 1)) if units else ()

    def plain(self, channels: int, *, units: int) -> tuple[UnitSpec, ...]:
        """``units`` residual units in a row that change neither width nor size."""
        return self.chain(channels, channels, units=units)

    def final_chain(self) -> tuple[UnitSpec, ...]:
        """The units after the last stage; none in the paper's CIFAR layout."""
        entering = self.stages[-1].channels
        return self.chain(entering, self.final_channels, units=self.final_units, stride=self.final_stride)

    def stage_inputs(self) -> tuple[int, ...]:
        """Channels that enter each stage."""
        return (self.stem_channels, *(stage.channels for stage in self.stages[:-1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or JSON; :meth:`from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Read what :meth:`to_dict` wrote, also after a trip through JSON.

        Raises:
            NetworkError: fields are missing or unknown: another version wrote them.
        """
        stages = tuple(StageSpec(**_exactly(StageSpec, stage)) for stage in values.get("stages", ()))
        return cls(**{**_exactly(cls, values), "stages": stages})


def _exactly(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)}
    if known != set(values):
        wrong = [f"missing {name}" for name in sorted(known - set(values))]
        wrong += [f"unknown {name}" for name in sorted(set(values) - known)]
        rule = f"a stored {kind.__name__} must have exactly this version's fields"
        raise NetworkError(explain(rule, got=", ".join(wrong)))
    return dict(values)
