"""Open an encoded picture: the supported formats, the largest size, and the orientation.

The cache, ``predict`` and the drawings of masks all open a user's pictures with this module.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from PIL import Image

from tune_rescon.data.selection import as_text

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ends_in_zeros",
    "is_image_name",
    "most_pixels",
    "open_picture",
    "orientation_of",
    "upright",
    "upright_size",
    "without_remarks",
    "zero_end_message",
]

#: Pillow's name of each supported format, and the suffixes of its files in lower case. Other formats are
#: never tried. Pillow can open more, but for one of them (EPS) it starts another program. It reads MPO files
#: of phones, which end in .jpg, as JPEG.
FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}

#: Every suffix, in the order of the formats.
SUFFIXES: Final = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

_EXIF_ORIENTATION: Final = 0x0112
_QUARTER_TURNS: Final = (5, 6, 7, 8)

#: The transformation that makes a picture upright, by its EXIF orientation; 1 is upright.
_TRANSPOSED: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Pillow needs up to this many bytes per pixel while it decodes and converts a picture.
_BYTES_PER_PIXEL: Final = 16
#: One picture may need at most 1 / ``_MEMORY_PART`` of the machine's memory.
_MEMORY_PART: Final = 4

_FORMATS: Final = tuple(FORMATS)

#: First bytes of the formats whose files never end with a zero: JPEG and PNG.
_NO_ZEROS_AT_THE_END: Final = (b"\xff\xd8\xff", b"\x89PNG")

#: Compressed pixels do not end in these zeros.
_ZEROS: Final = bytes(64)

#: Where the missing part of a copy begins: the system writes a file page by page.
_PAGE: Final = 4096

_opening = threading.Lock()


def is_image_name(name: str) -> bool:
    """Return whether the name of a file has the suffix of an image. The content is not checked.

    >>> is_image_name("photos/cat.JPG"), is_image_name("notes.txt")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)


def open_picture(data: bytes) -> Image.Image:
    """Open the picture in these bytes without decoding it.

    Only the formats of :data:`FORMATS` are tried, because Pillow starts another
    program for EPS.

    Raises:
        UnidentifiedImageError: The bytes are in none of these formats.
        ValueError: The machine's memory is too small for the number of pixels, or the end of the
            compressed pixels is missing.
        Exception: Any other exception, because Pillow does not document which exceptions damaged bytes raise.
    """
    # A copy that was interrupted may have zeros in place of its missing end. Pillow decodes them as pixels.
    if data.startswith(_NO_ZEROS_AT_THE_END):
        data = data.rstrip(b"\0")
    elif data.endswith(_ZEROS) and _compressed_pixels(data).endswith(_ZEROS):
        raise ValueError("zeros in place of its end, as after an interrupted copy")
    # Pillow rejects 179 million pixels as an attack. Here the machine's memory is the bound. Pillow reads its
    # bound from a global variable. This function restores it at once, because other code in this process may
    # use Pillow.
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


def _compressed_pixels(data: bytes) -> bytes:
    """Return the compressed pixels of a WEBP (of its first frame); nothing of another format.

    Other parts of the file, such as EXIF data, may end in zeros.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return b""
    start = 12
    while start < len(data):
        kind, size = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            return data[start : start + size]
        start += size + size % 2
    return b""


def ends_in_zeros(data: bytes) -> bool:
    """Return whether a file ends in zeros that begin with a page, as after an interrupted copy.

    In a picture that is not compressed (BMP, PPM, most TIFF), zeros may be black pixels. One in 4096 whole
    pictures that are black at the end of their file looks the same. An AVIF may end in the zeros of EXIF
    data. The zeros after a JPEG or PNG do not count, because :func:`open_picture` leaves them out.
    """
    if data.startswith(_NO_ZEROS_AT_THE_END) or not data.endswith(_ZEROS):
        return False
    return len(data.rstrip(b"\0")) % _PAGE == 0


def zero_end_message(names: Sequence[str]) -> str | None:
    """Return a line of text for the user about the pictures for which :func:`ends_in_zeros` is True.

    >>> (zero_end_message(["a/1.bmp"]) or "").partition(":")[0]
    'the file of 1 picture ends in zeros, as after an interrupted copy (a/1.bmp)'
    """
    if not names:
        return None
    files = "the file of 1 picture ends" if len(names) == 1 else f"the files of {len(names)} pictures end"
    return (
        f"{files} in zeros, as after an interrupted copy ({as_text(names[0])}): look whether a part is"
        " missing there, or only black"
    )


@contextmanager
def without_remarks() -> Iterator[None]:
    """Suppress Pillow's warnings about odd EXIF data, which cameras write.

    Enter this context once for many pictures and in one thread only, because Python's warning filters are
    global to the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@lru_cache
def most_pixels() -> int:
    """Return the maximum number of pixels of a picture; they must fit in a quarter of the memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory // _MEMORY_PART // _BYTES_PER_PIXEL


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8.

    An orientation that cannot be read counts as 1, because the pixels are intact.
    """
    if image.format == "TIFF":
        return 1  # Pillow rotates these itself
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow does not document which exceptions odd EXIF data raise
        return 1
    return found if isinstance(found, int) and found in _TRANSPOSED else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the picture as it is displayed, according to its EXIF orientation."""
    return image if orientation == 1 else image.transpose(_TRANSPOSED[orientation])


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Return the (width, height), pixels, of the picture as it is displayed, without decoding it."""
    width, height = image.size
    return (height, width) if orientation in _QUARTER_TURNS else (width, height)
