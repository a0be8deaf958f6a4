"""Pictures of more than 8 bits: 16-bit, 32-bit and float values scaled to bytes by one range of values.

A microscope's 12-bit values in 16-bit files, or heights in metres in a float TIFF, have no scale of their
own. A data set's scale is the range of its training pictures, and every picture that its networks see is
scaled by it. Colour pictures of 16 bits are not deep here: Pillow itself reads their upper 8 bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["Levels", "is_deep", "levels_of", "levels_words", "to_bytes", "widest"]

#: The least and the greatest value of some deep pictures.
Levels = tuple[float, float]

#: Pillow's modes with more than 8 bits a value.
_DEEP_MODES: Final = ("I", "F")

#: Where the training pictures have no range, for they are not deep: the whole of 16 bits, and of 0..1.
_WHOLE: Final[dict[str, Levels]] = {"I": (0.0, 65535.0), "F": (0.0, 1.0)}


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has one channel of more than 8 bits (Pillow's modes ``I``, ``I;16`` and ``F``)."""
    return image.mode.startswith(_DEEP_MODES)


def levels_of(image: Image.Image) -> Levels:
    """The least and the greatest finite value of a deep picture.

    Raises:
        ValueError: it has none.
    """
    values_HW = _values(image)
    finite = values_HW[np.isfinite(values_HW)]
    if not finite.size:
        raise ValueError("no finite value")
    return float(finite.min()), float(finite.max())


def widest(ranges: list[Levels]) -> Levels | None:
    """The range that holds all ranges; None of none."""
    if not ranges:
        return None
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def to_bytes(image: Image.Image, levels: Levels | None) -> Image.Image:
    """A deep picture in 8 bits of grey.

    Args:
        image: deep.
        levels: the values that become 0 and 255; values outside are clipped, infinite and missing ones become
            0 or 255 by their sign, NaN 0. None: 0 and 65535 for whole numbers, 0 and 1 for floats.
    """
    low, high = levels or _WHOLE[image.mode[0]]
    scale = 255 / (high - low) if high > low else 0.0
    values_HW = np.nan_to_num(_values(image), nan=low, posinf=high, neginf=low)
    scaled_HW = (values_HW.clip(low, high) - low) * scale
    return Image.fromarray(scaled_HW.round().astype(np.uint8))


def levels_words(levels: Levels) -> str:
    """A line for people.

    >>> levels_words((0.0, 4095.0))
    'pictures of more than 8 bits: values from 0 to 4095, the training pictures\' range, become 0 to 255'
    """
    low, high = (f"{value:g}" for value in levels)
    return (
        f"pictures of more than 8 bits: values from {low} to {high}, the training pictures' range, become"
        " 0 to 255"
    )


def _values(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.asarray(image).astype(np.float32)
