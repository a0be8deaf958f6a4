"""One encoded picture -> one uint8 square of the cache. Pillow only: decoding processes start without torch.

Shape legend: B images of a run of rows, H = W side, C = 3 channels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tune_rescon.data.folder import read_bytes
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
        data: a jpeg, png or webp file's bytes.
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
    with _blaming_the_image(), Image.open(io.BytesIO(read_bytes(source, name))) as image:
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
        # Pillow names the stream by its address in memory.
        raise BadImageError("not an image in any format that is read") from error
    except Exception as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def _decode(data: bytes, side: int, size: tuple[int, int] | None) -> ByteArray:
    with Image.open(io.BytesIO(data)) as image:
        orientation = _orientation(image)
        found = _upright_size(image, orientation)
        if size is not None and found != size:
            raise SizesDifferError(f"{found} is not {size}")
        # libjpeg scales by 1/2, 1/4 or 1/8 while decoding: most of a large photograph is never decoded.
        image.draft(None, (2 * side, 2 * side))
        # `exif_transpose` copies even an upright image.
        upright = image if orientation == 1 else ImageOps.exif_transpose(image)
        return np.asarray(_square(_to_rgb(upright), side))


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


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
