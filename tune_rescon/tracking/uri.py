"""Which tracking URIs there are."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from tune_rescon.errors import StorageError, explain

__all__ = ["check_tracking_uri"]

_SCHEMES: Final = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def check_tracking_uri(uri: str) -> None:
    """Refuse a URI no MLflow store answers to.

    Raises:
        StorageError: its scheme is not a server's or a database's (MLflow refuses its file store since 3.13).
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if uri == "databricks" or scheme in _SCHEMES:
        return
    rule = f"must begin with one of {', '.join(f'{s}:' for s in _SCHEMES)}"
    hint = "For a local store give sqlite:///PATH/mlflow.db."
    raise StorageError(explain(rule, got=repr(uri), where="--tracking-uri", hint=hint))
