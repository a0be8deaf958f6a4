"""One encoded picture -> one uint8 square of the cache. Pillow only: decoding processes start without torch.

Shape legend: B images of a run of rows, H = W side, C = 3 channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tune_rescon.data.folder import read_bytes
from tune_rescon.data.formats import FORMATS
from tune_rescon.data.levels import Levels, is_deep, levels_of, to_bytes
from tune_rescon.data.opening import open_picture, orientation_of, upright, upright_size, without_remarks
from tune_rescon.errors import UserError

__all__ = [
    "BadImage",
    "BadImageError",
    "Block",
    "SizesDifferError",
    "blaming_the_image",
    "decode_block",
    "decode_image",
    "probe_size",
    "square_of",
    "to_rgb",
    "to_square",
]

ByteArray = npt.NDArray[np.uint8]


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
    """Decoded images; rows of bad ones are zero.

    Attributes:
        deep: the range of values of each picture of more than 8 bits, by its row in the cache.
    """

    images_BHWC: ByteArray
    bad: tuple[BadImage, ...]
    deep: Mapping[int, Levels] = field(default_factory=dict)


def decode_image(data: bytes, side: int, *, resize: str = "crop", levels: Levels | None = None) -> ByteArray:
    """Decode to an upright RGB square.

    Any Pillow mode; transparent parts come out white; of an animation the first frame. Scaling is bilinear
    and antialiased, as on the device.

    Args:
        data: a file's bytes, in one of the formats of :mod:`tune_rescon.data.formats`.
        side: of the result, in pixels.
        resize: how a picture becomes a square: see :func:`to_square`.
        levels: the range of a picture of more than 8 bits: see :func:`tune_rescon.data.levels.to_bytes`.

    Returns:
        uint8 array ``side x side x 3``.

    Raises:
        BadImageError: broken or cut short.
    """
    with blaming_the_image():
        return _decode(data, _Form(side=side, size=None, resize=resize, levels=levels))[0]


def probe_size(source: Path, name: str) -> tuple[int, int]:
    """Upright (width, height) in pixels of an image in a directory or .zip, without decoding where possible.

    Raises:
        BadImageError: unreadable, or no image.
    """
    with blaming_the_image(), open_picture(read_bytes(source, name)) as image:
        return upright_size(image, orientation_of(image))


def decode_block(
    source: Path,
    names: tuple[str, ...],
    *,
    first_row: int,
    side: int,
    size: tuple[int, int] | None,
    resize: str = "crop",
    levels: Levels | None = None,
) -> Block:
    """Decode some images of a directory or .zip.

    Args:
        source: the directory or archive.
        names: paths inside it.
        first_row: row of the cache that the first of them gets.
        side: of the squares, in pixels.
        size: upright (width, height) that every image must have; None: any.
        resize: as of :func:`decode_image`.
        levels: likewise.

    Raises:
        SizesDifferError: an image's size is not ``size``.
        DataError: the source itself is gone.
    """
    form = _Form(side=side, size=size, resize=resize, levels=levels)
    images_BHWC = np.zeros((len(names), side, side, 3), dtype=np.uint8)
    bad: list[BadImage] = []
    deep: dict[int, Levels] = {}
    with without_remarks():
        for position, name in enumerate(names):
            row = first_row + position
            try:
                with blaming_the_image():
                    images_BHWC[position], found = _decode(read_bytes(source, name), form)
            except BadImageError as error:
                bad.append(BadImage(row=row, name=name, reason=str(error)))
            else:
                deep |= {row: found} if found else {}
    return Block(images_BHWC=images_BHWC, bad=tuple(bad), deep=deep)


def to_rgb(image: Image.Image, levels: Levels | None = None) -> Image.Image:
    """RGB of any Pillow mode; transparent parts come out white, deep pictures in grey by ``levels``."""
    if is_deep(image):
        return to_bytes(image, levels).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", pixels.size, "white")
        return Image.alpha_composite(white, pixels).convert("RGB")
    return image.convert("RGB")


def square_of(
    image: Image.Image, side: int, *, resize: str = "crop", levels: Levels | None = None
) -> Image.Image:
    """The upright RGB square of a picture that is open and not decoded yet; see :func:`decode_image`."""
    # libjpeg scales by 1/2, 1/4 or 1/8 while decoding: most of a large photograph is never decoded.
    image.draft(None, (2 * side, 2 * side))
    return to_square(to_rgb(upright(image, orientation_of(image)), levels), side, resize)


def to_square(image: Image.Image, side: int, resize: str) -> Image.Image:
    """Scale a picture to a square, bilinear and antialiased.

    Args:
        image: of any size.
        side: of the square, pixels.
        resize: ``crop``: the centre square of it; ``pad``: all of it, black beside it; ``squash``: all of it,
            its two sides scaled by themselves.
    """
    width, height = image.size
    if (width, height) == (side, side):
        return image
    if resize == "squash":
        return image.resize((side, side), Image.Resampling.BILINEAR)
    if resize == "pad":
        scale = side / max(width, height)
        scaled = (max(1, round(width * scale)), max(1, round(height * scale)))
        square = Image.new(image.mode, (side, side))
        corner = ((side - scaled[0]) // 2, (side - scaled[1]) // 2)
        square.paste(image.resize(scaled, Image.Resampling.BILINEAR), corner)
        return square
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


@contextmanager
def blaming_the_image() -> Iterator[None]:
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


@dataclass(frozen=True, kw_only=True)
class _Form:
    """What the pictures of a cache become: see :func:`decode_block`."""

    side: int
    size: tuple[int, int] | None
    resize: str
    levels: Levels | None


def _decode(data: bytes, form: _Form) -> tuple[ByteArray, Levels | None]:
    """The square, and the range of values of a deep picture."""
    with open_picture(data) as image:
        found = upright_size(image, orientation_of(image))
        if form.size is not None and found != form.size:
            raise SizesDifferError(f"{found} is not {form.size}")
        levels = levels_of(image) if is_deep(image) else None
        return np.asarray(square_of(image, form.side, resize=form.resize, levels=form.levels)), levels
