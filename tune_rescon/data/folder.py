"""Reading an image directory or a .zip of one: what lies in it, and whether it has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final

from tune_rescon.data.account import Tally
from tune_rescon.data.archive import directory_bytes, open_zip, refuse_unreadable
from tune_rescon.data.formats import is_image_name
from tune_rescon.data.layout import Listing, arrange
from tune_rescon.data.selection import Selection
from tune_rescon.data.walk import readable, walk

__all__ = ["fingerprint", "list_folder", "read_bytes"]

_EVERYTHING: Final = Selection()


def list_folder(path: Path, selection: Selection = _EVERYTHING) -> Listing:
    """List a directory or .zip.

    Args:
        path: of the directory or archive.
        selection: what the dataset's ``train``, ``val``, ``test`` and ``ignore`` ask for.

    Raises:
        DataError: no such path, not a zip, a member that Python cannot read, no images, a layout that may
            mean two things, or what :func:`arrange` refuses.
    """
    tally = Tally()
    if path.is_dir():
        with readable(path):
            paths = (entry.path for entry in walk(path, selection, tally))
            return arrange(paths, where=str(path), selection=selection, tally=tally)
    archive = open_zip(path)
    listing = arrange(archive.entries(tally), where=str(path), selection=selection, tally=tally)
    refuse_unreadable(archive, listing.names)
    return listing


def fingerprint(path: Path, selection: Selection = _EVERYTHING) -> str:
    """Changes when an image or a folder is added, removed, renamed, resized, rewritten or exchanged.

    Reads no image. Of a directory only images and folders count: a note or a ``.DS_Store`` changes nothing.
    A zip is one file, and counts as a whole.

    Raises:
        DataError: no such path, or not a zip.
    """
    with readable(path):
        stamps = _folder_stamps(path, selection) if path.is_dir() else _zip_stamps(path)
    return blake2b(stamps + selection.key.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def read_bytes(source: Path, name: str) -> bytes:
    """Bytes of one file of a directory or .zip.

    Raises:
        ValueError: a zip's member inflates to more than this machine's memory allows.
    """
    return (source / name).read_bytes() if source.is_dir() else open_zip(source).read(name)


def _folder_stamps(root: Path, selection: Selection) -> bytes:
    return "\n".join(sorted(_stamps(root, selection))).encode(errors="surrogateescape")


def _stamps(root: Path, selection: Selection) -> Iterator[str]:
    for entry in walk(root, selection, Tally()):
        path = entry.path.removesuffix("/")
        if path != entry.path:
            if not selection.keeps_out(path):
                yield path
        elif is_image_name(path) and not selection.ignores(path):
            status = entry.found.stat()
            yield f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{_identity(status)}"


def _identity(status: os.stat_result) -> str:
    """What changes when two files of equal size and time of writing are exchanged.

    The time of change does, in place or by renaming. It also changes with a file's mode, which costs decoding
    again. If a whole folder is renamed, its files keep it: then the inode tells. Only file systems on a
    device of their own keep inodes; network and FUSE mounts may number a file anew each time, and every trial
    would decode again.
    """
    inode = status.st_ino if os.major(status.st_dev) else 0
    return f"{status.st_ctime_ns}\0{inode}"


def _zip_stamps(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_size}\0{status.st_mtime_ns}\n".encode() + directory_bytes(path)
