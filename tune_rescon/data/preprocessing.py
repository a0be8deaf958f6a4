"""What is done to a picture before a network sees it: one description, for training and for everything after.

Training makes it, the checkpoint keeps it, and validation, prediction, exports and timm's configuration read
it. Torch-free; :mod:`tune_rescon.data.pixels` carries the second half out on tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Preprocessing"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an encoded picture becomes the input of a network.

    1. Decode it upright, scale and cut it to a square of ``stored_side`` pixels as ``resize`` says, and round
       to bytes. Scaling is bilinear and antialiased (Pillow's ``BILINEAR``).
    2. Scale the square to ``image_size`` pixels, bilinear and antialiased, and round to bytes.
    3. Divide by 255, subtract ``mean`` and divide by ``std``, channel by channel.

    Attributes:
        stored_side: side of the squares that the cache keeps, pixels.
        image_size: side of the squares that the network sees, pixels.
        resize: ``crop``: the centre square of the picture; ``pad``: all of it, black beside it; ``squash``:
            all of it, its two sides scaled apart.
        levels: the values that become 0 and 255 in pictures of more than 8 bits; None: the whole range of
            their type. See :func:`tune_rescon.data.decode.to_bytes`.
        mean: of each channel, pixels in 0..1; zeros where images are not normalised.
        std: likewise, never 0; ones where images are not normalised.
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
    ) -> Preprocessing:
        """The preprocessing that follows from a dataset's statistics.

        Args:
            stored_side: side of the dataset's squares, pixels.
            image_size: side of the network's input, pixels.
            mean: of each channel over the training images, in 0..1.
            std: likewise; 0 for a channel that never varies, which is then only shifted.
            normalize: whether images are normalised at all.
            resize: how pictures become squares.
            levels: the values that become 0 and 255 in pictures of more than 8 bits.
        """
        channels = len(mean)
        return cls(
            stored_side=stored_side,
            image_size=image_size,
            resize=resize,
            levels=levels,
            mean=tuple(mean) if normalize else (0.0,) * channels,
            std=tuple(value or 1.0 for value in std) if normalize else (1.0,) * channels,
        )

    @property
    def channel_order(self) -> str:
        """``RGB``, or ``L`` for one channel of luminance."""
        return "L" if len(self.mean) == 1 else "RGB"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Back from :meth:`to_dict`, also by way of JSON."""
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name != "channel_order"
        }
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as exported files carry them."""
        return {**dataclasses.asdict(self), "channel_order": self.channel_order}
