"""Find the folders of an image source that are its training, validation and test parts.

A usual name of a part may also be the name of a class, and a longer name (``train_images``, ``test1``) may be
either. An ambiguous layout raises an error, whose message contains the setting that resolves it.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NoReturn

from tune_rescon.data.image_tree import Tree, is_inside, join
from tune_rescon.data.selection import PARTS, Selection, as_pattern, matches, set_option
from tune_rescon.errors import DataError, format_error

__all__ = ["find_parts", "is_usual_name"]

Parts = dict[str, tuple[str, ...]]

_USUAL_NAMES: Final[Mapping[str, str]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
}

#: Further words of names that suggest a part.
_WORDS: Final[Mapping[str, str]] = {**_USUAL_NAMES, "trainset": "train", "valset": "val", "testset": "test"}

_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def find_parts(tree: Tree, selection: Selection, where: str) -> Parts:
    """Return the folders of each part in the source; each folder contains class folders.

    A part that ``selection`` names consists of the selected folders. If ``selection`` names ``train``, the
    source has only the selected parts. Otherwise usual names determine the parts in the rest of the source.

    Args:
        tree: The folders and images of the source.
        selection: The folders that the dataset configures for each part.
        where: Name of the source in error messages.

    Raises:
        DataError: A selected folder does not exist, or the usual names are ambiguous.
    """
    chosen = dict(_chosen(tree, selection, where))
    if "train" not in chosen:
        rest = tree.without([folder for folders in chosen.values() for folder in folders])
        chosen |= _Usual(rest, chosen, where).parts()
    return {part: chosen[part] for part in PARTS if part in chosen}


def _chosen(tree: Tree, selection: Selection, where: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    taken: dict[str, str] = {}
    for part in PARTS:
        pattern = selection.chosen(part)
        if pattern is None:
            continue
        folders = _matching(tree, pattern, part, where)
        for folder in folders:
            if folder in taken:
                rule = f"dataset.{taken[folder]} and dataset.{part} must name different folders"
                raise DataError(format_error(rule, got=folder or ".", where=where))
            taken[folder] = part
        yield part, folders


def _matching(tree: Tree, pattern: str, part: str, where: str) -> tuple[str, ...]:
    """Return the folders that match a part's pattern, from the root or below folders that wrap the source."""
    plain = "/".join(step for step in pattern.split("/") if step not in ("", "."))
    top = tree.top()
    if not plain:
        return (top,)
    found: list[str] = []
    for start in dict.fromkeys(("", top)):
        found = found or [f for f in tree.folders if f and matches(f, join(glob.escape(start), plain))]
    folders = tuple(sorted(found))
    if not folders:
        rule = f"dataset.{part} must name a folder inside the source, or be a glob of such folders"
        there = ", ".join(sorted(tree.filled(top))[:8]) or "none"
        raise DataError(format_error(rule, got=repr(pattern), where=where, hint=f"Folders there: {there}."))
    bare = [folder for folder in folders if not tree.filled(folder)]
    if bare:
        rule = f"dataset.{part} must name a folder that holds class folders"
        above = bare[0].rpartition("/")[0] or "."
        hint = f"If the class folders lie in {above}, write {set_option(part, above)}."
        raise DataError(
            format_error(rule, got=f"{bare[0]}, which holds none with images", where=where, hint=hint)
        )
    for outer in folders:
        inner = next((f for f in folders if f != outer and is_inside(f, outer)), None)
        if inner is not None:
            # Their images would be read twice, as images of two classes.
            rule = f"dataset.{part} must match no folder inside another one that it matches"
            raise DataError(format_error(rule, got=f"{outer} and {inner}", where=where))
    return folders


def is_usual_name(name: str) -> bool:
    """Return whether a folder with this name is usually a part.

    >>> is_usual_name("Dev"), is_usual_name("dog")
    (True, False)
    """
    return name.lower() in _USUAL_NAMES


def _suggested_part(name: str) -> str | None:
    """Return the part that one of the words in a folder's name suggests, or None.

    >>> [_suggested_part(name) for name in ("train_images", "seg_test", "val2017", "TrainSet", "strain")]
    ['train', 'test', 'val', 'train', None]
    """
    words = (word.lower() for word in _WORD.findall(name))
    return next((_WORDS[word] for word in words if word in _WORDS), None)


