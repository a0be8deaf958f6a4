"""A small JSON value at a URL that several machines read and write: what a lease needs."""

from __future__ import annotations

import json
from typing import Any

from tune_rescon.storage.register import Register
from tune_rescon.storage.remote import RemoteError, RemoteFolder

__all__ = ["SharedValue"]


class SharedValue:
    """Reads and writes one value. Every call may raise :class:`.RemoteError`."""

    def __init__(self, folder: RemoteFolder) -> None:
        """Keep it in ``folder``, which holds nothing else."""
        self._url = folder.url
        self._register = Register(folder)
        self._version = 0

    def read(self) -> dict[str, Any] | None:
        """What was written last, by whomever; None if nothing ever was."""
        entry = self._register.read()
        self._version = entry.version if entry else 0
        if entry is None:
            return None
        try:
            value: dict[str, Any] = json.loads(entry.data)
        except ValueError:
            # A file system whose writer has made the file and not yet filled it; an object is whole.
            raise RemoteError(f"{self._url} is being written") from None
        return value

    def write(self, value: dict[str, Any]) -> None:
        """Replace what :meth:`read` gave last. ``value`` must tell writers apart.

        If somebody else has replaced that in the meantime nothing is written: as if theirs had come right
        after this one.
        """
        if self._register.replace(self._version, json.dumps(value).encode()):
            self._version += 1
