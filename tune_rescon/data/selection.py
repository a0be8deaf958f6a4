"""The files and folders of a source that are read, and the account of those that are left out.

A dataset's ``train``, ``val``, ``test`` and ``ignore`` select them. Folders of other programs (thumbnails,
indexes, recycle bins, earlier versions) are never selected. Only known names of such folders are listed,
because an unknown hidden folder may be a class (``.net``).

No file is left out silently: a dry run, the start of a search, its report and its record show the account.
"""

from __future__ import annotations

import glob
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Final

from tune_rescon.config import DatasetConfig
from tune_rescon.errors import counted

__all__ = [
    "PARTS",
    "Account",
    "Kind",
    "LeftOut",
    "Selection",
    "Tally",
    "as_pattern",
    "as_text",
    "folded",
    "is_hidden",
    "is_junk_folder",
    "left_out_lines",
    "matches",
    "normalized",
    "set_option",
]


#: Names in lower case. Each of these folders contains images of a program, or cannot be read, or both.
_FOLDERS: Final = frozenset(
    {
        # Operating systems and their recycle bins.
        *("__macosx", ".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems"),
        *(".appledouble", ".documentrevisions-v100", "$recycle.bin", "recycler", "system volume information"),
        *("lost+found", ".thumbnails", ".snapshot", ".snapshots", ".zfs"),
        # Network disks: Synology, QNAP.
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", ".@__thumb", "@recently-snapshot"),
        # Tools of programmers and of folder synchronisation.
        *(".git", ".svn", ".hg", ".dvc", ".ipynb_checkpoints", "__pycache__", ".cache", ".idea", ".vscode"),
        *(".stfolder", ".stversions", ".sync", ".dropbox.cache", ".picasaoriginals"),
    }
)

#: Prefix of the recycle bin of one user: .Trash-1000.
_PREFIX: Final = ".trash-"


def is_junk_folder(name: str) -> bool:
    """Return whether a folder with this name belongs to another program, independent of its contents.

    >>> is_junk_folder("@eaDir"), is_junk_folder(".Trash-1000"), is_junk_folder(".net")
    (True, True, False)
    """
    return name.lower() in _FOLDERS or name.lower().startswith(_PREFIX)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden: its name begins with a dot."""
    return name.startswith(".")


PARTS: Final = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The folders of each part of a source, and the ignored files; None: the usual names decide.

    Attributes:
        train: A folder inside the source, or a glob of folders, each of which contains class folders. ``.``
            is the source.
        val: Like ``train``, for the validation part.
        test: Like ``train``, for the test part.
        ignore: Globs, separated by commas. A glob without a slash matches names at any depth; a glob with a
            slash matches whole paths inside the source (``/extra``). The contents of an ignored folder are
            ignored too.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    ignore: str | None = None

    @classmethod
    def of(cls, dataset: DatasetConfig) -> Selection:
        """Return the selection that a dataset's section configures."""
        return cls(train=dataset.train, val=dataset.val, test=dataset.test, ignore=dataset.ignore)

    @property
    def key(self) -> str:
        """String that identifies the selection; empty for the default, so that older caches stay valid."""
        chosen = (self.train, self.val, self.test, self.ignore)
        return "" if chosen == (None,) * 4 else repr(chosen)

    def chosen(self, part: str) -> str | None:
        """Return the folder or glob of one part."""
        pattern: str | None = getattr(self, part)
        return pattern

    def ignores(self, path: str) -> bool:
        """Return whether ``ignore`` matches this path itself. The caller checks the folders above it.

        >>> Selection(ignore="*_mask.png, extra/*").ignores("train/cat/1_mask.png")
        True
        """
        if not self._ignored:
            return False
        path = normalized(path)
        return any(_is_ignored(path, pattern) for pattern in self._ignored)

    def unused(self, paths: Iterable[str]) -> list[str]:
        """Return the globs of ``ignore`` that match none of these paths.

        >>> Selection(ignore="*_mask.png, extar").unused(["cat/1_mask.png", "extra"])
        ['extar']
        """
        found = [normalized(path) for path in paths]
        return [one for one in self._ignored if not any(_is_ignored(path, one) for path in found)]

    def skips(self, folder: str) -> bool:
        """Return whether a folder is skipped, because it is ignored or belongs to another program."""
        return is_junk_folder(folder.rpartition("/")[2]) or self.ignores(folder)

    @cached_property
    def _ignored(self) -> tuple[str, ...]:
        patterns = normalized(self.ignore or "").split(",")
        return tuple(plain for pattern in patterns if (plain := pattern.strip().rstrip("/")))


def _is_ignored(path: str, pattern: str) -> bool:
    if "/" in pattern:
        return matches(path, pattern.lstrip("/"))
    return fnmatchcase(path.rpartition("/")[2], pattern)


