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
from dataclasses import dataclass
from typing import Any, Final

from tune_rescon.storage.remote import RemoteError, RemoteFolder

__all__ = [
    "Register",
    "RegisterEntry",
    "SharedValue",
]


class SharedValue:
    """Reads and replaces one JSON value. Every call may raise :class:`.RemoteError`."""

    #: Some stores cannot refuse an existing name. There, two processes that replace a value within
    #: milliseconds may both believe that they have succeeded, until they read the value again.
    read_back_seconds = 0.5

    def __init__(self, folder: RemoteFolder) -> None:
        """Store the value in ``folder``, which must contain nothing else."""
        self._url = folder.url
        self._register = Register(folder)
        self._version = 0

    def read(self) -> dict[str, Any] | None:
        """Return the value that any process wrote last; None if no process has written one."""
        entry = self._register.read()
        self._version = entry.version if entry else 0
        if entry is None:
            return None
        try:
            value: dict[str, Any] = json.loads(entry.data)
        except ValueError:
            # On a file system, a writer may have created the file without filling it yet; an object is whole.
            raise RemoteError(f"{self._url} is being written") from None
        return value

    def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
        """Replace the value if it still is ``expected``; return whether it was replaced.

        Args:
            expected: the value that :meth:`read` returned.
            value: the new value. It must differ between writers.
        """
        return self.read() == expected and self._register.replace(self._version, json.dumps(value).encode())


_NAME: Final = re.compile(r"(\d{10})\.json")


@dataclass(frozen=True, kw_only=True)
class RegisterEntry:
    """A value and its number."""

    version: int
    """1, 2, ..., one more for each change."""
    data: bytes


class Register:
    """The numbered files of one folder. Every call may raise :class:`.RemoteError`."""

    def __init__(self, folder: RemoteFolder) -> None:
        """Use ``folder``, which must contain nothing else."""
        self._folder = folder

    def read(self) -> RegisterEntry | None:
        """Return the current value; None if no value was ever written."""
        while (version := self._newest()) > 0:
            data = self._folder.read(_name(version))
            # None: the file was replaced and deleted between the two calls, so a newer one exists.
            if data is not None:
                return RegisterEntry(version=version, data=data)
        return None

    def replace(self, version: int, data: bytes) -> bool:
        """Replace the value by ``data`` if the current one still has number ``version``.

        After a RemoteError, call :meth:`read` again.

        Args:
            version: the number of the current value; 0 if there is no value.
            data: the new value. It must differ between writers (it names its holder), because a store that
                cannot refuse an existing name is read back after the write.

        Returns:
            True if ``data`` is the value now; False if another writer's value is.
        """
        name = _name(version + 1)
        if not self._folder.create(name, data):
            return False
        versions = self._versions()
        if max(versions) > version + 1:
            # The number was free again only because other writers had continued and deleted their old files.
            self._folder.delete(name)
            return False
        for old in versions:
            if old <= version:
                self._folder.delete(_name(old))
        return True

    def _newest(self) -> int:
        return max(self._versions(), default=0)

    def _versions(self) -> list[int]:
        matches = (_NAME.fullmatch(name) for name in self._folder.names())
        return [int(match[1]) for match in matches if match]


def _name(version: int) -> str:
    return f"{version:010d}.json"
