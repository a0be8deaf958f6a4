"""Convert SQLite files to database URLs and back; a path may have ``?``, ``%``, ``#``, spaces or braces."""

from __future__ import annotations

from pathlib import Path

__all__ = ["sqlite_file", "sqlite_url"]


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
