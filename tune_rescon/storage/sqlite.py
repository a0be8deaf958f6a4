"""SQLite files: their URLs, consistent copies of a live database, and the versions of the copies.

A path may have ``?``, ``%``, ``#``, spaces or braces, which a database's URL quotes.

Each run of a search that writes to a storage's URL has a *term*: one more than the highest term before it.
The copies that are sent are also numbered, because the disk of a machine may be restored from an older image.
Both numbers are in the file's header, as SQLite's ``user_version`` and ``application_id``, of four bytes
each, which applications may use. The :class:`Version` is therefore part of the file that it describes, and
can be read at the URL without downloading the file.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from tune_rescon.atomic_write import file_version

__all__ = [
    "VERSION_BYTES",
    "Version",
    "absolute_url",
    "content_digest",
    "copy_database",
    "is_whole",
    "needs_rollback",
    "parse_version",
    "read_version",
    "sqlite_file",
    "sqlite_url",
    "write_version",
]


class Version(NamedTuple):
    """The age of a database that is kept at a URL. Of two, the greater one is newer."""

    term: int
    """The run that wrote the database."""
    copies: int = 0
    """The number of copies that were sent to the URL, this one included. A live database also counts a copy
    that may not have arrived."""


def sqlite_url(path: Path, *, driver: str = "sqlite") -> str:
    """Return the URL of a SQLite file, quoted as SQLAlchemy expects it.

    >>> sqlite_url(Path("/runs/50%?/study.db"))
    'sqlite:////runs/50%25%3F/study.db'
    """
    # Imported here, because a dry run needs no URL.
    from sqlalchemy import URL

    return URL.create(driver, database=str(path)).render_as_string()


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for the URL of a server, and for a text that is no URL.

    >>> sqlite_file("sqlite:////runs/50%25%3F/study.db")
    PosixPath('/runs/50%?/study.db')
    >>> sqlite_file("postgresql://db/studies")
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # ValueError: a port that is no number.
        return None
    database = parsed.database or ":memory:"
    if parsed.drivername.partition("+")[0] != "sqlite" or database.startswith((":memory:", "file:")):
        return None
    return Path(database)


def absolute_url(url: str) -> str:
    """Return the URL of a database, which names the same SQLite file from any directory.

    >>> absolute_url("http://mlflow:5000"), absolute_url("sqlite:////runs/mlflow.db")
    ('http://mlflow:5000', 'sqlite:////runs/mlflow.db')
    """
    from sqlalchemy import make_url

    file = sqlite_file(url)
    if file is None or file.is_absolute():
        return url
    return make_url(url).set(database=str(file.absolute())).render_as_string(hide_password=False)


#: From ``user_version`` to the end of ``application_id`` in a SQLite file (sqlite.org/fileformat2.html,
#: section 1.3). Both are big-endian, with four other bytes between them.
VERSION_BYTES: Final = (60, 72)

#: The length of the header, which holds counters that differ between copies of one content.
_HEADER: Final = 100

#: Seconds to wait while another connection writes.
BUSY_SECONDS: Final = 60.0


def copy_database(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target`` as of one moment, even while others write to it.

    Args:
        source: the live database.
        target: the file to create or replace.

    Raises:
        sqlite3.Error: the source is no database, or stays locked for too long.
        OSError: a file cannot be read or written.
    """
    target.unlink(missing_ok=True)
    try:
        _back_up(source, target)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
            raise
        _back_up_unfinished(source, target)


def _back_up_unfinished(source: Path, target: Path) -> None:
    """Copy a database that this user may not write, with the journal of a process that was killed.

    SQLite rolls the unfinished transaction back before it reads, and does so in a copy of both files.
    """
    journal = source.with_name(f"{source.name}-journal")
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        copy = Path(folder) / source.name
        try:
            version = file_version(journal)
            shutil.copyfile(journal, copy.with_name(journal.name))
            shutil.copyfile(source, copy)
            is_same = file_version(journal) == version
        except FileNotFoundError:
            is_same = False
        # A driver that resumes rolls back first, and then writes: only then do the two copies not fit.
        _back_up(copy if is_same else source, target)


def needs_rollback(path: Path) -> bool:
    """Return whether this user can read a database only from a copy (:func:`copy_database`).

    A killed process left a transaction in it, and only a user who may write the file can roll it back. A
    transaction that is still open does not prevent reading.
    """
    if not path.with_name(f"{path.name}-journal").exists():
        return False
    try:
        with closing(_connect(path, timeout=0)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        # Any other error appears again when the database is read.
        return error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK
    return False


def _back_up(source: Path, target: Path) -> None:
    with closing(_connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        # All pages in one step: with several steps, each write between two of them would restart the copy.
        live.backup(copy, pages=-1)
        # In WAL mode the copy would consist of two files.
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.commit()


def content_digest(path: Path) -> str:
    """Return the digest of a database without its version. No process may be writing to the database."""
    with path.open("rb") as file:
        file.seek(_HEADER)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_version(path: Path) -> Version | None:
    """Return the version of a local database; None if the file does not exist."""
    if not path.is_file():
        return None
    with closing(_connect(path)) as database:
        term, copies = (
            int(database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("user_version", "application_id")
        )
        return Version(term, copies)


def write_version(path: Path, version: Version) -> None:
    """Stamp a database with a version."""
    with closing(_connect(path)) as database:
        database.execute("BEGIN")
        database.execute(f"PRAGMA user_version={version.term:d}")
        database.execute(f"PRAGMA application_id={version.copies:d}")
        database.commit()


def parse_version(header: bytes | None) -> Version | None:
    """Return the version in the bytes at :data:`VERSION_BYTES`; None if there are no bytes.

    >>> parse_version(bytes([0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 7]))
    Version(term=258, copies=7)
    """
    if not header:
        return None
    return Version(int.from_bytes(header[:4], "big"), int.from_bytes(header[8:], "big"))


def is_whole(path: Path) -> bool:
    """Return whether a file is an undamaged SQLite database."""
    try:
        with closing(_connect(path)) as database:
            return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _connect(path: Path, *, timeout: float = BUSY_SECONDS) -> sqlite3.Connection:
    # A URI, because a plain path that does not exist would be created.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=timeout)
