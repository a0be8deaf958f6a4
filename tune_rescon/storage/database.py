"""SQLite files that are kept at a URL: consistent copies of a live one, and which copy is newer.

Each run of a search that writes there has a *term*, one more than the highest before it. It is SQLite's
``user_version``, four bytes in the file's header that are there for an application to use, so it travels with
the content it is about and can be read at the URL without fetching the file.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

__all__ = ["TERM_BYTES", "copy_database", "is_whole", "parse_term", "read_term", "write_term"]

#: Where ``user_version`` stands in a SQLite file, big-endian (sqlite.org/fileformat2.html, section 1.3).
TERM_BYTES: Final = (60, 64)

#: Seconds to wait for another connection's write.
BUSY_SECONDS: Final = 60.0


def copy_database(source: Path, target: Path, *, term: int) -> None:
    """Make ``target`` what ``source`` is at one moment, while others write to it, and stamp it ``term``.

    Raises:
        sqlite3.Error: the source is no database, or is locked for too long.
    """
    target.unlink(missing_ok=True)
    with closing(_connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        # All pages in one step: with several, each write in between would begin the copy anew.
        live.backup(copy, pages=-1)
        # A copy in WAL mode would be two files.
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.execute(f"PRAGMA user_version={term:d}")
        copy.commit()


def read_term(path: Path) -> int | None:
    """The term a local database is stamped with; None if there is none."""
    if not path.is_file():
        return None
    with closing(_connect(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def write_term(path: Path, term: int) -> None:
    """Stamp a live database."""
    with closing(_connect(path)) as database:
        database.execute(f"PRAGMA user_version={term:d}")
        database.commit()


def parse_term(header: bytes | None) -> int | None:
    """The term in the bytes at :data:`TERM_BYTES`; None where there are none.

    >>> parse_term(bytes([0, 0, 1, 2]))
    258
    """
    return int.from_bytes(header, "big") if header else None


def is_whole(path: Path) -> bool:
    """Whether a file is a SQLite database without damage."""
    try:
        with closing(_connect(path)) as database:
            return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")
    except sqlite3.DatabaseError:
        return False


def _connect(path: Path) -> sqlite3.Connection:
    # A URI: a plain path that is missing would be made.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)
