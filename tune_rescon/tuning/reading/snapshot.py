"""A search's study at one moment, read without keeping its driver waiting."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from tune_rescon.errors import StorageError, explain
from tune_rescon.storage import copy_database

__all__ = ["database_file", "snapshot"]

_SQLITE: Final = "sqlite:///"


def database_file(url: str) -> Path | None:
    """The file that a database URL names; None if it names a server.

    >>> database_file("sqlite:////runs/a/study.db")
    PosixPath('/runs/a/study.db')
    >>> database_file("postgresql://db/studies")
    """
    return Path(unquote(url.removeprefix(_SQLITE))) if url.startswith(_SQLITE) else None


@contextmanager
def snapshot(url: str) -> Iterator[str]:
    """For the time of the block, the URL of a copy of the database at ``url``; a server's own URL.

    Reading a long study takes seconds, for which SQLite would keep its driver from writing; copying the file
    takes milliseconds. What a driver that was killed left half written is undone on the way, as SQLite does
    for every reader.

    Raises:
        StorageError: there is no such file, or it is no database.
    """
    source = database_file(url)
    if source is None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        copy = Path(folder) / "study.db"
        try:
            copy_database(source, copy, term=0)
        except (sqlite3.Error, OSError) as error:
            hint = "If the search was given a --study, give it here too." if not source.exists() else ""
            rule = "a search's study must be a database that can be read"
            raise StorageError(explain(rule, got=f"{source} ({error})", hint=hint)) from None
        yield f"{_SQLITE}{copy}"
