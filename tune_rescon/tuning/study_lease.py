"""The lease of a search in its study's database.

It is an attribute of the study, which Optuna's API can read and write too. Optuna's setter reads the row and
then writes it, so two processes may both succeed. This module changes the row with one conditional statement.

On a database server, a second attribute has the time of the last beat, by the server's clock. It tells a
report whether the driver is alive. For a SQLite file, the time of its last change does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import optuna
from optuna.storages._rdb import models
from sqlalchemy import Connection, Insert, Select, Table, Update, and_, func, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tune_rescon.tuning.database import find_study, open_database, unwritable

__all__ = ["StudyLeaseStore", "silent_seconds"]


#: Seconds a beat waits for another writer of a SQLite file: less than the time between two beats.
SQLITE_BUSY_SECONDS: Final = 4

_ATTRIBUTE: Final = "lease"

#: The token of the holder, and the time of its last beat.
_BEAT: Final = "lease_beat"

_ATTRIBUTES: Final[Table] = models.StudyUserAttributeModel.__table__


def silent_seconds(connection: Connection, study_id: int, lease: Mapping[str, Any] | None) -> float:
    """Return the seconds since the last beat of a lease on a database server.

    It is 0 if the holder writes no times, as in earlier versions of this package.

    Args:
        connection: A connection to the database.
        study_id: The study that holds the lease.
        lease: The value of the lease, or None.
    """
    text = connection.execute(_value(study_id, _BEAT)).scalar()
    # An earlier version that takes over an empty study replaces attributes that it does not know by null.
    beat = json.loads(text or "null") or {}
    if lease is None or beat.get("token") != lease["token"]:
        return 0.0
    # Some servers give a time without its zone: only two times of one server can be compared.
    return (_server_time(connection) - datetime.fromisoformat(beat["time"])).total_seconds()


def _server_time(connection: Connection) -> datetime:
    return connection.execute(select(func.now())).scalar_one()


def _value(study_id: int, key: str) -> Select[Any]:
    return select(_ATTRIBUTES.c.value_json).where(
        _ATTRIBUTES.c.study_id == study_id, _ATTRIBUTES.c.key == key
    )


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
                replaced = connection.execute(statement).rowcount == 1 or text is None
                if replaced and connection.dialect.name != "sqlite":
                    self._write_time(connection, value["token"])
                return replaced
        except IntegrityError:
            return False
        except SQLAlchemyError as error:
            raise unwritable(str(self._storage.url), error) from error

    def silent_seconds(self) -> float:
        """Return the seconds since the last beat: see :func:`silent_seconds`."""
        with self._storage.engine.connect() as connection:
            return silent_seconds(connection, self._study_id, self.read())

    def _write_time(self, connection: Connection, token: str) -> None:
        key = {"study_id": self._study_id, "key": _BEAT}
        beat = {"token": token, "time": _server_time(connection).isoformat()}
        connection.execute(_ATTRIBUTES.delete().where(*(_ATTRIBUTES.c[name] == key[name] for name in key)))
        connection.execute(_ATTRIBUTES.insert().values({**key, "value_json": json.dumps(beat)}))

    def _text(self) -> str | None:
        try:
            with self._storage.engine.connect() as connection:
                return connection.execute(_value(self._study_id, _ATTRIBUTE)).scalar()
        except SQLAlchemyError as error:
            raise unwritable(str(self._storage.url), error) from error
