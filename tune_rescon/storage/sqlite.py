"""SQLite files as database URLs, and back: a path may hold ``?``, ``%``, ``#``, spaces, or braces."""

from __future__ import annotations

from pathlib import Path

__all__ = ["sqlite_file", "sqlite_url"]


def sqlite_url(path: Path, *, driver: str = "sqlite") -> str:
    """The URL of a SQLite file, quoted as SQLAlchemy reads it.

    >>> sqlite_url(Path("/runs/50%?/study.db"))
    'sqlite:////runs/50%25%3F/study.db'
    """
    # Imported here: a dry run asks for no URL.
    from sqlalchemy import URL

    return URL.create(driver, database=str(path)).render_as_string()


def sqlite_file(url: str) -> Path | None:
    """The file that a database URL names; None if it names a server, or is no URL.

    >>> sqlite_file("sqlite:////runs/50%25%3F/study.db")
    PosixPath('/runs/50%?/study.db')
    >>> sqlite_file("postgresql://db/studies")
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The latter of a port that is no number.
        return None
    database = parsed.database or ":memory:"
    if parsed.drivername.partition("+")[0] != "sqlite" or database.startswith((":memory:", "file:")):
        return None
    return Path(database)
