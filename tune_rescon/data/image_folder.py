"""Read an image directory or .zip: list its classes, parts and images, and detect changes.

Two layouts are supported: ``train/<class>/*``, with ``val/`` and ``test/`` beside it under their usual names,
or one folder of classes. Both may be inside a single top folder, as in zips of folders.
docs/howto/images.md has a table of the files that are read, left out and refused.
"""

from __future__ import annotations

import errno
import glob
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from tune_rescon.data.image_tree import Tree, build_tree, is_inside, join, readable, walk
from tune_rescon.data.opening import SUFFIXES, is_image_name
from tune_rescon.data.parts import find_parts, is_usual_name
from tune_rescon.data.selection import (
    PARTS,
    Account,
    Kind,
    Selection,
    Tally,
    as_pattern,
    as_text,
    folded,
    is_hidden,
    normalized,
    set_option,
)
from tune_rescon.data.zip_archive import directory_bytes, open_zip, refuse_unreadable
from tune_rescon.errors import DataError, format_error

__all__ = ["ImageIndex", "Part", "fingerprint", "index_images", "list_folder", "read_bytes"]


_EVERYTHING: Final = Selection()

#: Maximum number of folders that a line names.
_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images of one part, by class and then by name. ``names`` are paths inside the source, with ``/``."""

    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()

    def counts(self, classes: int) -> list[int]:
        """Return the number of images of each class."""
        found = [0] * classes
        for label in self.labels:
            found[label] += 1
        return found


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """The classes of a source, sorted by name (NFC), and its parts; ``val`` and ``test`` may be empty."""

    class_names: tuple[str, ...]
    train: Part
    val: Part
    test: Part
    account: Account

    @property
    def names(self) -> tuple[str, ...]:
        """All images: training, then validation, then test images."""
        return self.train.names + self.val.names + self.test.names


def index_images(
    entries: Iterable[str], *, where: str, selection: Selection = _EVERYTHING, tally: Tally | None = None
) -> ImageIndex:
    """Find classes and parts among the paths of a source.

    >>> found = index_images(["pets/cat/1.jpg", "pets/cat/2.jpg", "pets/dog/1.PNG"], where="pets.zip")
    >>> found.class_names, found.train.names, found.test.names
    (('cat', 'dog'), ('pets/cat/1.jpg', 'pets/cat/2.jpg', 'pets/dog/1.PNG'), ())

    Args:
        entries: The paths; the paths of folders end in ``/``.
        where: Name of the source in error messages.
        selection: The folders of each part, if the dataset configures them.
        tally: Files that are left out already; this function adds the others.

    Raises:
        DataError: The source has no images, only one class, a class without training images, parts that do
            not fit together, or an ambiguous layout.
    """
    tally = Tally() if tally is None else tally
    tree = build_tree(entries, selection, tally)
    if not tree.count(""):
        found = [f"{one.count} {one.kind} ({', '.join(one.names)})" for one in tally.left_out()]
        raise DataError(
            format_error(
                f"no images found (looked for {', '.join(SUFFIXES)})",
                got=", ".join(found) or None,
                where=where,
            )
        )
    parts = find_parts(tree, selection, where)
    trees = {part: _tree_of(part, tree, parts) for part in parts}
    names = _class_names(trees["train"], parts["train"], where)
    _check_empty_classes(trees, parts, names, where)
    found_parts = {part: _read_part(trees[part], parts[part], names, where) for part in parts}
    for part, folders in parts.items():
        tally.add(Kind.EMPTY, *_empty(trees[part], folders))
    tally.add(Kind.EMPTY, *_empty(tree, _down_to(tree.top())))
    _tally_rest(tree, parts, found_parts, tally)
    listed = {part: found_parts.get(part, Part()) for part in PARTS}
    account = Account(
        class_names=names,
        per_class={part: tuple(found.counts(len(names))) for part, found in listed.items()},
        # Patterns that match nothing are reported, because they may be a mistake.
        left_out=tally.left_out(*([Kind.IGNORED] if selection.ignore else [])),
        remarks=(
            *_unused_globs_remark(selection, tally),
            *_shared_folders_remark(trees["train"], parts),
            *_copies_remarks(trees["train"], parts, names),
        ),
    )
    return ImageIndex(class_names=names, **listed, account=account)


def _tree_of(part: str, tree: Tree, parts: Mapping[str, Sequence[str]]) -> Tree:
    """Return the tree of a part without folders of other parts inside it, as with ``train: .``."""
    others = [folder for other, folders in parts.items() if other != part for folder in folders]
    return tree.without([f for f in others if any(is_inside(f, own) for own in parts[part])])


def _class_names(tree: Tree, folders: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the classes of the training part, named and ordered alike in every Unicode form of a copy."""
    names = tuple(sorted({normalized(name) for folder in folders for name in _images_by_name(tree, folder)}))
    if len(names) < 2:
        empty = sorted({name for folder in folders for name in tree.empty(folder)})
        raise DataError(
            format_error(
                "an image folder needs 2 or more classes, each a folder of images",
                got=f"{len(names)}"
                + (f" ({names[0]})" if names else "")
                + (f"; without images: {', '.join(empty[:5])}" if empty else ""),
                where=join(where, folders[0]),
                hint="If the class folders lie elsewhere, name the folder that holds them, for example"
                f" {set_option('train', 'images/train')}.",
            )
        )
    return names


