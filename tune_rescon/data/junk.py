"""What other programs leave among images: thumbnails, indexes, waste bins, earlier versions.

Only names that are known to be a program's are listed. An unknown hidden folder may be a class (``.net``).
"""

from __future__ import annotations

from typing import Final

__all__ = ["is_hidden", "is_junk_folder"]

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
