"""Decode one encoded picture into one uint8 square of the cache.

Only Pillow and numpy are imported: decoding processes start without torch.

Pictures of more than 8 bits (a microscope's 12-bit values in 16-bit files, heights in metres in a float TIFF)
have no scale of their own. They are scaled to bytes by the range of the training pictures. Colour pictures of
16 bits are not deep here: Pillow itself reads their upper 8 bits.

Shape legend: B images of a run of rows, H = W side, C = 3 channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tune_rescon.data.formats import FORMATS
from tune_rescon.data.image_folder import read_bytes
from tune_rescon.data.opening import open_picture, orientation_of, upright, upright_size, without_remarks
from tune_rescon.errors import UserError

__all__ = [
    "USUAL_STORE_SIZE",
    "BadImage",
    "BadImageError",
    "Block",
    "Levels",
    "SizesDifferError",
    "blaming_the_image",
    "common_size",
    "decode_block",
    "decode_image",
    "is_deep",
    "levels_of",
    "levels_words",
    "probe_size",
    "square_of",
    "stored_size",
    "to_bytes",
    "to_rgb",
    "to_square",
    "widest",
]


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
    "pictures of more than 8 bits: values from 0 to 4095, the training pictures' range, become 0 to 255"
    """
    low, high = (f"{value:g}" for value in levels)
    return (
        f"pictures of more than 8 bits: values from {low} to {high}, the training pictures' range, become"
        " 0 to 255"
    )


def _values(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.asarray(image).astype(np.float32)


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
        levels: the range of a picture of more than 8 bits: see :func:`tune_rescon.data.decode.to_bytes`.

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


#: Side of the cache's squares, pixels, where a dataset gives no ``store_size``.
USUAL_STORE_SIZE: Final = 256

_PROBED = 32


def common_size(source: Path, names: Sequence[str]) -> tuple[int, int] | None:
    """(width, height) that images spread over the listing share; None if they differ or none can be read.

    A judgement from 32 headers: the decoder checks every image.
    """
    step = max(1, len(names) // _PROBED)
    sizes = set()
    with without_remarks():
        for name in names[::step]:
            try:
                sizes.add(probe_size(source, name))
            except BadImageError:
                continue
            if len(sizes) > 1:
                return None
    return sizes.pop() if sizes else None


def stored_size(
    common: tuple[int, int] | None, store_size: int | None, resize: str = "crop"
) -> tuple[int, tuple[int, int] | None]:
    """Side of the cache's squares, and the size every image must then have (None: any).

    Images all of one smaller size are kept at it: enlarging them would add nothing.

    Args:
        common: width and height of all images, pixels; None: they differ.
        store_size: the largest side, pixels; None: :data:`USUAL_STORE_SIZE`.
        resize: how pictures become squares: a ``pad`` keeps the longer side, the others the shorter.

    >>> stored_size((48, 32), None), stored_size((48, 32), None, "pad")
    ((32, (48, 32)), (48, (48, 32)))
    >>> stored_size((1920, 1080), None), stored_size(None, None), stored_size((32, 32), 64)
    ((256, None), (256, None), (32, (32, 32)))
    """
    side = USUAL_STORE_SIZE if store_size is None else store_size
    if common is None:
        return side, None
    native = max(common) if resize == "pad" else min(common)
    return (native, common) if native <= side else (side, None)
