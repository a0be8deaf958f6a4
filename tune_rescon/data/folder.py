"""Reading an image directory or a .zip of one: what lies in it, and whether it has changed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from tune_rescon.data.layout import Listing, arrange
from tune_rescon.errors import DataError, explain

__all__ = ["fingerprint", "list_folder", "open_zip", "read_bytes"]

#: A zip ends with its directory, which holds every entry's CRC: this much of it tells two archives apart.
_ZIP_TAIL_BYTES = 1 << 20
_ENCRYPTED = 0x1


def list_folder(path: Path) -> Listing:
    """List a directory or .zip.

    Raises:
        DataError: no such path, not a zip, no images, an empty class, one class only, or parts that
            do not fit together.
    """
    if path.is_dir():
        with _readable(path):
            return arrange((name for name, _ in _walk(path)), where=str(path))
    archive = open_zip(path)
    locked = next((entry.filename for entry in archive.infolist() if entry.flag_bits & _ENCRYPTED), None)
    if locked:
        raise DataError(
            explain("the zip must not be encrypted", got=f"an encrypted {locked}", where=str(path))
        )
    return arrange(archive.namelist(), where=str(path))


def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive open for reading, shared by the whole process: leave it open. Reading is thread-safe.

    Raises:
        DataError: no such file, not readable, or not a zip.
    """
    with _readable(path):
        status = path.stat()
    try:
        return _archive(path, status.st_size, status.st_mtime_ns)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            explain(
                "a file given as dataset.path must be a readable zip archive",
                got=f"{path} ({error})",
                where="dataset",
                hint="If it was downloaded or copied, it may be cut short: fetch it again.",
            )
        ) from error


@lru_cache(maxsize=1)
def _archive(path: Path, _size: int, _mtime_ns: int) -> zipfile.ZipFile:
    # Reading a 60,000-entry directory takes 0.3 s: once per process and archive, not once per image.
    return zipfile.ZipFile(path)


def fingerprint(path: Path) -> str:
    """Changes when a file is added, removed, renamed, resized or rewritten. Reads no image.

    Raises:
        DataError: no such path.
    """
    with _readable(path):
        stamps = _folder_stamps(path) if path.is_dir() else _file_stamps(path)
        return blake2b(stamps, digest_size=16).hexdigest()


def read_bytes(source: Path, name: str) -> bytes:
    """Bytes of one file of a directory or .zip."""
    return (source / name).read_bytes() if source.is_dir() else open_zip(source).read(name)


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file and folder below a directory, by its path from there with ``/``; folders end in ``/``.

    Not ``os.walk``: it passes over folders it cannot read, and says nothing of a file's size and time.
    """
    below = [("", str(root))]
    while below:
        prefix, folder = below.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    below.append((f"{prefix}{entry.name}/", entry.path))
                    yield f"{prefix}{entry.name}/", entry
                else:
                    yield f"{prefix}{entry.name}", entry


def _folder_stamps(root: Path) -> bytes:
    stamps = []
    for name, entry in _walk(root):
        status = entry.stat()
        stamps.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}")
    return "\n".join(sorted(stamps)).encode(errors="surrogateescape")


def _file_stamps(path: Path) -> bytes:
    status = path.stat()
    with path.open("rb") as file:
        file.seek(max(0, status.st_size - _ZIP_TAIL_BYTES))
        return f"{status.st_size}\0{status.st_mtime_ns}\n".encode() + file.read()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not path.exists():
            rule = "dataset.path must be an existing directory or .zip"
            raise DataError(explain(rule, got=str(path), where="dataset")) from error
        rule = "every file and folder must be readable"
        raise DataError(explain(rule, got=str(error), where=str(path))) from error
