"""A new SQLite store is created completely or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from tune_rescon.tracking.worker import make_local_store

#: Creates a store and is killed after the fifth table.
KILLED_CREATION = """
import os, signal, sys
import sqlalchemy
from tune_rescon.tracking.worker import make_local_store

tables = []

@sqlalchemy.event.listens_for(sqlalchemy.Engine, "after_cursor_execute")
def after(_connection, _cursor, statement, *_):
    if "CREATE TABLE" in statement:
        tables.append(statement)
        if len(tables) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

make_local_store(sys.argv[1])
"""


@pytest.mark.timeout(60)
def test_store_creation_survives_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    partial_file = tmp_path / ".mlflow.db.half"
    process = subprocess.run([sys.executable, "-c", KILLED_CREATION, f"sqlite:///{file}"], check=False)
    assert process.returncode == -signal.SIGKILL
    assert partial_file.stat().st_size > 0
    assert not file.exists()
    make_local_store(f"sqlite:///{file}")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()


def test_an_existing_store_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"somebody's")
    make_local_store(f"sqlite:///{file}")
    assert file.read_bytes() == b"somebody's"


def test_no_file_is_created_for_a_server() -> None:
    make_local_store("http://localhost:5000")
