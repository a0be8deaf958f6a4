"""Decode one encoded picture into one uint8 square of the cache.

This module imports only Pillow and numpy, so that decoding processes start without torch.

Pictures of more than 8 bits ("deep" pictures: a microscope's 12-bit values in 16-bit files, heights in metres
in a float TIFF) do not define their scale. They are scaled to bytes by the range of the training pictures.
Colour pictures of 16 bits do not count as deep, because Pillow itself reads only their upper 8 bits.

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
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from tune_rescon.data.image_folder import read_bytes
from tune_rescon.data.opening import (
    FORMATS,
    ends_in_zeros,
    open_picture,
    orientation_of,
    upright,
    upright_size,
    without_remarks,
)
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
    "darkness_message",
    "decode_block",
    "decode_image",
    "is_deep",
    "levels_of",
    "levels_text",
    "probe_size",
    "square_of",
    "stored_size",
    "to_bytes",
    "to_rgb",
    "to_square",
    "widest",
]


#: The smallest and the largest value of some deep pictures.
Levels = tuple[float, float]

#: Pillow's modes with more than 8 bits per value.
_DEEP_MODES: Final = ("I", "F")

#: The range if the training pictures are not deep and so have no range: all of 16 bits, or 0..1.
_FULL_RANGE: Final[dict[str, Levels]] = {"I": (0.0, 65535.0), "F": (0.0, 1.0)}

_WHITE_IS_ZERO: Final = 0


def is_deep(image: Image.Image) -> bool:
    """Return whether a picture has one channel of more than 8 bits (modes ``I``, ``I;16`` and ``F``)."""
    return image.mode.startswith(_DEEP_MODES)


def levels_of(image: Image.Image) -> Levels:
    """Return the smallest and the largest finite value of a deep picture.

    Raises:
        ValueError: The picture has no finite value.
    """
    values_HW = _values(image)
    finite = values_HW[np.isfinite(values_HW)]
    if not finite.size:
        raise ValueError("no finite value")
    return float(finite.min()), float(finite.max())


def widest(ranges: list[Levels]) -> Levels | None:
    """Return the range that contains all ``ranges``, or None if ``ranges`` is empty."""
    if not ranges:
        return None
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def to_bytes(image: Image.Image, levels: Levels | None) -> Image.Image:
    """Convert a deep picture to 8-bit grey.

    Args:
        image: A deep picture.
        levels: The values that become 0 and 255. Values outside are clipped; infinite values become 0 or 255
            by their sign, and NaN becomes 0. None: 0 and 65535 for integers, 0 and 1 for floats.
    """
    low, high = levels or _FULL_RANGE[image.mode[0]]
    scale = 255 / (high - low) if high > low else 0.0
    values_HW = np.nan_to_num(_values(image), nan=low, posinf=high, neginf=low)
    scaled_HW = (values_HW.clip(low, high) - low) * scale
    return Image.fromarray(scaled_HW.round().astype(np.uint8))


def levels_text(levels: Levels) -> str:
    """Return a line of text for the user.

    >>> levels_text((0.0, 4095.0))
    "pictures of more than 8 bits: values from 0 to 4095, the training pictures' range, become 0 to 255"
    """
    low, high = (f"{value:g}" for value in levels)
    return (
        f"pictures of more than 8 bits: values from {low} to {high}, the training pictures' range, become"
        " 0 to 255"
    )


#: Pictures are nearly black if hardly a value of theirs is above this share of white.
_NEARLY_BLACK: Final = 0.1


def darkness_message(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """Return a line of text for the user if pictures are nearly black, as bytes; None otherwise.

    ``mean`` and ``std`` are those of each channel over the training pictures, in 0..1.
    """
    brightest = max(center + 3 * spread for center, spread in zip(mean, std, strict=True))
    if brightest >= _NEARLY_BLACK:
        return None
    return (
        f"the training pictures are nearly black: hardly a value is above {255 * brightest:.0f} of 255. Of"
        " colour pictures of 16 bits a channel only the upper 8 bits count, and one bright pixel widens the"
        " range by which other pictures of more than 8 bits are scaled"
    )


def _values(image: Image.Image) -> npt.NDArray[np.float32]:
    """Return the values of a deep picture, larger ones for brighter pixels."""
    values_HW = np.asarray(image).astype(np.float32)
    # Pillow itself inverts such a TIFF only if it has at most 8 bits.
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        white = _FULL_RANGE[image.mode[0]][1]
        return white - values_HW
    return values_HW


ByteArray = npt.NDArray[np.uint8]


class BadImageError(Exception):
    """Raised if the bytes are not an image, or only part of one."""


class SizesDifferError(Exception):
    """Raised if images that were assumed to have one size differ in size."""


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be decoded: its row in the cache, its name in the source, and why."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Block:
    """Decoded images; the rows of bad images are zero.

    Attributes:
        deep: The range of values of each picture of more than 8 bits, by its row in the cache.
        zero_ends: Rows of the pictures whose file ends as after an interrupted copy.
    """

    images_BHWC: ByteArray
    bad: tuple[BadImage, ...]
    deep: Mapping[int, Levels] = field(default_factory=dict)
    zero_ends: tuple[int, ...] = ()


def decode_image(data: bytes, side: int, *, resize: str = "crop", levels: Levels | None = None) -> ByteArray:
    """Decode a picture to an upright RGB square.

    All Pillow modes are accepted. Transparent parts become white. Only the first frame of an animation is
    decoded. Scaling is bilinear and antialiased, as on the device.

    Args:
        data: Bytes of a file in one of the formats of :mod:`tune_rescon.data.opening`.
        side: Side of the square, pixels.
        resize: How a picture becomes a square; see :func:`to_square`.
        levels: Range of a picture of more than 8 bits; see :func:`tune_rescon.data.decode.to_bytes`.

    Returns:
        uint8 array ``side x side x 3``.

    Raises:
        BadImageError: The picture is broken or truncated.
    """
    with blaming_the_image():
        return _decode(data, _Form(side=side, size=None, resize=resize, levels=levels))[0]


def probe_size(source: Path, name: str) -> tuple[int, int]:
    """Return the upright (width, height), pixels, of an image in a directory or .zip.

    The image is not decoded where possible.

    Raises:
        BadImageError: The file is not an image.
        DataError: The system cannot read the file.
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
        source: The directory or archive.
        names: Paths of the images inside the source.
        first_row: Row of the cache for the first image.
        side: Side of the squares, pixels.
        size: Upright (width, height) that every image must have; None: any size.
        resize: See :func:`decode_image`.
        levels: See :func:`decode_image`.

    Raises:
        SizesDifferError: The size of an image is not ``size``.
        DataError: The system cannot read the source or a file of it.
    """
    form = _Form(side=side, size=size, resize=resize, levels=levels)
    images_BHWC = np.zeros((len(names), side, side, 3), dtype=np.uint8)
    bad: list[BadImage] = []
    deep: dict[int, Levels] = {}
    zero_ends: list[int] = []
    with without_remarks():
        for position, name in enumerate(names):
            row = first_row + position
            try:
                with blaming_the_image():
                    data = read_bytes(source, name)
                    images_BHWC[position], found = _decode(data, form)
            except BadImageError as error:
                bad.append(BadImage(row=row, name=name, reason=str(error)))
            else:
                deep |= {row: found} if found else {}
                zero_ends += [row] if ends_in_zeros(data) else []
    return Block(images_BHWC=images_BHWC, bad=tuple(bad), deep=deep, zero_ends=tuple(zero_ends))


def to_rgb(image: Image.Image, levels: Levels | None = None) -> Image.Image:
    """Convert a picture of any Pillow mode to RGB.

    Transparent parts become white. A BMP that is transparent everywhere is opaque, because many programs
    leave its alpha at 0, and viewers then ignore it. Deep pictures become grey, scaled by ``levels``. A
    picture that is RGB already is decoded and returned itself, not a copy.
    """
    if is_deep(image):
        return to_bytes(image, levels).convert("RGB")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        if image.format == "BMP" and pixels.getchannel("A").getextrema() == (0, 0):
            return pixels.convert("RGB")
        white = Image.new("RGBA", pixels.size, "white")
        return Image.alpha_composite(white, pixels).convert("RGB")
    image.load()
    # Pillow copies a picture that is converted to its own mode.
    return image if image.mode == "RGB" else image.convert("RGB")


def square_of(
    image: Image.Image, side: int, *, resize: str = "crop", levels: Levels | None = None
) -> Image.Image:
    """Return the upright RGB square of a picture that is open but not decoded yet.

    Args:
        image: The open picture.
        side: Side of the square, pixels.
        resize: See :func:`decode_image`.
        levels: See :func:`decode_image`.
    """
    # libjpeg scales by 1/2, 1/4 or 1/8 while it decodes, so most of a large photograph is never decoded. A
    # picture that 1/2 would make smaller than requested is not scaled.
    if min(image.size) >= 4 * side:
        image.draft(None, (2 * side, 2 * side))
    return to_square(to_rgb(upright(image, orientation_of(image)), levels), side, resize)


def to_square(image: Image.Image, side: int, resize: str) -> Image.Image:
    """Scale a picture to a square, bilinear and antialiased.

    Args:
        image: A picture of any size.
        side: Side of the square, pixels.
        resize: ``crop`` keeps the centre square of the picture. ``pad`` keeps the whole picture and adds
            black bars. ``squash`` keeps the whole picture and scales its two sides independently.
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
    """Raise :class:`BadImageError` for any exception of the decoders, which means that the bytes are wrong.

    SizesDifferError, UserError and MemoryError are raised unchanged. Pillow and zipfile do not document which
    exceptions damaged bytes raise: 40,000 damaged files raised OSError, SyntaxError, ValueError, TypeError,
    struct.error, zlib.error and NotImplementedError.
    """
    try:
        yield
    except (SizesDifferError, UserError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        # Pillow's message contains the address of an object.
        raise BadImageError(
            f"not an image in a format that is read ({', '.join(FORMATS)}), or of a kind that Pillow does not"
            " read, such as floats of 64 bits"
        ) from error
    except Exception as error:
        raise BadImageError(str(error) or type(error).__name__) from error


@dataclass(frozen=True, kw_only=True)
class _Form:
    """The form to which all pictures of a cache are decoded; see :func:`decode_block`."""

    side: int
    size: tuple[int, int] | None
    resize: str
    levels: Levels | None


def _decode(data: bytes, form: _Form) -> tuple[ByteArray, Levels | None]:
    """Return the square, and the range of values of a deep picture."""
    with open_picture(data) as image:
        found = upright_size(image, orientation_of(image))
        if form.size is not None and found != form.size:
            raise SizesDifferError(f"{found} is not {form.size}")
        levels = levels_of(image) if is_deep(image) else None
        return np.asarray(square_of(image, form.side, resize=form.resize, levels=form.levels)), levels


#: Side of the squares in the cache, pixels, if a dataset has no ``store_size``.
USUAL_STORE_SIZE: Final = 256

_PROBED = 32


def common_size(source: Path, names: Sequence[str]) -> tuple[int, int] | None:
    """Return the common (width, height), pixels, of images spread over the listing.

    Return None if the sizes differ or no image can be read. Only about 32 headers are read, so the result is
    an assumption; the decoder checks every image.
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
    """Return the side of the squares in the cache, and the size that every image must then have (None: any).

    If all images have one smaller size, the squares keep it, because enlarging them adds no information.

    Args:
        common: Width and height of all images, pixels; None: the sizes differ.
        store_size: The largest side, pixels; None: :data:`USUAL_STORE_SIZE`.
        resize: How pictures become squares: ``pad`` keeps the longer side, the others keep the shorter side.

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
