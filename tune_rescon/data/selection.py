"""Which files and folders of a source belong to it: a dataset's ``train``, ``val``, ``test`` and ``ignore``.

Folders of other programs (thumbnails, indexes, waste bins, earlier versions) never do. Only names that are
known to be a program's are listed. An unknown hidden folder may be a class (``.net``).
"""

from __future__ import annotations

import glob
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

from tune_rescon.config import DatasetConfig

__all__ = [
    "PARTS",
    "Selection",
    "as_pattern",
    "is_hidden",
    "is_junk_folder",
    "matches",
    "settling",
]


#: In lower case. Each of these programs writes images, or may not be read, or both.
_FOLDERS: Final = frozenset(
    {
        # Systems and their waste bins.
        *("__macosx", ".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems"),
        *(".appledouble", ".documentrevisions-v100", "$recycle.bin", "recycler", "system volume information"),
        *("lost+found", ".thumbnails", ".snapshot", ".snapshots", ".zfs"),
        # Network disks: Synology, QNAP.
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", ".@__thumb", "@recently-snapshot"),
        # Tools of programmers, and what syncs folders.
        *(".git", ".svn", ".hg", ".dvc", ".ipynb_checkpoints", "__pycache__", ".cache", ".idea", ".vscode"),
        *(".stfolder", ".stversions", ".sync", ".dropbox.cache", ".picasaoriginals"),
    }
)

#: A waste bin of each user: .Trash-1000.
_PREFIX: Final = ".trash-"


def is_junk_folder(name: str) -> bool:
    """Whether a folder of this name is another program's, whatever it holds.

    >>> is_junk_folder("@eaDir"), is_junk_folder(".Trash-1000"), is_junk_folder(".net")
    (True, True, False)
    """
    return name.lower() in _FOLDERS or name.lower().startswith(_PREFIX)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden: its name begins with a dot."""
    return name.startswith(".")


PARTS: Final = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which folders of a source are which part, and what is ignored; None: the usual names decide.

    Attributes:
        train: a folder inside the source, or a glob of folders; each holds class folders. ``.``: the source.
        val: likewise.
        test: likewise.
        ignore: globs, separated by commas. One without a slash matches names at any depth, one with a slash
            whole paths inside the source (``/extra``). What lies in an ignored folder is ignored too.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    ignore: str | None = None

    @classmethod
    def of(cls, dataset: DatasetConfig) -> Selection:
        """The selection that a dataset's section asks for."""
        return cls(train=dataset.train, val=dataset.val, test=dataset.test, ignore=dataset.ignore)

    @property
    def key(self) -> str:
        """What tells selections apart; empty for the default one, whose caches older versions made."""
        chosen = (self.train, self.val, self.test, self.ignore)
        return "" if chosen == (None,) * 4 else repr(chosen)

    def chosen(self, part: str) -> str | None:
        """The folder or glob of one part."""
        globs: dict[str, str | None] = {"train": self.train, "val": self.val, "test": self.test}
        return globs[part]

    def ignores(self, path: str) -> bool:
        """Whether ``ignore`` matches this path itself. What lies above it is the caller's question.

        >>> Selection(ignore="*_mask.png, extra/*").ignores("train/cat/1_mask.png")
        True
        """
        return bool(self._ignored) and any(
            matches(path, pattern.lstrip("/"))
            if "/" in pattern
            else fnmatchcase(path.rpartition("/")[2], pattern)
            for pattern in self._ignored
        )

    def keeps_out(self, folder: str) -> bool:
        """Whether a folder is not entered: it is ignored, or another program's."""
        return is_junk_folder(folder.rpartition("/")[2]) or self.ignores(folder)

    @cached_property
    def _ignored(self) -> tuple[str, ...]:
        patterns = (self.ignore or "").split(",")
        return tuple(plain for pattern in patterns if (plain := pattern.strip().rstrip("/")))


def matches(path: str, pattern: str) -> bool:
    """Whether a glob matches a whole path; ``*`` stays within one step, ``**`` spans any number of them.

    >>> matches("images/train", "images/tr*"), matches("images/train/cat", "images/*")
    (True, False)
    >>> matches("a/b/c", "**/c"), matches("c", "**/c")
    (True, True)
    """
    return _steps_match(path.split("/"), pattern.split("/"))


def _steps_match(steps: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not steps
    first, rest = patterns[0], patterns[1:]
    if first == "**":
        return any(_steps_match(steps[start:], rest) for start in range(len(steps) + 1))
    return bool(steps) and fnmatchcase(steps[0], first) and _steps_match(steps[1:], rest)


def as_pattern(path: str) -> str:
    """A glob for ``ignore`` that matches this path alone.

    >>> as_pattern("val"), as_pattern("photos/val[1]")
    ('/val', 'photos/val[[]1]')
    """
    # A comma separates globs.
    pattern = glob.escape(path).replace(",", "?")
    return pattern if "/" in pattern else f"/{pattern}"


def settling(field: str, value: str) -> str:
    """What settles an ambiguity, as it is typed.

    >>> settling("ignore", "/my val")
    "`--set 'dataset.ignore=/my val'`"
    """
    return f"`--set {shlex.quote(f'dataset.{field}={value}')}`"
