"""Read a .zip of images: normalise the names of its entries and limit the size of each member.

Many tools write zips. Names may begin with ``./`` or ``/`` or contain backslashes, an entry may occur twice,
and a small member may inflate to gigabytes.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

from tune_rescon.data.image_tree import readable
from tune_rescon.data.selection import Kind, Tally, as_pattern, set_option
from tune_rescon.errors import DataError, format_error

__all__ = ["Archive", "directory_bytes", "inflated", "largest_member", "open_zip", "refuse_unreadable"]


_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")

#: Start of an LZMA member: the version and the length of the properties. The properties follow.
_LZMA_HEADER: Final = struct.Struct("<2xH")
_HAS_END_MARK: Final = 0x2
_UNKNOWN_SIZE: Final = 0xFFFF_FFFF_FFFF_FFFF


def inflated(path: Path, info: zipfile.ZipInfo, *, memory: int) -> bytes:
    """Return the bytes of a member that is compressed by bzip2 or LZMA.

    Args:
        path: Path of the zip.
        info: Entry of the member.
        memory: Bytes that the decoder may use in addition to the result.

    Raises:
        BadZipFile: The member is damaged, or does not have the size that its entry declares.
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
    # The lzma module has a public decoder for .lzma files. Their stream is the same, with another header.
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


_ENCRYPTED: Final = 0x1 | 0x40
_UTF8_NAME: Final = 0x800
_PATCHED: Final = 0x20
_AES: Final = 99
_UNIX: Final = 3

#: Supported methods, and the module that each needs, because a Python may be built without one. Zstandard is
#: not supported: of the Python versions that this package supports, only the newest contain it.
_MODULES: Final = {
    zipfile.ZIP_STORED: "",
    zipfile.ZIP_DEFLATED: "zlib",
    zipfile.ZIP_BZIP2: "_bz2",
    zipfile.ZIP_LZMA: "_lzma",
}

#: Names of methods as in APPNOTE.TXT.
_METHODS: Final = {
    1: "shrink",
    6: "implode",
    9: "deflate64",
    12: "bzip2",
    14: "lzma",
    20: "zstd",
    93: "zstd",
    94: "mp3",
    95: "xz",
    96: "jpeg",
    97: "wavpack",
    98: "ppmd",
}

#: Share of the memory for all members that are read at once. Each core decodes one image, so the bound for
#: one member is this share divided by the number of cores.
_MEMORY_SHARE: Final = 1 / 8
_LEAST_BOUND: Final = 128 << 20

#: A member of more than ``_SUSPECT`` bytes must not be compressed more than this many times. The files of
#: pictures are compressed themselves, or are not blank; deflate reaches 1,000 on zeros.
_LARGEST_RATIO: Final = 100
_SUSPECT: Final = 64 << 20

#: Bytes that are inflated at a time.
_PIECE: Final = 1 << 20


