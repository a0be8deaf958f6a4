"""What an image folder or a .zip of one holds: its classes and parts, found without opening an image.

Two layouts: ``train/<class>/*`` with ``val/`` and ``test/`` beside it under their usual names, or one folder
of classes. Either may lie inside a single top folder, as zips of folders do.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import NoReturn

from tune_rescon.errors import DataError, explain

__all__ = ["PARTS", "SUFFIXES", "Listing", "Part", "arrange", "fingerprint", "list_folder", "open_zip"]

PARTS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_USUAL_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

#: A zip ends with its directory, which holds every entry's CRC: this much of it tells two archives apart.
_ZIP_TAIL_BYTES = 1 << 20
_ENCRYPTED = 0x1


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images of one part, by class and then by name. ``names`` are paths inside the source, with ``/``."""

    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()

    def counts(self, classes: int) -> list[int]:
        """Images of each class."""
        found = [0] * classes
        for label in self.labels:
            found[label] += 1
        return found


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A source's classes, sorted by name, and its parts; ``val`` and ``test`` may be empty."""

    class_names: tuple[str, ...]
    train: Part
    val: Part
    test: Part

    @property
    def names(self) -> tuple[str, ...]:
        """Every image: training, then validation, then test."""
        return self.train.names + self.val.names + self.test.names


def list_folder(path: Path) -> Listing:
    """List a directory or .zip.

    Raises:
        DataError: no such path, not a zip, no images, an empty class, one class only, or parts that
            do not fit together.
    """
    if path.is_dir():
        with _readable(path):
            return arrange(_walk(path), where=str(path))
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
    except (zipfile.BadZipFile, OSError) as error:
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


def arrange(entries: Iterable[str], *, where: str) -> Listing:
    """Find classes and parts among the paths of a source (folders end in ``/``).

    >>> found = arrange(["pets/cat/1.jpg", "pets/cat/2.jpg", "pets/dog/1.PNG"], where="pets.zip")
    >>> found.class_names, found.train.names, found.test.names
    (('cat', 'dog'), ('pets/cat/1.jpg', 'pets/cat/2.jpg', 'pets/dog/1.PNG'), ())

    Raises:
        DataError: see :func:`list_folder`.
    """
    tree = _Tree(entries)
    if not any(tree.images.values()):
        raise DataError(explain(f"no images found (looked for {', '.join(SUFFIXES)})", where=where))
    top = tree.top()
    folders = _parts(tree, top, where)
    names = tuple(sorted(tree.children(folders["train"])))
    if len(names) < 2:
        raise DataError(
            explain(
                "an image folder needs 2 or more classes, each a folder of images",
                got=f"{len(names)}" + (f" ({names[0]})" if names else ""),
                where=_join(where, folders["train"]),
            )
        )
    found = {part: _read_part(tree, folders[part], names, where) for part in PARTS if part in folders}
    return Listing(
        class_names=names,
        train=found["train"],
        val=found.get("val", Part()),
        test=found.get("test", Part()),
    )


class _Tree:
    """Folders of a source: which lie in which, and the images directly in each. "" is the root."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.images: dict[str, list[str]] = {"": []}
        self._inside: dict[str, set[str]] = {"": set()}
        for entry in entries:
            folder, _, name = entry.rpartition("/")
            if folder not in self.images and not self._add_folder(folder):
                continue
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                self.images[folder].append(entry)

    def _add_folder(self, folder: str) -> bool:
        """Register a folder and those above it; False for what tools leave behind (.git, __MACOSX)."""
        steps = folder.split("/")
        if any(step.startswith(".") or step in ("__MACOSX", "") for step in steps):
            return False
        for depth, step in enumerate(steps):
            above, here = "/".join(steps[:depth]), "/".join(steps[: depth + 1])
            self._inside[above].add(step)
            self.images.setdefault(here, [])
            self._inside.setdefault(here, set())
        return True

    def children(self, folder: str) -> set[str]:
        """Names of the folders directly inside."""
        return self._inside[folder]

    def below(self, folder: str) -> list[str]:
        """Images in a folder, at any depth, sorted."""
        inner = (self.below(_join(folder, name)) for name in self.children(folder))
        return sorted([*self.images[folder], *(image for images in inner for image in images)])

    def top(self) -> str:
        """The folder whose children are classes or parts: below single folders that only wrap."""
        folder = ""
        while len(self.children(folder)) == 1 and not self.images[folder]:
            inner = _join(folder, next(iter(self.children(folder))))
            if not self.children(inner):
                break
            folder = inner
        return folder


def _parts(tree: _Tree, top: str, where: str) -> dict[str, str]:
    """Folder of each part the source has. A usual name counts only if it holds folders and no images itself:
    a class may be called ``train`` (CIFAR-100 has one).
    """
    found: dict[str, str] = {}
    for name in sorted(tree.children(top)):
        part, folder = _USUAL_NAMES.get(name.lower()), _join(top, name)
        if part is None or tree.images[folder] or not tree.children(folder):
            continue
        if part in found:
            raise DataError(
                explain(
                    f"one folder may hold the {part} part", got=f"{found[part]} and {folder}", where=where
                )
            )
        found[part] = folder
    if found and "train" not in found:
        raise DataError(
            explain(
                "a folder with validation or test images needs train/ beside them",
                got=", ".join(sorted(tree.children(top))),
                where=_join(where, top),
            )
        )
    return found or {"train": top}


def _read_part(tree: _Tree, folder: str, classes: tuple[str, ...], where: str) -> Part:
    names: list[str] = []
    labels: list[int] = []
    strangers = tree.children(folder) - set(classes)
    if strangers:
        raise DataError(
            explain(
                "every class must also be in the training part",
                got=", ".join(map(repr, sorted(strangers))),
                where=_join(where, folder),
            )
        )
    for label, name in enumerate(classes):
        if name not in tree.children(folder):
            continue
        images = tree.below(_join(folder, name))
        if not images:
            raise DataError(
                explain(
                    "a class folder must hold at least one image",
                    got=f"none that ends in {', '.join(SUFFIXES)}",
                    where=_join(_join(where, folder), name),
                    hint="Add images to it, or remove the folder.",
                )
            )
        names += images
        labels += [label] * len(images)
    return Part(names=tuple(names), labels=tuple(labels))


def _walk(root: Path) -> Iterator[str]:
    """Every file and folder below a directory, as relative paths with ``/``; folders end in ``/``."""
    for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        yield from (f"{prefix}{name}/" for name in folders)
        yield from (f"{prefix}{name}" for name in files)


def _raise(error: OSError) -> NoReturn:
    # Left alone, os.walk passes over a folder it cannot read, and its images would just be missing.
    raise error


def _folder_stamps(root: Path) -> bytes:
    stamps = []
    for name in _walk(root):
        status = (root / name).stat()
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
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise DataError(
            explain("every file and folder must be readable", got=str(error), where=str(path))
        ) from error


def _missing(path: Path) -> DataError:
    return DataError(
        explain("dataset.path must be an existing directory or .zip", got=str(path), where="dataset")
    )


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
