"""Opening an encoded picture: which formats are tried, how large it may be, and which way up it is.

Everything that reads a person's picture opens it here: the cache, ``predict`` and the drawings of masks.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from PIL import Image

from tune_rescon.data.formats import FORMATS

__all__ = ["most_pixels", "open_picture", "orientation_of", "upright", "upright_size", "without_remarks"]

_EXIF_ORIENTATION: Final = 0x0112
_QUARTER_TURNS: Final = (5, 6, 7, 8)

#: What makes a picture upright, by its EXIF orientation; 1 is upright.
_TRANSPOSED: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Pillow needs up to this many bytes a pixel while it decodes and converts a picture.
_BYTES_PER_PIXEL: Final = 16
#: One picture may need one part in so many of the machine's memory.
_MEMORY_PART: Final = 4

_FORMATS: Final = tuple(FORMATS)

_opening = threading.Lock()


def open_picture(data: bytes) -> Image.Image:
    """The picture of these bytes, not decoded yet.

    Only the formats of :data:`~tune_rescon.data.formats.FORMATS` are tried: for EPS, Pillow would start
    another program.

    Raises:
        UnidentifiedImageError: the bytes are in none of these formats.
        ValueError: the machine's memory is too small for so many pixels.
        Exception: Pillow documents no list of what damaged bytes raise.
    """
    # Pillow refuses 179 million pixels as an attack. The bound here is the machine's memory. Pillow reads its
    # own from a global, which is put back at once: this process may hold other users of Pillow.
    with _opening:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    width, height = image.size
    if width * height > most_pixels():
        image.close()
        raise ValueError(
            f"{width} x {height} pixels; this machine's memory allows {most_pixels() / 1e6:.0f} million"
        )
    return image


@contextmanager
def without_remarks() -> Iterator[None]:
    """Keep Pillow's warnings of odd EXIF data, which cameras write, from the terminal.

    Around many pictures, and in one thread: Python's filters are the process's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@lru_cache
def most_pixels() -> int:
    """Pixels of the largest picture that is decoded: a quarter of the machine's memory must hold them."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory // _MEMORY_PART // _BYTES_PER_PIXEL


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8. One that cannot be read counts as 1: the pixels are whole."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow documents no list of what odd EXIF raises
        return 1
    return found if isinstance(found, int) and found in _TRANSPOSED else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it is shown, by its EXIF orientation."""
    return image if orientation == 1 else image.transpose(_TRANSPOSED[orientation])


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(width, height) in pixels of the picture as it is shown, without decoding it."""
    width, height = image.size
    return (height, width) if orientation in _QUARTER_TURNS else (width, height)
