"""SQLite files that are mirrored to a URL: consistent copies of a live database, and the age of each copy.

Each run of a search that writes to the URL has a *term*: one more than the highest term before it. It is
stored as SQLite's ``user_version``, four bytes in the file's header that are reserved for applications. The
term is therefore part of the file it describes, and can be read at the URL without downloading the file.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

__all__ = ["TERM_BYTES", "copy_database", "is_whole", "parse_term", "read_term", "write_term"]

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