def _check_empty_classes(
    trees: Mapping[str, Tree], parts: Mapping[str, Sequence[str]], names: Sequence[str], where: str
) -> None:
    """Raise if a class folder of the training part is empty and another part has images of this class."""
    train = {
        normalized(name): join(folder, name)
        for folder in parts["train"]
        for name in trees["train"].empty(folder)
    }
    for part, folders in parts.items():
        for name in sorted({name for folder in folders for name in trees[part].filled(folder)}):
            if part != "train" and normalized(name) in train.keys() - set(names):
                raise DataError(
                    format_error(
                        "a class folder must hold at least one image",
                        got=f"none of {name!r} to train, and some in {part}",
                        where=join(where, train[normalized(name)]),
                        hint="Add images to it, or leave the class out:"
                        f" {set_option('ignore', glob.escape(name))}.",
                    )
                )


def _unused_globs_remark(selection: Selection, tally: Tally) -> Iterator[str]:
    """Yield a line that names the globs of ``ignore`` without a match, if others have one.

    If none has a match, the account already shows that nothing was ignored.
    """
    unused = selection.unused(tally.names(Kind.IGNORED, Kind.TOOLS))
    if unused and tally.names(Kind.IGNORED):
        yield f"globs of dataset.ignore that match nothing: {_listed(unused)}"


