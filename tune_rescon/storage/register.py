"""A value at a URL that several machines may change, each change taking what it replaces for granted.

Object stores have no lock and few can compare and swap, but they can refuse to make a key that is there.
So every value is a new file with the next number, and the one who makes it has made the change::

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


_NAME: Final = re.compile(r"(\d{10})\.json")


@dataclass(frozen=True, kw_only=True)
class RegisterEntry:
    """A value and its number."""

    version: int
    """1, 2, ..."""
    data: bytes


class Register:
    """The numbered files of one folder. Every call may raise :class:`.RemoteError`."""

    def __init__(self, folder: RemoteFolder) -> None:
        """Use ``folder``, which holds nothing else."""
        self._folder = folder

    def read(self) -> RegisterEntry | None:
        """The present value; None if there has never been one."""
        while (version := self._newest()) > 0:
            data = self._folder.read(_name(version))
            # None: replaced and deleted between the two calls; there is a newer one.
            if data is not None:
                return RegisterEntry(version=version, data=data)
        return None

    def replace(self, version: int, data: bytes) -> bool:
        """Make ``data`` the value if the present one still has number ``version`` (0: there is none).

        ``data`` must tell writers apart (it names its holder), because a store that cannot refuse an
        existing name is read back. False: the value is another's. After a RemoteError, read again.
        """
        name = _name(version + 1)
        if not self._folder.create(name, data):
            return False
        versions = self._versions()
        if max(versions) > version + 1:
            # The number was free again only because others went on and have cleared up behind them.
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
