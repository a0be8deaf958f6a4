"""Where searches are kept: a directory, or a URL that fsspec understands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tune_rescon.errors import StorageError, explain

__all__ = ["StorageUrl", "parse_storage"]

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Schemes that name a directory of this machine: no mirror is needed there.
_LOCAL: Final = ("file", "local")


@dataclass(frozen=True, kw_only=True)
class StorageUrl:
    """A storage that is no directory, such as ``s3://bucket/prefix``.

    Nothing can be run in it: SQLite needs a real file. A search works in a scratch directory of its machine
    and keeps what matters at the URL.
    """

    url: str
    """Without a slash at its end."""

    def __str__(self) -> str:
        """The URL."""
        return self.url

    @property
    def scheme(self) -> str:
        """What comes before ``://``."""
        return self.url.partition("://")[0]

    def of(self, name: str) -> str:
        """The URL of something in it.

        >>> StorageUrl(url="s3://bucket/runs").of("a/space.yaml")
        's3://bucket/runs/a/space.yaml'
        """
        return f"{self.url}/{name}"


def parse_storage(text: str, *, where: str = "--storage") -> Path | StorageUrl:
    """What ``--storage`` names, or another flag that takes a place (``where``).

    A leading ``~/`` is the home directory, also where no shell has expanded it (``--storage=~/runs``).

    >>> parse_storage("s3://bucket/runs/")
    StorageUrl(url='s3://bucket/runs')
    >>> parse_storage("file:///mnt/shared") == parse_storage("/mnt/shared")
    True

    Raises:
        StorageError: a URL of several file systems (``simplecache::s3://...``), or one that names no place.
    """
    if "::" in text and "://" in text:
        rule = "must be a directory, or the URL of one file system"
        hint = "Leave out what stands before the last `::`."
        raise StorageError(explain(rule, got=repr(text), where=where, hint=hint))
    if not _SCHEME.match(text):
        return _expanded(text, where)
    scheme, _, place = text.partition("://")
    if not place.strip("/"):
        rule = "must name a bucket or a directory after `://`"
        raise StorageError(explain(rule, got=repr(text), where=where))
    return Path(place) if scheme in _LOCAL else StorageUrl(url=text.rstrip("/"))


def _expanded(text: str, where: str) -> Path:
    if text != "~" and not text.startswith("~/"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        rule = "must be a directory, and `~` needs a home directory"
        raise StorageError(explain(rule, got=repr(text), where=where, hint="Give its whole path.")) from None
