"""SQLite files: their URLs, consistent copies of a live database that are mirrored to a URL, and their age.

A path may have ``?``, ``%``, ``#``, spaces or braces, which a database's URL quotes.

Each run of a search that writes to a storage's URL has a *term*: one more than the highest term before it.
It is stored as SQLite's ``user_version``, four bytes in the header that are reserved for applications. The
term is therefore part of the file it describes, and can be read at the URL without downloading the file.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

__all__ = [
    "TERM_BYTES",
    "absolute_url",
    "copy_database",
    "is_whole",
    "parse_term",
    "read_term",
    "sqlite_file",
    "sqlite_url",
    "write_term",
]


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
    """Return the URL of a database; that of a SQLite file is the same file's from any directory.

    >>> absolute_url("http://mlflow:5000"), absolute_url("sqlite:////runs/mlflow.db")
    ('http://mlflow:5000', 'sqlite:////runs/mlflow.db')
    """
    from sqlalchemy import make_url

    file = sqlite_file(url)
    if file is None or file.is_absolute():
        return url
    return make_url(url).set(database=str(file.absolute())).render_as_string(hide_password=False)


#: Position of ``user_version`` in a SQLite file, big-endian (sqlite.org/fileformat2.html, section 1.3).
TERM_BYTES: Final = (60, 64)

#: Seconds to wait while another connection writes.
BUSY_SECONDS: Final = 60.0


def copy_database(source: Path, target: Path, *, term: int) -> None:
    """Copy ``source`` to ``target`` as of one moment, even while others write to it, and stamp the copy.

    Args:
        source: the live database.
        target: the file to create or replace.
        term: the term to stamp the copy with.

    Raises:
        sqlite3.Error: the source is no database, or stays locked for too long.
    """
    target.unlink(missing_ok=True)
    with closing(_connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        # All pages in one step: with several steps, each write between two of them would restart the copy.
        live.backup(copy, pages=-1)
        # In WAL mode the copy would consist of two files.
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.execute(f"PRAGMA user_version={term:d}")
        copy.commit()


def read_term(path: Path) -> int | None:
    """Return the term of a local database; None if the file does not exist."""
    if not path.is_file():
        return None
    with closing(_connect(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def write_term(path: Path, term: int) -> None:
    """Stamp a live database with a term."""
    with closing(_connect(path)) as database:
        database.execute(f"PRAGMA user_version={term:d}")
        database.commit()


def parse_term(header: bytes | None) -> int | None:
    """Return the term in the bytes at :data:`TERM_BYTES`; None if there are no bytes.

    >>> parse_term(bytes([0, 0, 1, 2]))
    258
    """
    return int.from_bytes(header, "big") if header else None


def is_whole(path: Path) -> bool:
    """Return whether a file is an undamaged SQLite database."""
    try:
        with closing(_connect(path)) as database:
            return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _connect(path: Path) -> sqlite3.Connection:
    # A URI, because a plain path that does not exist would be created.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)