def _shared_folders_remark(tree: Tree, parts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a line if all class folders hold folders of the same names and no images.

    These names may be the classes: folds, years or cameras have a folder for each class, or for most of them.
    """
    classes = [join(folder, name) for folder in parts["train"] for name in tree.filled(folder)]
    held = [set() if tree.images[path] else tree.filled(path) for path in classes]
    shared = sorted(set.intersection(*held))
    if len(shared) > 1:
        options = " ".join(
            set_option(part, join(glob.escape(folders[0]), "*")) for part, folders in parts.items()
        )
        yield (
            f"every class folder holds folders of the same names ({_listed(shared)}); if these are the"
            f" classes: {options}"
        )


def _copies_remarks(tree: Tree, parts: Mapping[str, Sequence[str]], names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each class folder that holds folders of other classes, as a copy of the data does."""
    for path in (join(folder, name) for folder in parts["train"] for name in sorted(tree.filled(folder))):
        own = normalized(path.rpartition("/")[2])
        inside = sorted({normalized(name) for name in tree.filled(path)} & {*names} - {own})
        if len(inside) > 1:
            yield (
                f"{as_text(path)} is read as a class and holds folders with the names of others"
                f" ({_listed(inside)}); if it is no class: {set_option('ignore', as_pattern(path))}"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(as_text, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _read_part(tree: Tree, folders: Sequence[str], classes: Sequence[str], where: str) -> Part:
    labels = {name: label for label, name in enumerate(classes)}
    images: dict[int, list[str]] = {label: [] for label in labels.values()}
    for folder in folders:
        found = _images_by_name(tree, folder)
        unknown = sorted(name for name in found if normalized(name) not in labels)
        if unknown:
            alike = next((name for name in classes if folded(name) == folded(normalized(unknown[0]))), None)
            rename = "" if alike is None else f"If it is the class {alike!r}, give it this name. "
            leave_out = set_option("ignore", as_pattern(join(folder, unknown[0])))
            raise DataError(
                format_error(
                    "every class must also be in the training part",
                    got=", ".join(map(repr, unknown)),
                    where=join(where, folder),
                    hint=f"{rename}To leave it out: {leave_out}.",
                )
            )
        for name, inside in found.items():
            images[labels[normalized(name)]] += inside
    names = [name for label in sorted(images) for name in sorted(images[label], key=_order)]
    return Part(names=tuple(names), labels=tuple(label for label in sorted(images) for _ in images[label]))


def _order(path: str) -> tuple[str, str]:
    """Return the key by which a class's images are sorted, equal in every Unicode form of a copy.

    Bytes that are no UTF-8 are not escaped, because that would change the order, and with it the split.
    """
    return unicodedata.normalize("NFC", path), path


def _images_by_name(tree: Tree, folder: str) -> dict[str, list[str]]:
    """Return the images of each class folder that contains images.

    Hidden folders inside a class are left out, because they belong to other programs.
    """
    inside = {
        name: tree.below(join(folder, name), lambda _folder, inner: not is_hidden(inner))
        for name in tree.filled(folder)
    }
    return {name: images for name, images in inside.items() if images}


def _down_to(top: str) -> list[str]:
    """Return the folders from the source down to ``top``, which contains the classes or parts."""
    steps = top.split("/") if top else []
    return ["/".join(steps[:depth]) for depth in range(len(steps) + 1)]


def _empty(tree: Tree, folders: Sequence[str]) -> Iterator[str]:
    return (join(folder, name) for folder in folders for name in tree.empty(folder))


def _tally_rest(
    tree: Tree, parts: Mapping[str, Sequence[str]], found: Mapping[str, Part], tally: Tally
) -> None:
    """Add every image that belongs to no part to ``tally``."""
    read = {name for part in found.values() for name in part.names}
    own = {folder for folders in parts.values() for folder in folders}
    top = tree.top()
    for folder, images in tree.images.items():
        left = [image for image in images if image not in read]
        if not left:
            continue
        above, _, name = folder.rpartition("/")
        if folder in own or folder == top or (above == top and is_usual_name(name)):
            tally.add(Kind.NO_CLASS, *left)
        elif any(is_inside(folder, part) for part in own):
            tally.add(Kind.IN_HIDDEN, *left)
        else:
            tally.add(Kind.OUTSIDE, *left)


def list_folder(path: Path, selection: Selection = _EVERYTHING) -> ImageIndex:
    """List a directory or .zip.

    Raises:
        DataError: The path does not exist, is not a zip, contains a member that Python cannot read, or
            :func:`index_images` raises, for example for a source without images or an ambiguous layout.
    """
    tally = Tally()
    with readable(path):
        if path.is_dir():
            paths = (entry.path for entry in walk(path, selection, tally))
            return index_images(paths, where=str(path), selection=selection, tally=tally)
    archive = open_zip(path)
    listing = index_images(archive.entries(tally), where=str(path), selection=selection, tally=tally)
    refuse_unreadable(archive, listing.names)
    return listing


def fingerprint(path: Path, selection: Selection = _EVERYTHING) -> str:
    """Return a digest of the source that changes with its images and folders.

    It changes if an image or a folder is added, removed, renamed, resized, rewritten or swapped with another.
    No image is read. In a directory only images and folders count, so a note or a ``.DS_Store`` does not
    change the digest. A zip is one file and counts as a whole.

    Raises:
        DataError: The path does not exist, or is not a zip.
    """
    with readable(path):
        stamps = (
            "\n".join(sorted(_stamps(path, selection))).encode(errors="surrogateescape")
            if path.is_dir()
            else _zip_stamps(path)
        )
    return blake2b(stamps + selection.key.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def read_bytes(source: Path, name: str) -> bytes:
    """Return the bytes of one file of a directory or .zip.

    Raises:
        DataError: The system cannot read the file: a disk or network error, no permission, too many open
            files. That says nothing about the image.
        ValueError: The member of a zip inflates to more than this machine's memory allows.
    """
    try:
        return (source / name).read_bytes() if source.is_dir() else open_zip(source).read(name)
    except OSError as error:
        # Of damaged data in a zip: bz2's error has no number, and an impossible position is invalid. A file
        # that has gone changes the fingerprint, so the images are decoded again.
        if error.errno in (None, errno.EINVAL, errno.ENOENT):
            raise
        where = source / name if source.is_dir() else source
        rule = "every file and folder must be readable"
        raise DataError(format_error(rule, got=str(error), where=str(where))) from error


def _stamps(root: Path, selection: Selection) -> Iterator[str]:
    for entry in walk(root, selection, Tally()):
        path = entry.path.removesuffix("/")
        if path != entry.path:
            if not selection.skips(path):
                yield path
        elif is_image_name(path) and not selection.ignores(path):
            status = entry.found.stat()
            yield f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{_identity(status)}"


def _identity(status: os.stat_result) -> str:
    """Return a string that changes if two files of equal size and modification time are swapped.

    The ctime changes if a file is swapped in place or by renaming. It also changes with the mode of a file;
    then the images are decoded again. If a whole folder is renamed, its files keep their ctime, and the
    inodes show the swap. Inodes are used only on file systems with a separate device, because network and
    FUSE mounts may give a file a new inode each time, and then every trial would decode again.
    """
    inode = status.st_ino if os.major(status.st_dev) else 0
    return f"{status.st_ctime_ns}\0{inode}"


def _zip_stamps(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_size}\0{status.st_mtime_ns}\n".encode() + directory_bytes(path)
