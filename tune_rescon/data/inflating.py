"""Inflating a zip's member by bzip2 or LZMA, to no more than the size that it declares.

zipfile inflates whole pieces by these methods, and four kilobytes of bzip2 may hold gigabytes. By deflate it
inflates no more than it is asked for.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Final

__all__ = ["inflated"]

_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")

#: LZMA: the version and the length of the properties, then the properties themselves.
_LZMA_HEADER: Final = struct.Struct("<2xH")
_HAS_END_MARK: Final = 0x2
_UNKNOWN_SIZE: Final = 0xFFFF_FFFF_FFFF_FFFF


def inflated(path: Path, info: zipfile.ZipInfo, *, memory: int) -> bytes:
    """The bytes of a member.

    Args:
        path: the zip's.
        info: the member's entry.
        memory: bytes that the decoder may take beside them.

    Raises:
        BadZipFile: the member is damaged, or is not of the size that it declares.
    """
    packed = _packed(path, info)
    if info.compress_type == zipfile.ZIP_BZIP2:
        import bz2  # a Python may be built without

        data = bz2.BZ2Decompressor().decompress(packed, info.file_size + 1)
    else:
        data = _lzma(packed, info, memory)
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"{info.filename} is not of the size and CRC-32 that its entry declares")
    return data


def _lzma(packed: bytes, info: zipfile.ZipInfo, memory: int) -> bytes:
    import lzma  # a Python may be built without

    (length,) = _LZMA_HEADER.unpack_from(packed)
    start = _LZMA_HEADER.size + length
    size = _UNKNOWN_SIZE if info.flag_bits & _HAS_END_MARK else info.file_size
    # The same stream with the header of an .lzma file, for which lzma has a public decoder.
    alone = packed[_LZMA_HEADER.size : start] + struct.pack("<Q", size)
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=memory)
    return decoder.decompress(alone + packed[start:], info.file_size + 1)


def _packed(path: Path, info: zipfile.ZipInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise zipfile.BadZipFile(f"{info.filename} has no local header")
        _, name, extra = _LOCAL_HEADER.unpack(header)
        file.seek(name + extra, 1)
        return file.read(info.compress_size)
