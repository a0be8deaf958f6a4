"""What a search brings from the URL before it goes on: the newest copy of each of its databases."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tune_rescon.errors import StorageError, explain
from tune_rescon.storage.choice import Copy, choose_copies
from tune_rescon.storage.database import TERM_BYTES, is_whole, parse_term, read_term
from tune_rescon.storage.remote import RemoteFolder

__all__ = ["fetch_databases"]

_log: Final = logging.getLogger(__name__)

#: What SQLite keeps beside a database, and must not be read with another one.
_BESIDE: Final = ("-journal", "-wal", "-shm")


def fetch_databases(remote: RemoteFolder, databases: Mapping[str, Path], *, where: str = "--storage") -> int:
    """Make each local database (by its name at the URL) the newest copy; the term of the run that begins.

    To be called by one run at a time, before it opens any of them. The first leads, the others follow it: see
    :func:`.choose_copies`. ``where`` is the flag that named the URL.

    Raises:
        RemoteError: the URL cannot be read now.
        StorageError: a copy that is needed is damaged.
    """
    terms = [_terms(remote, name, path) for name, path in databases.items()]
    for (name, path), pair, copy in zip(databases.items(), terms, choose_copies(terms), strict=True):
        here, at_url = pair
        if copy is Copy.URL:
            _fetch(remote, name, path, where)
        elif copy is Copy.NOWHERE:
            _delete(path)
        if here is not None and copy is not Copy.HERE:
            _log.warning(
                "%s of this machine's run %d gave way to run %s's at %s", name, here, at_url, remote.url
            )
    return 1 + max((term for pair in terms for term in pair if term is not None), default=0)


def _terms(remote: RemoteFolder, name: str, path: Path) -> tuple[int | None, int | None]:
    """Of the copy here and the one at the URL."""
    here = read_term(path) if path.is_file() and is_whole(path) else None
    return here, parse_term(remote.read(name, start=TERM_BYTES[0], end=TERM_BYTES[1]))


def _fetch(remote: RemoteFolder, name: str, path: Path, where: str) -> None:
    arrived = path.with_name(f".{path.name}.arrived")
    path.parent.mkdir(parents=True, exist_ok=True)
    remote.download(name, arrived)
    if not is_whole(arrived):
        arrived.unlink(missing_ok=True)
        rule = "the copy of a database must be one SQLite can read"
        raise StorageError(explain(rule, got=f"a damaged {remote.url}/{name}", where=where))
    _delete(path)
    arrived.replace(path)


def _delete(path: Path) -> None:
    # The database last: what is beside it means nothing without it.
    for suffix in (*_BESIDE, ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
