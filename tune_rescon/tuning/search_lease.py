"""The lease of a search in its study's database."""

from __future__ import annotations

from typing import Any, Final

import optuna

from tune_rescon.tuning.database import find_study, open_database

__all__ = ["StudyLeaseStore"]


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
