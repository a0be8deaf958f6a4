"""A value at a URL that several machines may change; a change succeeds only if it replaces the current value.

Object stores have no locks and few support compare-and-swap, but they can refuse to create an existing key.
Each value is therefore a new file with the next number; the process that creates the file has made the
change::

    lease/0000000041.json      the past
    lease/0000000042.json      the value
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from tune_rescon.storage.remote import RemoteError, RemoteFolder

__all__ = ["SharedValue"]

_NAME: Final = re.compile(r"(\d{10})\.json")


class SharedValue:
    """Reads and replaces one JSON value. Every call may raise :class:`.RemoteError`."""

    #: Some stores cannot refuse an existing name. There, two processes that replace a value within
    #: milliseconds may both believe that they have succeeded, until they read the value again.
    read_back_seconds = 0.5

    def __init__(self, folder: RemoteFolder) -> None:
        """Store the value in ``folder``, which must contain nothing else."""
        self._folder = folder
        self._version = 0

    def read(self) -> dict[str, Any] | None:
        """Return the value that any process wrote last; None if no process has written one."""
        while versions := self._versions():
            self._version = max(versions)
            data = self._folder.read(_name(self._version))
            if data is None:
                # The file was replaced and deleted between the two calls, so a newer one exists.
                continue
            try:
                value: dict[str, Any] = json.loads(data)
            except ValueError:
                # On a file system, a writer may have created the file without filling it yet; an object is
                # whole.
                raise RemoteError(f"{self._folder.url} is being written") from None
            return value
        self._version = 0
        return None

    def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
        """Replace the value if it still is ``expected``; return whether ``value`` is the value now.

        Args:
            expected: the value that :meth:`read` returned.
            value: the new value. It must differ between writers (it names its holder), because a store that
                cannot refuse an existing name is read back after the write.
        """
        if self.read() != expected:
            return False
        name = _name(self._version + 1)
        if not self._folder.create(name, json.dumps(value).encode()):
            return False
        versions = self._versions()
        if max(versions) > self._version + 1:
            # The number was free again only because other writers had continued and deleted their old files.
            self._folder.delete(name)
            return False
        for old in versions:
            if old <= self._version:
                self._folder.delete(_name(old))
        return True

    def _versions(self) -> list[int]:
        matches = (_NAME.fullmatch(name) for name in self._folder.names())
        return [int(match[1]) for match in matches if match]


def _name(version: int) -> str:
    return f"{version:010d}.json"