def matches(path: str, pattern: str) -> bool:
    """Return whether a glob matches a whole path.

    ``*`` matches within one component of the path; ``**`` matches any number of components.

    >>> matches("images/train", "images/tr*"), matches("images/train/cat", "images/*")
    (True, False)
    >>> matches("a/b/c", "**/c"), matches("c", "**/c")
    (True, True)
    """
    return _steps_match(normalized(path).split("/"), normalized(pattern).split("/"))


def normalized(name: str) -> str:
    """Return a name in the form used for comparison: macOS writes accents as separate characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", as_text(name))


def folded(name: str) -> str:
    """Return the name of a class without its case and without spaces that a reader may overlook.

    >>> folded("Great  Dane ") == folded("great dane")
    True
    """
    return " ".join(name.split()).casefold()


def _steps_match(steps: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not steps
    first, rest = patterns[0], patterns[1:]
    if first == "**":
        return any(_steps_match(steps[start:], rest) for start in range(len(steps) + 1))
    return bool(steps) and fnmatchcase(steps[0], first) and _steps_match(steps[1:], rest)


def as_pattern(path: str) -> str:
    """Return a glob for ``ignore`` that matches only this path.

    >>> as_pattern("val"), as_pattern("photos/val[1]")
    ('/val', 'photos/val[[]1]')
    """
    # A comma would separate two globs.
    pattern = glob.escape(path).replace(",", "?")
    return pattern if "/" in pattern else f"/{pattern}"


def set_option(field: str, value: str) -> str:
    """Return the command-line option that resolves an ambiguity, as the user types it.

    >>> set_option("ignore", "/my val")
    "`--set 'dataset.ignore=/my val'`"
    """
    return f"`--set {shlex.quote(f'dataset.{field}={value}')}`"


#: Maximum number of names that the account lists for each kind.
_NAMED: Final = 3

#: Maximum number of classes for which a line lists the count of each class. With more classes, the line lists
#: only the smallest and the largest class.
_FEW_CLASSES: Final = 10


class Kind(StrEnum):
    """Reasons why files and folders are left out. docs/howto/images.md explains each reason."""

    OUTSIDE = "images outside train, val and test"
    NO_CLASS = "images without a class folder"
    IN_HIDDEN = "images in hidden folders beside images"
    HIDDEN = "hidden files"
    IGNORED = "ignored by dataset.ignore"
    FORMAT = "images of formats that are not read"
    OTHER = "files that are no images"
    EMPTY = "folders without images"
    TOOLS = "folders of other programs"
    DANGLING = "links that lead nowhere"
    LOOP = "links back to a folder above"
    SPECIAL = "neither files nor folders"
    ZIP_LINK = "links inside the zip"
    REPEATED = "earlier entries of the same name in the zip"
    BROKEN = "images that cannot be decoded"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The files or folders that are left out for one reason.

    Attributes:
        kind: The reason, a value of :class:`Kind`.
        count: Number of files or folders.
        names: The first names in sorted order.
    """

    kind: str
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Account:
    """The result of a listing, or of decoding what was listed.

    Attributes:
        class_names: Class names in the order of the labels.
        per_class: Number of images of each class, for each part (train, val, test).
        left_out: All other files and folders, by kind.
        remarks: Further lines for the user, about a layout that may mean something else.
    """

    class_names: tuple[str, ...]
    per_class: Mapping[str, tuple[int, ...]]
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def images(self) -> dict[str, int]:
        """Number of images of each part."""
        return {part: sum(counts) for part, counts in self.per_class.items()}

    @property
    def broken(self) -> int:
        """Number of images that are left out because they cannot be decoded."""
        return sum(one.count for one in self.left_out if one.kind == Kind.BROKEN)

    def without(self, broken: Sequence[tuple[str, int, str]]) -> Account:
        """Return the account without images that cannot be decoded: the part, class and name of each."""
        tally = Tally()
        per_class = {part: [*counts] for part, counts in self.per_class.items()}
        for part, label, name in broken:
            per_class[part][label] -= 1
            tally.add(Kind.BROKEN, name)
        return replace(
            self,
            per_class={part: tuple(counts) for part, counts in per_class.items()},
            left_out=(*self.left_out, *tally.left_out()),
        )

    def lines(self) -> list[str]:
        """Return the account as text: a line for the files that are read, and one for each kind left out.

        >>> Account(class_names=("cat", "dog"), per_class={"train": (3, 4), "val": (0, 0)}).lines()
        ['found 2 classes; images: train 7 (cat 3, dog 4), val 0']
        >>> Account(class_names=("cat", "dog"), per_class={"train": (3, 4), "val": (0, 2)}).lines()[1]
        'val has no images of cat: no value says how well a network does there'
        >>> Account(class_names=("Cat", "cat"), per_class={"train": (3, 4)}).lines()[1].partition(";")[0]
        "names of classes differ only in case or spaces: 'Cat' and 'cat'"
        """
        parts = [
            f"{part} {count}" + (f" ({self._spread(part)})" if part == "train" else "")
            for part, count in self.images.items()
        ]
        found = f"found {counted(len(self.class_names), 'class', 'classes')}; images: {', '.join(parts)}"
        hidden = [name for name in self.class_names if name.startswith(".")]
        as_classes = (
            [f"hidden folders read as classes: {_first(hidden[:_NAMED], len(hidden))}"] if hidden else []
        )
        remarks = [*self._unseen(), *self._alike(), *self.remarks, *as_classes]
        return [found, *remarks, *left_out_lines(self.left_out)]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for the record and for :meth:`from_json`."""
        return {
            "class_names": list(self.class_names),
            "images": self.images,
            "per_class": {part: list(counts) for part, counts in self.per_class.items()},
            "left_out": [
                {"kind": one.kind, "count": one.count, "names": list(one.names)} for one in self.left_out
            ],
            **({"remarks": list(self.remarks)} if self.remarks else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Account:
        """Create the account from the result of :meth:`to_json`."""
        return cls(
            class_names=tuple(values["class_names"]),
            per_class={part: tuple(counts) for part, counts in values["per_class"].items()},
            left_out=tuple(
                LeftOut(kind=one["kind"], count=one["count"], names=tuple(one["names"]))
                for one in values["left_out"]
            ),
            remarks=tuple(values.get("remarks", ())),
        )

    def _unseen(self) -> Iterator[str]:
        """Yield a line for each part that has images, and none of some class."""
        for part, counts in self.per_class.items():
            absent = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
            if any(counts) and absent:
                shown = _first(absent[:_NAMED], len(absent))
                yield f"{part} has no images of {shown}: no value says how well a network does there"

    def _alike(self) -> Iterator[str]:
        """Yield a line if the names of classes differ only in case or spaces, as those of one class may."""
        names: dict[str, list[str]] = defaultdict(list)
        for name in self.class_names:
            names[folded(name)].append(f"'{as_text(name)}'")
        groups = [" and ".join(group) for group in names.values() if len(group) > 1]
        if groups:
            shown = _first(groups[:_NAMED], len(groups))
            yield (
                f"names of classes differ only in case or spaces: {shown}; merge their folders if they are"
                " one class"
            )

    def _spread(self, part: str) -> str:
        counts = dict(zip(self.class_names, self.per_class[part], strict=True))
        if len(counts) <= _FEW_CLASSES:
            return ", ".join(f"{name} {count}" for name, count in counts.items())
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        return f"{counts[least]} of {least} to {counts[most]} of {most}"


@dataclass
class Tally:
    """Collects the left-out files while a source is listed."""

    _names: dict[Kind, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: Kind, *names: str) -> None:
        """Record that these files are left out."""
        self._names[kind] += names

    def names(self, *kinds: Kind) -> list[str]:
        """Return the recorded files and folders of these kinds."""
        return [name for kind in kinds for name in self._names.get(kind, ())]

    def left_out(self, *expected: Kind) -> tuple[LeftOut, ...]:
        """Return the recorded files in the order of :class:`Kind`; a name recorded twice counts once.

        Args:
            expected: Kinds that are returned also with a count of 0.
        """
        found = ((kind, sorted(set(self._names.get(kind, ())))) for kind in Kind)
        return tuple(
            LeftOut(kind=kind.value, count=len(names), names=tuple(names[:_NAMED]))
            for kind, names in found
            if names or kind in expected
        )


def left_out_lines(left_out: Iterable[LeftOut]) -> list[str]:
    """Return a line of text for each kind.

    >>> left_out_lines([LeftOut(kind="hidden files", count=5, names=("a/._1.png", "a/._2.png"))])
    ['left out, hidden files: 5 (a/._1.png, a/._2.png, ...)']
    """
    return [
        f"left out, {one.kind}: {one.count}" + (f" ({_first(one.names, one.count)})" if one.names else "")
        for one in left_out
    ]


def as_text(name: str) -> str:
    r"""Return a file name that every encoding can hold: bytes that are no UTF-8 become \xe9 and the like.

    Python has lone surrogates for such bytes, which older programs and disks write.

    >>> as_text("caf\udce9")
    'caf\\xe9'
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _first(names: Sequence[str], count: int) -> str:
    # A name may contain a line break.
    shown = [as_text(name) for name in names]
    shown = [name if name.isprintable() else repr(name) for name in shown]
    return ", ".join(shown + (["..."] if count > len(names) else []))
