"""Select the files and folders of a source by a dataset's ``train``, ``val``, ``test`` and ``ignore``.

Folders of other programs (thumbnails, indexes, recycle bins, earlier versions) are never selected. Only known
names of such folders are listed, because an unknown hidden folder may be a class (``.net``).
"""

from __future__ import annotations

import glob
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final

from tune_rescon.config import DatasetConfig
from tune_rescon.data.account import as_text

__all__ = [
    "PARTS",
    "Selection",
    "as_pattern",
    "is_hidden",
    "is_junk_folder",
    "matches",
    "normalized",
    "settling",
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
        globs: dict[str, str | None] = {"train": self.train, "val": self.val, "test": self.test}
        return globs[part]

    def ignores(self, path: str) -> bool:
        """Return whether ``ignore`` matches this path itself. The caller checks the folders above it.

        >>> Selection(ignore="*_mask.png, extra/*").ignores("train/cat/1_mask.png")
        True
        """
        if not self._ignored:
            return False
        path = normalized(path)
        return any(
            matches(path, pattern.lstrip("/"))
            if "/" in pattern
            else fnmatchcase(path.rpartition("/")[2], pattern)
            for pattern in self._ignored
        )

    def keeps_out(self, folder: str) -> bool:
        """Return whether a folder is skipped, because it is ignored or belongs to another program."""
        return is_junk_folder(folder.rpartition("/")[2]) or self.ignores(folder)

    @cached_property
    def _ignored(self) -> tuple[str, ...]:
        patterns = normalized(self.ignore or "").split(",")
        return tuple(plain for pattern in patterns if (plain := pattern.strip().rstrip("/")))


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


def settling(field: str, value: str) -> str:
    """Return the command-line option that resolves an ambiguity, as the user types it.

    >>> settling("ignore", "/my val")
    "`--set 'dataset.ignore=/my val'`"
    """
    return f"`--set {shlex.quote(f'dataset.{field}={value}')}`"
