"""One encoded picture -> one uint8 square of the cache. Pillow only: decoding processes start without torch.

Shape legend: B images of a run of rows, H = W side, C = 3 channels.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tune_rescon.data.folder import read_bytes
from tune_rescon.data.formats import FORMATS
from tune_rescon.errors import UserError

__all__ = [
    "BadImage",
    "BadImageError",
    "Block",
    "SizesDifferError",
    "decode_block",
    "decode_image",
    "probe_size",
]

ByteArray = npt.NDArray[np.uint8]

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)

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

_opening = threading.Lock()


class BadImageError(Exception):
    """The bytes are no image, or only part of one."""


class SizesDifferError(Exception):
    """Images taken for one size are not."""


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be decoded: its row in the cache, its name in the source, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """Decoded images; rows of bad ones are zero."""

    images_BHWC: ByteArray
    bad: tuple[BadImage, ...]


def decode_image(data: bytes, side: int) -> ByteArray:
    """Decode to RGB, upright, shorter side scaled to ``side``, centre-cropped to the square.

    Any Pillow mode; transparent parts come out white; 16-bit grey keeps its upper 8 bits; of an animation the
    first frame. Scaling is bilinear and antialiased, as on the device.

    Args:
        data: a file's bytes, in one of the formats of :mod:`tune_rescon.data.formats`.
        side: of the result, in pixels.

    Returns:
        uint8 array ``side x side x 3``.

    Raises:
        BadImageError: broken or cut short.
    """
    with _blaming_the_image():
        return _decode(data, side, None)


def probe_size(source: Path, name: str) -> tuple[int, int]:
    """Upright (width, height) in pixels of an image in a directory or .zip, without decoding where possible.

    Raises:
        BadImageError: unreadable, or no image.
    """
    with _blaming_the_image(), _opened(read_bytes(source, name)) as image:
        return _upright_size(image, _orientation(image))


def decode_block(
    source: Path, names: tuple[str, ...], *, first_row: int, side: int, size: tuple[int, int] | None
) -> Block:
    """Decode some images of a directory or .zip.

    Args:
        source: the directory or archive.
        names: paths inside it.
        first_row: row of the cache that the first of them gets.
        side: of the squares, in pixels.
        size: upright (width, height) that every image must have; None: any.

    Raises:
        SizesDifferError: an image's size is not ``size``.
        DataError: the source itself is gone.
    """
    images_BHWC = np.zeros((len(names), side, side, 3), dtype=np.uint8)
    bad: list[BadImage] = []
    with warnings.catch_warnings():
        # Cameras write odd EXIF data; Pillow's remarks on it would fill the terminal.
        warnings.filterwarnings("ignore", module="PIL")
        for position, name in enumerate(names):
            try:
                with _blaming_the_image():
                    images_BHWC[position] = _decode(read_bytes(source, name), side, size)
            except BadImageError as error:
                bad.append(BadImage(row=first_row + position, name=name, reason=str(error)))
    return Block(images_BHWC=images_BHWC, bad=tuple(bad))


@contextmanager
def _blaming_the_image() -> Iterator[None]:
    """Whatever the decoders raise means that the bytes are wrong.

    Pillow and zipfile document no list: among 40,000 damaged files were OSError, SyntaxError, ValueError,
    TypeError, struct.error, zlib.error and NotImplementedError.
    """
    try:
        yield
    except (SizesDifferError, UserError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        # Pillow's own words hold the address of an object.
        raise BadImageError(f"not an image in a format that is read ({', '.join(FORMATS)})") from error
    except Exception as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def _decode(data: bytes, side: int, size: tuple[int, int] | None) -> ByteArray:
    with _opened(data) as image:
        orientation = _orientation(image)
        found = _upright_size(image, orientation)
        if size is not None and found != size:
            raise SizesDifferError(f"{found} is not {size}")
        # libjpeg scales by 1/2, 1/4 or 1/8 while decoding: most of a large photograph is never decoded.
        image.draft(None, (2 * side, 2 * side))
        upright = image if orientation == 1 else image.transpose(_TRANSPOSED[orientation])
        return np.asarray(_square(_to_rgb(upright), side))


def _opened(data: bytes) -> Image.Image:
    """The image of these bytes, not decoded yet.

    Only the formats of :data:`FORMATS` are tried: for EPS, Pillow would start another program.

    Raises:
        ValueError: the machine's memory is too small for so many pixels.
    """
    # Pillow refuses 179 million pixels as an attack. The bound here is the machine's memory. Pillow reads its
    # own from a global, which is put back at once: this process may hold other users of Pillow.
    with _opening, warnings.catch_warnings():
        # Cameras write odd EXIF data, of which Pillow warns.
        warnings.filterwarnings("ignore", module="PIL")
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    width, height = image.size
    if width * height > most_pixels():
        image.close()
        raise ValueError(
            f"{width} x {height} pixels; this machine's memory allows {most_pixels() / 1e6:.0f} million"
        )
    return image


@lru_cache
def most_pixels() -> int:
    """Pixels of the largest picture that is decoded: a quarter of the machine's memory must hold them."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory // _MEMORY_PART // _BYTES_PER_PIXEL


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8. One that cannot be read counts as 1: the pixels are whole."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow documents no list of what odd EXIF raises
        return 1
    return found if isinstance(found, int) and found in _TRANSPOSED else 1


def _upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if orientation in _QUARTER_TURNS else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, "white")
        return Image.alpha_composite(white, pixels).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, side: int) -> Image.Image:
    if image.size == (side, side):
        return image
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)