class _Usual:
    """The parts that usual names define in the folders outside the selected parts."""

    def __init__(self, tree: Tree, chosen: Collection[str], where: str) -> None:
        self._tree = tree
        self._chosen = chosen
        self._where = where
        self._top = tree.top()
        folders = tree.filled(self._top)
        named = sorted(filter(is_usual_name, folders))
        self._split = [name for name in named if tree.filled(self._path(name))]
        self._flat = [name for name in named if name not in self._split]
        self._others = sorted(folders - set(named))

    def parts(self) -> Parts:
        """Return the parts that were found and are not selected."""
        found: dict[str, str] = {}
        for name in self._split:
            part = _USUAL_NAMES[name.lower()]
            if part in self._chosen:
                continue
            if part in found:
                self._refuse_two(part, found[part], name)
            found[part] = name
        if not found:
            return self._classes()
        if "train" not in found:
            self._refuse_no_train(found)
        if self._tree.images[self._path(found["train"])] and self._others and len(found) == 1:
            self._refuse_train_or_class(found["train"])
        for name in self._flat:
            if _USUAL_NAMES[name.lower()] == "val" and "val" not in {*found, *self._chosen}:
                self._refuse_flat_val(name)
        return {part: (self._path(name),) for part, name in found.items()}

    def _classes(self) -> Parts:
        """Return one folder of classes as the training part.

        A class may be called ``train``, as in CIFAR-100. Classes with other usual names are ambiguous. So are
        longer names if one of them suggests training images and another one held-out images, and folders with
        usual names inside the class folders.
        """
        suggested = {
            name: part
            for name in sorted(self._tree.filled(self._top))
            if (part := _suggested_part(name)) is not None
        }
        if (
            len({*suggested.values()}) > 1
            and "train" in suggested.values()
            and set(suggested) - {*self._flat}
        ):
            self._refuse_suggested(suggested)
        if self._flat and not self._others:
            self._refuse_unsorted()
        if parts := self._parts_in_classes():
            self._refuse_parts_in_classes(parts)
        doubtful = [name for name in self._flat if name.lower() != "train" or len(self._flat) > 1]
        if doubtful:
            self._refuse_part_or_class(doubtful)
        return {"train": (self._top,)}

    def _parts_in_classes(self) -> list[str]:
        """Return the folders with names of parts inside class folders, if several of these are so divided."""
        inside = {
            name: sorted(filter(is_usual_name, self._tree.filled(self._path(name))))
            for name in sorted(self._tree.filled(self._top))
        }
        divided = [
            name for name, names in inside.items() if len({_USUAL_NAMES[one.lower()] for one in names}) > 1
        ]
        return [join(name, one) for name in divided for one in inside[name]] if len(divided) > 1 else []

    def _path(self, name: str) -> str:
        return join(self._top, name)

    def _choosing(self, part: str, name: str) -> str:
        """Return the option that makes a folder a part."""
        return set_option(part, glob.escape(self._path(name)))

    def _refuse_two(self, part: str, first: str, second: str) -> NoReturn:
        got = f"{self._path(first)} and {self._path(second)}"
        lines = " or ".join(self._choosing(part, name) for name in (second, first))
        self._refuse(f"one folder may hold the {part} part", got, f"Choose one: {lines}.")

    def _refuse_no_train(self, found: Mapping[str, str]) -> NoReturn:
        flat = [name for name in self._flat if _USUAL_NAMES[name.lower()] == "train"]
        if flat:
            rule = f"{flat[0]}/ must hold class folders, as {next(iter(found.values()))}/ does"
            hint = f"Sort its images into {flat[0]}/CLASS/."
            self._refuse(rule, "images without class folders", hint)
        parts = " ".join(self._choosing(part, name) for part, name in found.items())
        training = [name for name in self._others if _suggested_part(name) == "train"]
        if training:
            hint = f"If {training[0]}/ is the training part: {self._choosing('train', training[0])} {parts}."
        elif self._others:
            hint = (
                f"If the other folders are the classes to train on: {set_option('train', '.')} {parts}."
                f" If all of them are classes: {set_option('train', '.')}."
            )
        else:
            hint = f"Name the folder that trains: {self._choosing('train', next(iter(found.values())))}."
        rule = "a folder with validation or test images needs train/ beside them"
        self._refuse(rule, ", ".join(sorted(self._tree.filled(self._top))), hint)

    def _refuse_train_or_class(self, name: str) -> NoReturn:
        self._refuse(
            f"{name}/ must be the training part or a class",
            f"images directly in it, class folders in it, and {', '.join(self._others[:5])} beside it",
            f"If it is the training part: {self._choosing('train', name)}."
            f" If it is a class: {set_option('train', '.')}.",
        )

    def _refuse_flat_val(self, name: str) -> NoReturn:
        self._refuse(
            f"{name}/ must hold class folders to be the validation part",
            "images without class folders",
            f"Sort them into {name}/CLASS/. Or do without them, and hold out a share of the training images:"
            f" {set_option('ignore', as_pattern(self._path(name)))}.",
        )

    def _refuse_unsorted(self) -> NoReturn:
        classes = (
            f" If these folders are the classes: {set_option('train', '.')}." if len(self._flat) > 1 else ""
        )
        training = [name for name in self._flat if _USUAL_NAMES[name.lower()] == "train"]
        self._refuse(
            "images must lie in class folders; an image folder needs 2 or more classes",
            f"images directly in {_folders(self._flat)}, which are in no class's folder",
            f"Sort the images into {[*training, *self._flat][0]}/CLASS/.{classes}",
        )

    def _refuse_suggested(self, suggested: Mapping[str, str]) -> NoReturn:
        """Refuse folders whose names suggest parts, such as train_images/ and test_images/."""
        holders = {name: self._tree.top(self._path(name)) for name in suggested}
        split = {
            part: name for name, part in reversed([*suggested.items()]) if self._tree.filled(holders[name])
        }
        training = next(name for name, part in suggested.items() if part == "train")
        if "train" in split:
            lines = (set_option(part, glob.escape(holders[split[part]])) for part in PARTS if part in split)
            hint = f"If they are parts: {' '.join(lines)}."
        else:
            hint = f"If they are parts, sort the training images into {training}/CLASS/."
        self._refuse(
            f"{_folders([*suggested])} must be parts of the data set or classes",
            "names that suggest parts",
            f"{hint} If all folders are classes: {set_option('train', '.')}.",
        )

    def _refuse_parts_in_classes(self, parts: Sequence[str]) -> NoReturn:
        """Refuse CLASS/train/ and CLASS/test/: the test images would be training images."""
        hint = "If they are parts, move their images to train/CLASS/, val/CLASS/ and test/CLASS/."
        if all(self._tree.filled(self._path(one)) for one in parts):
            above = join(glob.escape(self._top), "*")
            names = dict.fromkeys(one.rpartition("/")[2] for one in parts)
            lines = (set_option(_USUAL_NAMES[name.lower()], join(above, name)) for name in names)
            hint = f"If they are parts, each with class folders: {' '.join(lines)}."
        self._refuse(
            f"{_folders(parts[:2])} must be parts of the data set, or folders of one class",
            "folders with the names of parts inside class folders",
            f"{hint} If all of them belong to their class: {set_option('train', '.')}.",
        )

    def _refuse_part_or_class(self, doubtful: list[str]) -> NoReturn:
        ignored = ",".join(as_pattern(self._path(name)) for name in doubtful)
        self._refuse(
            f"{_folders(doubtful)} must be a part of the data set or a class",
            f"images without class folders, beside {', '.join(self._others[:5])}",
            f"If it is a class: {set_option('train', '.')}."
            f" If it is to be left out: {set_option('ignore', ignored)}.",
        )

    def _refuse(self, rule: str, got: str, hint: str) -> NoReturn:
        raise DataError(format_error(rule, got=got, where=join(self._where, self._top), hint=hint))


def _folders(names: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in names)
