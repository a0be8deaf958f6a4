"""Walking a directory of images: its files and folders, linked ones included.

The listing of a data set, its fingerprint and ``predict`` all walk here, so they see the same files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tune_rescon.data.account import Kind, Tally
from tune_rescon.data.formats import is_image_name
from tune_rescon.data.selection import Selection
from tune_rescon.data.tree import plant
from tune_rescon.errors import DataError, explain

__all__ = ["Entry", "find_images", "readable", "walk"]


class Entry(NamedTuple):
    """A file or folder, by its path below the directory with ``/``; a folder's path ends in ``/``."""

    path: str
    found: os.DirEntry[str]


def walk(root: Path, selection: Selection, tally: Tally) -> Iterator[Entry]:
    """Every file and folder below a directory, but for images that are none; links are followed.

    Folders that are kept out are given and not entered. Not ``os.walk``: it passes over folders that cannot
    be read, and tells nothing of a file's size and time.

    Raises:
        OSError: a folder cannot be read.
    """
    status = root.stat()
    # Each folder with those above it, so that a link back to one of them ends there. A folder that is linked
    # twice is read twice: `val` may be a link to `test`.
    todo = [("", str(root), frozenset({(status.st_dev, status.st_ino)}))]
    while todo:
        prefix, folder, above = todo.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{prefix}{entry.name}"
                if not _is_folder(entry):
                    if _is_readable(entry, path, tally):
                        yield Entry(path, entry)
                    continue
                yield Entry(f"{path}/", entry)
                if selection.keeps_out(path):
                    continue
                status = entry.stat()
                here = (status.st_dev, status.st_ino)
                if here in above:
                    tally.add(Kind.LOOP, path)
                else:
                    todo.append((f"{path}/", entry.path, above | {here}))


def find_images(folder: Path, tally: Tally) -> list[Path]:
    """The images in a directory, at any depth, sorted: by the rules by which a data set is listed.

    An unknown hidden folder is read where it lies among folders (it may be a class), and left out where it
    lies beside images (it holds what a program has made of them).

    Raises:
        DataError: a folder cannot be read.
    """
    selection = Selection()
    with readable(folder):
        tree = plant((entry.path for entry in walk(folder, selection, tally)), selection, tally)
    kept = tree.below("", lambda above, name: not (name.startswith(".") and tree.images[above]))
    tally.add(Kind.IN_HIDDEN, *set(tree.below("")).difference(kept))
    return sorted(folder / path for path in kept)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one of our errors.

    Raises:
        DataError: no such path, or something in it cannot be read.
    """
    try:
        yield
    except OSError as error:
        if not path.exists():
            rule = "dataset.path must be an existing directory or .zip"
            raise DataError(explain(rule, got=str(path), where="dataset")) from error
        rule = "every file and folder must be readable"
        raise DataError(explain(rule, got=str(error), where=str(path))) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # A link to itself leads nowhere.
        if error.errno == errno.ELOOP:
            return False
        raise


def _is_readable(entry: os.DirEntry[str], path: str, tally: Tally) -> bool:
    """Whether this is a file that can be read as one; a file that is no image is not looked at."""
    if not is_image_name(entry.name):
        return True
    try:
        if entry.is_file():
            return True
        entry.stat()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOENT):
            raise
        tally.add(Kind.DANGLING, path)
        return False
    # Reading a pipe would never end.
    tally.add(Kind.SPECIAL, path)
    return False
