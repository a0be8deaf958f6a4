"""The folders and images of a source, and the traversal of a directory, which follows links.

The listing of a dataset, its fingerprint and ``predict`` all use this traversal, so they see the same files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tune_rescon.data.opening import is_image_name
from tune_rescon.data.selection import Kind, Selection, Tally, is_hidden, is_junk_folder
from tune_rescon.errors import DataError, format_error

__all__ = ["Entry", "Tree", "build_tree", "find_images", "is_inside", "join", "readable", "sort_file", "walk"]


#: Image formats that are not supported. Their files are counted separately from text and tables.
_UNREAD: Final = (
    *(".heic", ".heif", ".jxl", ".svg", ".eps", ".psd", ".tga", ".ico", ".exr", ".hdr", ".dcm", ".npy"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)

#: Files that operating systems write into folders of images. The account omits them: no user made them.
_SYSTEM_FILES: Final = ("thumbs.db", "ehthumbs.db", "desktop.ini")


class Tree:
    """The folders of a source by their path inside it; "" is the source itself."""

    def __init__(self) -> None:
        """Create a tree that contains only the source's root folder."""
        self.images: dict[str, list[str]] = {"": []}
        self._inside: dict[str, set[str]] = {"": set()}
        self._below: dict[str, int] = {}

    @property
    def folders(self) -> Iterable[str]:
        """All folders."""
        return self.images

    def add_folder(self, folder: str) -> None:
        """Add a folder and its parents."""
        while folder not in self.images:
            above, _, name = folder.rpartition("/")
            self.images[folder] = []
            self._inside.setdefault(folder, set())
            self._inside.setdefault(above, set()).add(name)
            folder = above

    def add_image(self, path: str) -> None:
        """Add an image and the folders that contain it."""
        folder = path.rpartition("/")[0]
        self.add_folder(folder)
        self.images[folder].append(path)
        self._below = {}

    def count(self, folder: str) -> int:
        """Return the number of images in a folder, at any depth."""
        if not self._below:
            for inner, images in self.images.items():
                while inner:
                    self._below[inner] = self._below.get(inner, 0) + len(images)
                    inner = inner.rpartition("/")[0]
                self._below[""] = self._below.get("", 0) + len(images)
        return self._below.get(folder, 0)

    def filled(self, folder: str) -> set[str]:
        """Return the names of the direct subfolders that contain images at any depth."""
        return {name for name in self._inside[folder] if self.count(join(folder, name))}

    def empty(self, folder: str) -> set[str]:
        """Return the names of the direct subfolders that contain no image at any depth."""
        return self._inside[folder] - self.filled(folder)

    def below(
        self, folder: str, enters: Callable[[str, str], bool] = lambda _folder, _name: True
    ) -> list[str]:
        """Return the images in a folder at any depth, sorted.

        Inner folders are skipped if ``enters(parent, name)`` is False.
        """
        found, todo = [], [folder]
        while todo:
            here = todo.pop()
            found += self.images[here]
            todo += [join(here, name) for name in self._inside[here] if enters(here, name)]
        return sorted(found)

    def top(self, folder: str = "") -> str:
        """Return the folder whose children are classes or parts, below single folders that only wrap it.

        Args:
            folder: The folder to start from; "" is the source itself.
        """
        while not self.images[folder] and len(inner := self.filled(folder)) == 1:
            below = join(folder, inner.pop())
            if not self.filled(below):
                break
            folder = below
        return folder

    def without(self, folders: Sequence[str]) -> Tree:
        """Return a tree of the files and folders outside these folders."""
        if not folders:
            return self
        rest = Tree()
        for folder, images in self.images.items():
            if not any(is_inside(folder, out) for out in folders):
                rest.add_folder(folder)
                for image in images:
                    rest.add_image(image)
        return rest


def build_tree(entries: Iterable[str], selection: Selection, tally: Tally) -> Tree:
    """Build the tree of the images among the paths of a source.

    Args:
        entries: The paths; the paths of folders end in ``/``.
        selection: The rules for ignored folders and files.
        tally: Receives the files and folders that are left out.
    """
    tree = Tree()
    known: dict[str, bool] = {"": True}
    for entry in entries:
        folder, _, name = entry.rpartition("/")
        if not _is_entered(folder, known, selection, tally):
            continue
        tree.add_folder(folder)
        kind = sort_file(entry, selection) if name else None
        if kind:
            tally.add(kind, entry)
        elif name and is_image_name(name):
            tree.add_image(entry)
    return tree


