"""A file of a search, wherever it is kept, as one of this machine's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tune_rescon.errors import StorageError, explain
from tune_rescon.storage.location import StorageUrl
from tune_rescon.storage.remote import RemoteFolder

__all__ = ["local_file"]


@contextmanager
def local_file(place: str) -> Iterator[Path]:
    """The file at a path or a URL; a copy of the latter, for the block.

    Raises:
        StorageError: it is not at its URL.
    """
    folder, _, name = place.rpartition("/")
    if "://" not in place:
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as scratch:
        file = Path(scratch) / name
        if not RemoteFolder.connect(StorageUrl(url=folder)).download(name, file):
            raise StorageError(explain("a trial's checkpoint must be in the storage", got=place))
        yield file
