"""A worker's checkpoints, where the storage is a URL: from there before a trial, there after each epoch.

Where the storage is a directory every node has, they are written into it, and there is nothing to do.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tune_rescon.storage import CheckpointMirror

__all__ = ["CheckpointSync", "synchronised"]


class CheckpointSync(Protocol):
    """What a trial's loop asks for. Neither call raises: a trial does not end because a copy is late."""

    def send(self, *, last: bool) -> None:
        """Have kept what was written since; ``last``: no epoch comes after this one."""

    def kept(self, path: Path) -> str | None:
        """Where any machine finds a file of the folder; None if it is on this node only."""


class _InPlace:
    """The folder is where the checkpoints are kept."""

    def send(self, *, last: bool) -> None:
        """Nothing to do."""

    def kept(self, path: Path) -> str | None:
        """The file itself."""
        return str(path)


class _AtUrl:
    """The folder is this node's own."""

    def __init__(self, mirror: CheckpointMirror) -> None:
        self._mirror = mirror

    def send(self, *, last: bool) -> None:
        """Send what is new."""
        self._mirror.send(insist=last)

    def kept(self, path: Path) -> str | None:
        """The file's URL, once it is there."""
        return self._mirror.url(path.name)


@contextlib.contextmanager
def synchronised(
    folder: Path,
    url: str | None,
    *,
    names: Sequence[str],
    progress: Callable[[Path], int],
    note: Callable[[str], None],
) -> Iterator[CheckpointSync]:
    """For the time of the block, ``folder`` holds what there is of a trial, here or at ``url``.

    Args:
        folder: the trial's checkpoints; if there is a URL, in a folder of this run of the search.
        url: where they are kept; None: where they are.
        names: the files to keep, in the order they are written.
        progress: how far a folder has come by its files, in any unit.
        note: told what fails.

    Raises:
        StorageError: this node cannot use the URL at all (a package is missing).
    """
    if url is None:
        yield _InPlace()
        return
    from tune_rescon.storage import CheckpointMirror, RemoteFolder, StorageUrl

    _forget_other_runs(folder.parent)
    remote = RemoteFolder.connect(StorageUrl(url=url))
    mirror = CheckpointMirror(local=folder, remote=remote, names=names, note=note)
    mirror.fetch(progress)
    try:
        yield _AtUrl(mirror)
    finally:
        mirror.release()


def _forget_other_runs(run: Path) -> None:
    """Delete what earlier runs of the search left on this node: their workers were killed."""
    if run.parent.is_dir():
        for other in run.parent.iterdir():
            if other != run:
                shutil.rmtree(other, ignore_errors=True)