def sort_file(path: str, selection: Selection) -> Kind | None:
    """Return the reason why a file is left out by its path alone.

    Return None for an image, and for an operating system's file, which is not counted. The caller checks the
    folders above the file.
    """
    name = path.rpartition("/")[2]
    if selection.ignores(path):
        return Kind.IGNORED
    if is_image_name(name):
        return Kind.HIDDEN if is_hidden(name) else None
    if is_hidden(name) or name.lower() in _SYSTEM_FILES:
        return None
    return Kind.FORMAT if name.lower().endswith(_UNREAD) else Kind.OTHER


def is_inside(folder: str, above: str) -> bool:
    """Return whether ``folder`` is ``above`` or lies inside it."""
    return not above or folder == above or folder.startswith(f"{above}/")


def join(folder: str, name: str) -> str:
    """Return the path of ``name`` inside ``folder``; "" is the source itself."""
    return f"{folder}/{name}" if folder and name else folder or name


def _is_entered(folder: str, known: dict[str, bool], selection: Selection, tally: Tally) -> bool:
    """Return whether images in a folder count; add the outermost skipped folder to ``tally`` once."""
    if folder in known:
        return known[folder]
    path, is_open = "", True
    for step in folder.split("/"):
        path = join(path, step)
        if is_open and path not in known and selection.skips(path):
            tally.add(Kind.TOOLS if is_junk_folder(step) else Kind.IGNORED, path)
            known[path] = False
        is_open = known.setdefault(path, is_open) and is_open
    known[folder] = is_open
    return is_open


class Entry(NamedTuple):
    """A file or folder, and its path below the directory with ``/``; a folder's path ends in ``/``."""

    path: str
    found: os.DirEntry[str]


def walk(root: Path, selection: Selection, tally: Tally) -> Iterator[Entry]:
    """Yield every file and folder below a directory; follow links.

    Entries named as images that cannot be read as files are left out. Skipped folders are yielded but not
    entered. ``os.walk`` is unsuitable, because it silently omits folders that cannot be read and does not
    give the size and time of a file.

    Args:
        root: The directory.
        selection: The rules for skipped folders.
        tally: Receives loops of links and the left-out entries.

    Raises:
        OSError: A folder cannot be read.
    """
    status = root.stat()
    # Each folder is stored with its ancestors, so that a link back to an ancestor is not followed. A folder
    # that is linked twice is read twice, because `val` may be a link to `test`.
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
                if selection.skips(path):
                    continue
                status = entry.stat()
                here = (status.st_dev, status.st_ino)
                if here in above:
                    tally.add(Kind.LOOP, path)
                else:
                    todo.append((f"{path}/", entry.path, above | {here}))


def find_images(folder: Path, tally: Tally) -> list[Path]:
    """Return the images in a directory at any depth, sorted, by the rules of a dataset's listing.

    An unknown hidden folder is read if it lies among folders, because it may be a class. It is left out if it
    lies beside images, because it contains files that a program made of these images.

    Raises:
        DataError: A folder cannot be read.
    """
    selection = Selection()
    with readable(folder):
        tree = build_tree((entry.path for entry in walk(folder, selection, tally)), selection, tally)
    kept = tree.below("", lambda above, name: not (name.startswith(".") and tree.images[above]))
    tally.add(Kind.IN_HIDDEN, *set(tree.below("")).difference(kept))
    return sorted(folder / path for path in kept)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert an OSError of the file system to a DataError.

    Raises:
        DataError: The path does not exist, or a file or folder in it cannot be read.
    """
    try:
        yield
    except OSError as error:
        # `path.exists()` would raise, too, if the name is too long or a folder above may not be entered.
        if not (os.path.exists(path) or isinstance(error, PermissionError)):  # noqa: PTH110 - Path.exists() may raise
            rule = "dataset.path must be an existing directory or .zip"
            raise DataError(format_error(rule, got=str(path), where="dataset")) from error
        rule = "every file and folder must be readable"
        raise DataError(format_error(rule, got=str(error), where=str(path))) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # A link to itself has no target.
        if error.errno == errno.ELOOP:
            return False
        raise


def _is_readable(entry: os.DirEntry[str], path: str, tally: Tally) -> bool:
    """Return whether an entry can be read as a file; a file without an image's name is not checked."""
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
    # Reading a pipe would hang.
    tally.add(Kind.SPECIAL, path)
    return False