class Archive:
    """A zip that is open for reading. Threads can share it."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its directory."""
        self.path = path
        self._zip = zipfile.ZipFile(path)

    @cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """The entries by their paths; of entries with the same path the last counts, as in other zip tools.

        Raises:
            DataError: A path leads out of the archive.
        """
        return {_plain(_name(info), self.path): info for info in self._zip.infolist()}

    @property
    def directory_start(self) -> int:
        """Position in the file at which the directory of entries begins."""
        return self._zip.start_dir

    def entries(self, tally: Tally) -> Iterator[str]:
        """Yield the paths of files and folders; add links and repeated entries to ``tally``."""
        if len(self.members) < len(self._zip.infolist()):
            counts = Counter(_plain(_name(info), self.path) for info in self._zip.infolist())
            repeated = (path for path, count in counts.items() if count > 1 and not path.endswith("/"))
            tally.add(Kind.REPEATED, *repeated)
        for path, info in self.members.items():
            if _is_link(info):
                tally.add(Kind.ZIP_LINK, path)
            elif path.strip("/"):
                yield path

    def read(self, path: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            ValueError: The declared size is larger than this machine's memory allows, or than a picture's.
            BadZipFile: The member is damaged, or does not inflate to its declared size.
        """
        info = self.members[path]
        bound = largest_member()
        if (excess := _excess(info, bound)) is not None:
            raise ValueError(f"{path} {excess}")
        if info.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            return inflated(self.path, info, memory=bound)
        # zipfile returns at most the declared size, but a single read of everything first inflates more.
        with self._zip.open(info) as member:
            first = member.read(_PIECE)
            if len(first) < _PIECE:
                return first  # a read is short only at the end of the member
            return b"".join([first, *iter(functools.partial(member.read, _PIECE), b"")])


def open_zip(path: Path) -> Archive:
    """Return an open archive. The whole process shares it, so do not close it.

    Raises:
        DataError: The file does not exist, cannot be read, or is not a zip.
    """
    with readable(path):
        status = path.stat()
    try:
        return _archive(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            format_error(
                "a file given as dataset.path must be a readable zip archive",
                got=f"{path} ({error})",
                where="dataset",
                hint=_hint_for(path),
            )
        ) from error


#: The first bytes of archives and compressed files of other kinds: gzip, bzip2, xz, zstd, 7z and rar.
_OTHER_KINDS: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")

#: The position of the name of its format in a tar archive.
_TAR: Final = slice(257, 262)


def _hint_for(path: Path) -> str:
    """Return what the user can do about a file that is not a readable zip."""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(_TAR.stop)
        if start.startswith(_OTHER_KINDS) or start[_TAR] == b"ustar":
            return "It is an archive of another kind: unpack it, and give the folder."
    return "If it was downloaded or copied, it may be cut short: fetch it again."


@lru_cache(maxsize=1)
def _archive(path: Path, _size: int, _mtime_ns: int, _ctime_ns: int) -> Archive:
    # Reading a directory of 60,000 entries takes 0.3 s. Do so once per process and archive, not per image.
    # The ctime shows another archive of equal size and time, whose images the open one does not have.
    return Archive(path)


def refuse_unreadable(archive: Archive, paths: Iterable[str]) -> None:
    """Check that this Python can read the members, before the first member is read.

    Raises:
        DataError: A member is encrypted, is compressed by a method that this Python does not support, or
            inflates to more than this machine's memory allows, or than a picture's size.
    """
    bound = largest_member()
    for path in paths:
        info = archive.members[path]
        if (excess := _excess(info, bound)) is not None:
            raise DataError(
                format_error(
                    "the images of a zip must not inflate beyond their bounds",
                    got=f"{path}, which {excess}",
                    where=str(archive.path),
                    hint=f"Leave it out: {set_option('ignore', as_pattern(path))}. If it is a picture,"
                    " unpack the zip and give the folder.",
                )
            )
        if info.flag_bits & _ENCRYPTED or info.compress_type == _AES:
            raise DataError(
                format_error(
                    "the zip must not be encrypted",
                    got=f"an encrypted {path}",
                    where=str(archive.path),
                    hint="Unpack it with its password, and give the folder.",
                )
            )
        if info.compress_type not in _readable_methods() or info.flag_bits & _PATCHED:
            method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise DataError(
                format_error(
                    "the images of a zip must be stored, or compressed by deflate, bzip2 or LZMA",
                    got=f"{path}, which is compressed by {method}",
                    where=str(archive.path),
                    hint="Unpack it and give the folder, or zip that again, for"
                    " example with `python -m zipfile -c images.zip FOLDER`.",
                )
            )


def directory_bytes(path: Path) -> bytes:
    """Return the bytes of a zip's directory: the name, CRC, sizes and position of every entry.

    The record at the end of the file gives their position. The entries are not parsed, because every trial
    calls this function.

    Raises:
        DataError: The file is not a zip.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        tail_start = max(0, size - _LONGEST_END)
        file.seek(tail_start)
        tail = file.read()
        length = _directory_length(tail)
        end = tail_start + tail.rfind(_END)
        start = end - _ZIP64_BYTES - length if length is not None else -1
        file.seek(start if start >= 0 else open_zip(path).directory_start)
        return file.read()


#: The signature of the end record, the maximum size of the record with its comment, and the two zip64 records
#: before it.
_END: Final = b"PK\x05\x06"
_LONGEST_END: Final = (1 << 16) + 22 + 20 + 56
_ZIP64_BYTES: Final = 20 + 56
_ZIP64_END: Final = b"PK\x06\x06"


def _directory_length(tail: bytes) -> int | None:
    """Return the directory's length from the records at the end of a zip, or None if they are unusual."""
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 16:
        return None
    (length,) = struct.unpack_from("<I", tail, end + 12)
    if length != 0xFFFFFFFF:
        return int(length)
    start = end - _ZIP64_BYTES
    if start < 0 or tail[start : start + 4] != _ZIP64_END:
        return None
    return int(struct.unpack_from("<Q", tail, start + 40)[0])


@lru_cache(maxsize=1)
def largest_member() -> int:
    """Return the maximum number of bytes that one member may inflate to on this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(_LEAST_BOUND, int(memory * _MEMORY_SHARE) // (os.cpu_count() or 1))


@lru_cache(maxsize=1)
def _readable_methods() -> frozenset[int]:
    return frozenset(
        method for method, module in _MODULES.items() if not module or importlib.util.find_spec(module)
    )


#: A path component that is empty, ``.`` or ``..``.
_ODD_STEP: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")


def _name(info: zipfile.ZipInfo) -> str:
    """Return an entry's name. macOS writes UTF-8 without the flag for it, which zipfile reads as cp437."""
    if not info.flag_bits & _UTF8_NAME:
        with suppress(UnicodeError):
            return info.filename.encode("cp437").decode("utf-8")
    return info.filename


def _plain(name: str, path: Path) -> str:
    """Return an entry's path with single slashes and no dots; the path of a folder ends in a slash."""
    # As in unzip, a backslash is a separator if the name has no slash.
    if "/" not in name:
        name = name.replace("\\", "/")
    if not _ODD_STEP.search(name):
        return name
    steps = [step for step in name.split("/") if step not in ("", ".")]
    if ".." in steps:
        rule = "the entries of a zip must lie inside it"
        hint = "Make the archive again from inside the folder."
        raise DataError(format_error(rule, got=repr(name), where=str(path), hint=hint))
    return "/".join(steps) + ("/" if name.endswith("/") else "")


def _is_link(info: zipfile.ZipInfo) -> bool:
    return info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16)


def _excess(info: zipfile.ZipInfo, bound: int) -> str | None:
    """Return how an entry's declared size exceeds its bounds, or None."""
    size = info.file_size
    if size > bound:
        return (
            f"inflates to {_megabytes(size)} MB, and a member of a zip may have at most"
            f" {_megabytes(bound)} MB, by this machine's memory"
        )
    if size > _SUSPECT and size > _LARGEST_RATIO * info.compress_size:
        return (
            f"inflates to {_megabytes(size)} MB, more than {_LARGEST_RATIO} times its compressed size, as no"
            " picture does"
        )
    return None


def _megabytes(size: int) -> int:
    return size // 1_000_000
