"""A SQLite store of MLflow's, made as a whole or not at all.

MLflow makes a new one by running all its migrations, which takes seconds. A process killed amid them leaves
a file that no later one can use or mend ("table _alembic_tmp_experiments already exists", mlflow 3.17).
"""

from __future__ import annotations

from mlflow import MlflowClient

from tune_rescon.storage import sqlite_file, sqlite_url

__all__ = ["make_local_store"]


def make_local_store(uri: str) -> None:
    """Make the store if it is a SQLite file that is not there yet. For a process that is alone at it."""
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    half = file.with_name(f".{file.name}.half")
    for remains in (half, half.with_name(f"{half.name}-journal")):
        remains.unlink(missing_ok=True)
    # Any question makes the store.
    MlflowClient(sqlite_url(half, driver="sqlite+pysqlite")).search_experiments()
    half.replace(file)
