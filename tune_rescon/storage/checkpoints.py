"""Mirror the checkpoints of a trial to a URL while its process writes them on its own node.

The progress of a trial is read from its checkpoint files, so no other state is kept. Each file is sent whole
as soon as it is written, the best network before the state from which training resumes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tune_rescon.atomic_write import file_version
from tune_rescon.storage.remote import RemoteError, RemoteFolder

__all__ = ["CheckpointMirror"]

_log: Final = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CheckpointMirror:
    """The checkpoint files of one trial, on this node and at the URL."""

    local: Path
    remote: RemoteFolder
    names: Sequence[str]
    """The files to mirror, in the order of sending."""
    note: Callable[[str], None]
    """Called with a description of each failure; the trial continues."""
    timeout: float = 60.0
    """Seconds for which an unreachable URL is retried, before the first epoch and after the last one."""
    pause: float = 2.0
    """Seconds between two tries."""
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    _behind: bool = False
    """True if a failure was noted and not all files are at the URL since."""

    def fetch(self, progress: Callable[[Path], int]) -> None:
        """Replace the files in ``local`` by those at the URL if these have more progress.

        If the URL cannot be read, the trial resumes from the files on this node. A node without files starts
        the trial again from its first epoch, with the same results.

        Args:
            progress: returns the progress of the checkpoints in a folder.
        """
        self.local.mkdir(parents=True, exist_ok=True)
        arrived = self.local.with_name(f".{self.local.name}.arrived")
        shutil.rmtree(arrived, ignore_errors=True)
        try:
            if self._retry(lambda: self._download(arrived)) and progress(arrived) > progress(self.local):
                # The last file shows the progress. In this order, a process that is killed between two files
                # leaves no folder that seems to be complete.
                for name in self.names:
                    if (arrived / name).exists():
                        (arrived / name).replace(self.local / name)
                        self._sent[name] = file_version(self.local / name)
        finally:
            shutil.rmtree(arrived, ignore_errors=True)

    def send(self, *, retry: bool = False) -> None:
        """Send the files that have changed.

        A failure is noted once until all files are at the URL. The files are sent again after the next epoch.

        Args:
            retry: retry a failure for ``timeout`` seconds, because no epoch follows.
        """
        if retry:
            self._retry(self._upload)
            return
        try:
            self._upload()
        except RemoteError as error:
            if not self._behind:
                self.note(f"checkpoints are not in the storage yet: {error}")
            self._behind = True

    def release(self) -> None:
        """Delete this node's copies, unless a file is still missing at the URL.

        A failure is only logged, because the receiver of ``note`` no longer exists.
        """
        try:
            self._upload()
        except RemoteError as error:
            _log.warning("%s stays on this node: %s", self.local, error)
        else:
            shutil.rmtree(self.local, ignore_errors=True)

    def url(self, name: str) -> str | None:
        """Return the URL of a file; None if the file has not been sent yet."""
        return f"{self.remote.url}/{name}" if name in self._sent else None

    def _download(self, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            self.remote.download(name, target / name)

    def _upload(self) -> None:
        for name in self.names:
            path = self.local / name
            if path.is_file() and self._sent.get(name) != (version := file_version(path)):
                self.remote.upload(path, name)
                self._sent[name] = version
        self._behind = False

    def _retry(self, action: Callable[[], None]) -> bool:
        """Retry ``action`` for at most ``timeout`` seconds; return whether it succeeded."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                action()
            except RemoteError as error:
                if time.monotonic() + self.pause >= deadline:
                    self.note(f"the storage does not answer: {error}")
                    return False
                time.sleep(self.pause)
            else:
                return True
