"""The lease of a search in its study's database.

It is an attribute of the study, which Optuna's API can read and write too. Optuna's setter reads the row and
then writes it, so two processes may both succeed. This module changes the row with one conditional statement.
"""

from __future__ import annotations

import json
from typing import Any, Final

import optuna
from optuna.storages._rdb import models
from sqlalchemy import Insert, Table, Update, and_, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tune_rescon.tuning.database import find_study, open_database, unwritable

__all__ = ["StudyLeaseStore"]


#: Seconds a beat waits for another writer of a SQLite file: less than the time between two beats.
SQLITE_BUSY_SECONDS: Final = 4

_ATTRIBUTE: Final = "lease"

_ATTRIBUTES: Final[Table] = models.StudyUserAttributeModel.__table__


class StudyLeaseStore:
    """A :class:`.LeaseStore` in the search's own database, with a separate connection."""

    read_back_seconds = 0.0

    def __init__(self, storage: optuna.storages.RDBStorage, study_id: int) -> None:
        """Keep the lease in the study ``study_id`` of ``storage``; see :meth:`open`."""
        self._storage = storage
        self._study_id = study_id

    @classmethod
    def open(cls, url: str, name: str) -> StudyLeaseStore:
        """Connect to the study ``name``.

        Raises:
            StorageError: If the database has no such study, or cannot be reached.
        """
        storage = open_database(url, busy_seconds=SQLITE_BUSY_SECONDS)
        return cls(storage, find_study(storage, name))

    def read(self) -> dict[str, Any] | None:
        """Return the last value that any process has written; None if no process has written one."""
        text = self._text()
        return None if text is None else json.loads(text)

    def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
        """Replace the value if it still is ``expected``, with one statement; return whether it was replaced.

        Raises:
            RecordError: If the database does not accept the statement.
        """
        text = self._text()
        if (None if text is None else json.loads(text)) != expected:
            return False
        key = {"study_id": self._study_id, "key": _ATTRIBUTE}
        row = {"value_json": json.dumps(value)}
        # The condition on the old text, or the unique key of a new row, makes the database reject all but one
        # of several writers.
        if text is None:
            statement: Insert | Update = _ATTRIBUTES.insert().values({**key, **row})
        else:
            is_ours = and_(*(_ATTRIBUTES.c[name] == part for name, part in key.items()))
            statement = _ATTRIBUTES.update().where(is_ours, _ATTRIBUTES.c.value_json == text).values(row)
        try:
            with self._storage.engine.begin() as connection:
                # A driver may count no rows of an INSERT, which fails if there is such a row.
                return connection.execute(statement).rowcount == 1 or text is None
        except IntegrityError:
            return False
        except SQLAlchemyError as error:
            raise unwritable(str(self._storage.url), error) from error

    def _text(self) -> str | None:
        query = select(_ATTRIBUTES.c.value_json).where(
            _ATTRIBUTES.c.study_id == self._study_id, _ATTRIBUTES.c.key == _ATTRIBUTE
        )
        try:
            with self._storage.engine.connect() as connection:
                return connection.execute(query).scalar()
        except SQLAlchemyError as error:
            raise unwritable(str(self._storage.url), error) from error
