"""A trial's checkpoints, kept at a URL while its process writes them on its own node.

The files themselves say how far a trial has come, so nothing else is kept about them: each is sent whole, the
best network before the state training goes on from, as they are written.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tune_rescon.storage.remote import RemoteError, RemoteFolder

__all__ = ["CheckpointMirror"]

_log: Final = logging.getLogger(__name__)

#: Seconds a trial waits, before its first epoch and after its last, for a URL that does not answer.
PATIENCE: Final = 60.0

#: Seconds between its tries.
PAUSE: Final = 2.0


@dataclass(kw_only=True)
class CheckpointMirror:
    """One trial's files, here and at the URL."""

    local: Path
    remote: RemoteFolder
    names: Sequence[str]
    """The files to keep there, in the order they are sent."""
    note: Callable[[str], None]
    """Told what went wrong; the trial goes on."""
    patience: float = PATIENCE
    pause: float = PAUSE
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    _behind: bool = False

    def fetch(self, progress: Callable[[Path], int]) -> None:
        """Have in ``local`` the copy that is further, by ``progress(folder)``; this node's if they are equal.

        If the URL cannot be read, the trial goes on from what this node has: from its start, at worst, which
        repeats epochs but changes none.
        """
        self.local.mkdir(parents=True, exist_ok=True)
        arrived = self.local.with_name(f".{self.local.name}.arrived")
        shutil.rmtree(arrived, ignore_errors=True)
        try:
            if self._insist(lambda: self._download(arrived)) and progress(arrived) > progress(self.local):
                for path in arrived.iterdir():
                    path.replace(self.local / path.name)
                    self._sent[path.name] = _version(self.local / path.name)
        finally:
            shutil.rmtree(arrived, ignore_errors=True)

    def send(self, *, insist: bool = False) -> None:
        """Send what is new. What fails is noted, once until all is there, and sent with the next epoch's.

        ``insist``: there is no next one, so try for a while.
        """
        if insist:
            self._insist(self._upload)
            return
        try:
            self._upload()
        except RemoteError as error:
            if not self._behind:
                self.note(f"checkpoints are not in the storage yet: {error}")
            self._behind = True

    def release(self) -> None:
        """Delete this node's copies, unless something is not at the URL even now.

        Nothing is noted: whoever was told is gone by now.
        """
        try:
            self._upload()
        except RemoteError as error:
            _log.warning("%s stays on this node: %s", self.local, error)
        else:
            shutil.rmtree(self.local, ignore_errors=True)

    def url(self, name: str) -> str | None:
        """Where a file is; None if it has not been sent yet."""
        return f"{self.remote.url}/{name}" if name in self._sent else None

    def _download(self, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            self.remote.download(name, target / name)

    def _upload(self) -> None:
        for name in self.names:
            path = self.local / name
            if path.is_file() and self._sent.get(name) != (version := _version(path)):
                self.remote.upload(path, name)
                self._sent[name] = version
        self._behind = False

    def _insist(self, action: Callable[[], None]) -> bool:
        """Try for a while; whether it was done."""
        deadline = time.monotonic() + self.patience
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


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
