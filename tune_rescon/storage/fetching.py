"""What a search brings from the URL before it goes on: the newest copy of each of its databases."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tune_rescon.errors import StorageError, explain
from tune_rescon.storage.choice import Copy, choose_copy
from tune_rescon.storage.database import TERM_BYTES, is_whole, parse_term, read_term
from tune_rescon.storage.remote import RemoteFolder

__all__ = ["fetch_databases"]

_log: Final = logging.getLogger(__name__)

#: What SQLite keeps beside a database, and must not be read with another one.
_BESIDE: Final = ("-journal", "-wal", "-shm")


def fetch_databases(remote: RemoteFolder, databases: Mapping[str, Path]) -> int:
    """Make each local database (by its name at the URL) the newest copy; the term of the run that begins.

    To be called by one run at a time, before it opens any of them.

    Raises:
        RemoteError: the URL cannot be read now.
        StorageError: a copy that is needed is damaged.
    """
    terms = [0]
    for name, path in databases.items():
        here = read_term(path) if path.is_file() and is_whole(path) else None
        at_url = parse_term(remote.read(name, start=TERM_BYTES[0], end=TERM_BYTES[1]))
        if choose_copy(here=here, at_url=at_url) is Copy.URL:
            _fetch(remote, name, path)
            if here is not None:
                _log.warning(
                    "%s: the copy at %s (run %s) is newer than this machine's (run %d), and replaces it",
                    name, remote.url, at_url, here,
                )  # fmt: skip
        terms += [term for term in (here, at_url) if term is not None]
    return max(terms) + 1


def _fetch(remote: RemoteFolder, name: str, path: Path) -> None:
    arrived = path.with_name(f".{path.name}.arrived")
    path.parent.mkdir(parents=True, exist_ok=True)
    remote.download(name, arrived)
    if not is_whole(arrived):
        arrived.unlink(missing_ok=True)
        rule = "a copy of a search's database must be one SQLite can read"
        raise StorageError(explain(rule, got=f"a damaged {remote.url}/{name}", where="--storage"))
    for suffix in _BESIDE:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    arrived.replace(path)
