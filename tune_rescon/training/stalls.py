"""What never comes back: its process is ended, and the next one on this node does without.

A driver or a library may stand still in C, where no signal handler and no other thread of Python gets a turn,
and a GPU is paid for meanwhile. faulthandler's thread needs no turn: it writes down where each thread stands,
and ends the process. Its trial then goes on in another one, as after any death of a process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

__all__ = ["StallWatch"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StallWatch:
    """Watches over one kind of thing, in a folder that the processes of a node share.

    The file of a process that was ended here holds where it stood; that of one that died otherwise is empty,
    and says nothing.
    """

    folder: Path
    key: str
    """Of what is watched; equal where it would stand still again."""

    def found(self) -> Path | None:
        """Where it is written that an earlier process stood still, if one did."""
        for file in self.folder.glob(f"{self._stem}.*"):
            # Another process may just have come back, and taken its file away.
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_size:
                    return file
        return None

    @contextlib.contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        """End this process if the block is not left within ``seconds``. One block of a process at a time."""
        evidence = self.folder / f"{self._stem}.{os.getpid()}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = evidence.open("w")
        except OSError as error:
            _log.warning("nobody watches whether a recording comes back: %s", error)
            yield
            return
        with file:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                evidence.unlink(missing_ok=True)

    @property
    def _stem(self) -> str:
        return blake2b(self.key.encode(), digest_size=12).hexdigest()
