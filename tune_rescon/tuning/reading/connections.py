"""Connections to the databases of many studies, to read a little of each."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import sqlalchemy
from sqlalchemy import Connection, Engine, NullPool

from tune_rescon.storage import sqlite_file

__all__ = ["StudyConnections"]


class StudyConnections:
    """Opens them, from any thread. All SQLite files have one engine, which has to compile each query once."""

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self._asked = threading.local()
        self._files = sqlalchemy.create_engine("sqlite://", creator=self._open_file, poolclass=NullPool)
        self._server = cache(_server)

    @contextmanager
    def connect(self, url: str) -> Iterator[Connection]:
        """For the time of the block, a connection to the database at ``url``.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: there is none, or it cannot be opened. No file is made.
        """
        file = sqlite_file(url)
        if file is not None:
            # A URI, which makes no file where there is none.
            self._asked.uri = f"{file.absolute().as_uri()}?mode=rw"
        engine = self._server(url) if file is None else self._files
        with engine.connect() as connection:
            yield connection

    def _open_file(self) -> sqlite3.Connection:
        # The engine opens a connection where one is asked for, in that thread.
        return sqlite3.connect(self._asked.uri, uri=True)


def _server(url: str) -> Engine:
    return sqlalchemy.create_engine(url, poolclass=NullPool)
