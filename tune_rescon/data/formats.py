"""The image formats that are read, by Pillow's name, and the file names that announce them.

Only these are ever tried: Pillow can open more, and for one of them (EPS) it starts another program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["FORMATS", "SUFFIXES", "is_image_name"]

#: Pillow's name of each format, and the suffixes of its files in lower case. Pillow reads the MPO files of
#: telephones, which end in .jpg, as JPEG.
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
    """Whether a file's name announces an image; its content is another matter.

    >>> is_image_name("photos/cat.JPG"), is_image_name("notes.txt")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)
