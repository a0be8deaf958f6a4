"""A search's study at one moment, read without keeping its driver waiting."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tune_rescon.storage import copy_database, sqlite_file, sqlite_url
from tune_rescon.tuning.record.database import holds_studies, missing_study

__all__ = ["snapshot"]


@contextmanager
def snapshot(url: str) -> Iterator[str]:
    """For the time of the block, the URL of a copy of the database at ``url``; a server's own URL.

    Reading a long study takes seconds, for which SQLite would keep its driver from writing; copying the file
    takes milliseconds. What a driver that was killed left half written is undone on the way, as SQLite does
    for every reader.

    Raises:
        StorageError: there is no such file, or it is no database.
    """
    source = sqlite_file(url)
    if source is None:
        yield url
        return
    if not holds_studies(source):
        raise missing_study(source)
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        copy = Path(folder) / "study.db"
        try:
            copy_database(source, copy, term=0)
        except (sqlite3.Error, OSError) as error:
            raise missing_study(source, str(error)) from None
        yield sqlite_url(copy)
