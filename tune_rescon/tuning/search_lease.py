"""Which lease a search has: in its study's database, or at its URL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import optuna

from tune_rescon.tuning.database import find_study, open_database
from tune_rescon.tuning.lease import LeaseKeeper, LeaseStore, hold_lease

__all__ = [
    "StudyLeaseStore",
    "search_lease",
]


#: Seconds a beat waits for another writer of a SQLite file: less than there are between two beats.
SQLITE_BUSY_SECONDS: Final = 4

_ATTRIBUTE: Final = "lease"


class StudyLeaseStore:
    """A :class:`.LeaseStore` in the search's own database, on a connection of its own."""

    def __init__(self, storage: optuna.storages.RDBStorage, study_id: int) -> None:
        """Keep the lease with that study; see :meth:`open`."""
        self._storage = storage
        self._study_id = study_id

    @classmethod
    def open(cls, url: str, name: str) -> StudyLeaseStore:
        """Connect to the study ``name``.

        Raises:
            StorageError: the database has no such study, or cannot be reached.
        """
        storage = open_database(url, busy_seconds=SQLITE_BUSY_SECONDS)
        return cls(storage, find_study(storage, name))

    def read(self) -> dict[str, Any] | None:
        """What was written last."""
        value: dict[str, Any] | None = self._storage.get_study_user_attrs(self._study_id).get(_ATTRIBUTE)
        return value

    def write(self, value: dict[str, Any]) -> None:
        """Replace it, in one transaction."""
        self._storage.set_study_user_attr(self._study_id, _ATTRIBUTE, value)


#: A lease at a URL is longer: a beat there is several requests, and each is repeated for half a minute where
#: the store refuses it (s3fs's 5 tries of botocore's 5).
URL_LEASE_FACTOR: Final = 4


def search_lease(
    name: str,
    *,
    study_url: str,
    at_url: LeaseStore | None,
    seconds: float,
    say: Callable[[str], object],
) -> AbstractContextManager[LeaseKeeper]:
    """Hold the lease of the search ``name`` for a block.

    Args:
        name: the search's.
        study_url: its study's database, where the lease is kept.
        at_url: where it is kept instead, if the database is a file that is only a copy.
        seconds: how long the lease is; :data:`URL_LEASE_FACTOR` times that at a URL.
        say: tells what keeps the driver waiting.

    Raises:
        LeaseError: another driver has the search.
    """
    if at_url is not None:
        return hold_lease(at_url, name=name, seconds=URL_LEASE_FACTOR * seconds, say=say)
    return hold_lease(StudyLeaseStore.open(study_url, name), name=name, seconds=seconds, say=say)
