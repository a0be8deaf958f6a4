"""The preprocessing of a picture for a network: one description for training and all later uses.

Training creates the description, and the checkpoint stores it. Validation, prediction, exports and timm's
configuration read it. This module does not import torch; :mod:`tune_rescon.data.pixels` performs the second
half of the preprocessing on tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Preprocessing"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The steps that turn an encoded picture into the input of a network.

    1. Decode it upright, scale and crop it to a square of ``stored_side`` pixels by the method ``resize``,
       and round to bytes. Scaling is bilinear and antialiased (Pillow's ``BILINEAR``).
    2. Scale the square to ``image_size`` pixels by ``interpolation``, antialiased, and round to bytes.
    3. Divide by 255, subtract ``mean`` and divide by ``std``, channel by channel.

    Attributes:
        stored_side: Side of the squares in the cache, pixels.
        image_size: Side of the network's input, pixels.
        resize: ``crop`` keeps the centre square of the picture. ``pad`` keeps the whole picture and adds
            black bars. ``squash`` keeps the whole picture and scales its two sides independently.
        levels: Values that become 0 and 255 in pictures of more than 8 bits; None: the whole range of their
            type. See :func:`tune_rescon.data.decode.to_bytes`.
        interpolation: ``bilinear``, or ``bicubic`` if pretrained weights were trained so.
        mean: Mean of each channel for pixels in 0..1; zeros if images are not normalised.
        std: Standard deviation of each channel for pixels in 0..1, never 0; ones if images are not
            normalised.
    """

    stored_side: int
    image_size: int
    resize: str = "crop"
    levels: tuple[float, float] | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(
        cls,
        *,
        stored_side: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        normalize: bool,
        resize: str = "crop",
        levels: tuple[float, float] | None = None,
        interpolation: str = "bilinear",
    ) -> Preprocessing:
        """Create the preprocessing from a dataset's statistics.

        Args:
            stored_side: Side of the dataset's squares, pixels.
            image_size: Side of the network's input, pixels.
            mean: Mean of each channel over the training images, in 0..1.
            std: Standard deviation of each channel over the training images, in 0..1. A constant channel has
                0 and is only shifted.
            normalize: True if images are normalised.
            resize: The method by which pictures become squares.
            levels: Values that become 0 and 255 in pictures of more than 8 bits.
            interpolation: ``bilinear`` or ``bicubic``.
        """
        channels = len(mean)
        return cls(
            stored_side=stored_side,
            image_size=image_size,
            resize=resize,
            levels=levels,
            interpolation=interpolation,
            mean=tuple(mean) if normalize else (0.0,) * channels,
            std=tuple(value or 1.0 for value in std) if normalize else (1.0,) * channels,
        )

    @property
    def channel_order(self) -> str:
        """``RGB``, or ``L`` for one channel of luminance."""
        return "L" if len(self.mean) == 1 else "RGB"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Create the preprocessing from the result of :meth:`to_dict`, also after a trip through JSON."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name != "channel_order"
        }
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are stored in exported files."""
        return {**dataclasses.asdict(self), "channel_order": self.channel_order}
