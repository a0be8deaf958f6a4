"""The supported image formats by Pillow's name, and the suffixes of their files.

Other formats are never tried. Pillow can open more, but for one of them (EPS) it starts another program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["FORMATS", "SUFFIXES", "is_image_name"]

#: Pillow's name of each format, and the suffixes of its files in lower case. Pillow reads MPO files of
#: phones, which end in .jpg, as JPEG.
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


def is_image_name(name: str) -> bool:
    """Return whether the name of a file has the suffix of an image. The content is not checked.

    >>> is_image_name("photos/cat.JPG"), is_image_name("notes.txt")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)
