"""The lease of a search, in its study's database or at its URL."""

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


#: Seconds a beat waits for another writer of a SQLite file: less than the time between two beats.
SQLITE_BUSY_SECONDS: Final = 4

_ATTRIBUTE: Final = "lease"


class StudyLeaseStore:
    """A :class:`.LeaseStore` in the search's own database, with a separate connection."""

    def __init__(self, storage: optuna.storages.RDBStorage, study_id: int) -> None:
        """Keep the lease in the study ``study_id`` of ``storage``; see :meth:`open`."""
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
        """Return the last value that any process has written; None if no process has written one."""
        value: dict[str, Any] | None = self._storage.get_study_user_attrs(self._study_id).get(_ATTRIBUTE)
        return value

    def write(self, value: dict[str, Any]) -> None:
        """Replace the value in one transaction."""
        self._storage.set_study_user_attr(self._study_id, _ATTRIBUTE, value)


#: Factor by which a lease at a URL is longer. A beat there needs several requests, and each request that the
#: store refuses is retried for half a minute (s3fs's 5 tries of botocore's 5).
URL_LEASE_FACTOR: Final = 4


def search_lease(
    name: str,
    *,
    study_url: str,
    at_url: LeaseStore | None,
    seconds: float,
    say: Callable[[str], object],
) -> AbstractContextManager[LeaseKeeper]:
    """Hold the lease of a search for the duration of a block.

    Args:
        name: the search's name.
        study_url: the URL of the study's database, which holds the lease.
        at_url: the store that holds the lease instead if the database file is only a copy, or None.
        seconds: length of the lease in seconds; at a URL, :data:`URL_LEASE_FACTOR` times as long.
        say: reports the reason for a wait to the user.

    Raises:
        LeaseError: another driver has the search.
    """
    if at_url is not None:
        return hold_lease(at_url, name=name, seconds=URL_LEASE_FACTOR * seconds, say=say)
    return hold_lease(StudyLeaseStore.open(study_url, name), name=name, seconds=seconds, say=say)
