"""Which classes and parts the paths of an image folder stand for.

Two layouts: ``train/<class>/*`` with ``val/`` and ``test/`` beside it under their usual names, or one folder
of classes. Either may lie inside a single top folder, as zips of folders do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tune_rescon.errors import DataError, explain

__all__ = ["PARTS", "SUFFIXES", "Listing", "Part", "arrange"]

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


def arrange(entries: Iterable[str], *, where: str) -> Listing:
    """Find classes and parts among the paths of a source (folders end in ``/``).

    >>> found = arrange(["pets/cat/1.jpg", "pets/cat/2.jpg", "pets/dog/1.PNG"], where="pets.zip")
    >>> found.class_names, found.train.names, found.test.names
    (('cat', 'dog'), ('pets/cat/1.jpg', 'pets/cat/2.jpg', 'pets/dog/1.PNG'), ())

    Raises:
        DataError: no images, an empty class, one class only, or parts that do not fit together.
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


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
