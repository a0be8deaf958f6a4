"""Which tracking URIs there are, and how processes take turns at a local one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final

from filelock import FileLock

from tune_rescon.errors import StorageError, explain
from tune_rescon.storage import sqlite_file

__all__ = ["alone_at", "check_tracking_uri"]

_SCHEMES: Final = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def check_tracking_uri(uri: str) -> None:
    """Refuse a URI no MLflow store answers to.

    Raises:
        StorageError: its scheme is not a server's or a database's (MLflow refuses its file store since 3.13).
    """
    scheme, slashes, _ = uri.partition("://")
    if uri == "databricks" or (slashes and scheme.partition("+")[0] in _SCHEMES):
        return
    rule = f"must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}"
    hint = "For a local store give sqlite:///PATH/mlflow.db."
    raise StorageError(explain(rule, got=repr(uri), where="--tracking-uri", hint=hint))


def alone_at(uri: str) -> AbstractContextManager[object]:
    """Keep this machine's other writers away from a SQLite store, by a lock file beside it."""
    file = sqlite_file(uri)
    if file is None:
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.with_name(f".{file.name}.lock"))
