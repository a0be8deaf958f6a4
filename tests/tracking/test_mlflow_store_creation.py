"""A new SQLite store is there as a whole, or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from tune_rescon.tracking.mlflow_store import make_local_store

#: Makes a store, and is killed when it has made some of its tables.
MAKE_HALF = """
import os, signal, sys
import sqlalchemy
from tune_rescon.tracking.mlflow_store import make_local_store

made = []

@sqlalchemy.event.listens_for(sqlalchemy.Engine, "after_cursor_execute")
def after(_connection, _cursor, statement, *_):
    if "CREATE TABLE" in statement:
        made.append(statement)
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

make_local_store(sys.argv[1])
"""


@pytest.mark.timeout(60)
def test_who_is_killed_amid_the_making_leaves_a_store_that_can_be_made(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    half = tmp_path / ".mlflow.db.half"
    maker = subprocess.run([sys.executable, "-c", MAKE_HALF, f"sqlite:///{file}"], check=False)
    assert maker.returncode == -signal.SIGKILL
    assert half.stat().st_size > 0
    assert not file.exists()
    make_local_store(f"sqlite:///{file}")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()


def test_a_store_that_is_there_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"somebody's")
    make_local_store(f"sqlite:///{file}")
    assert file.read_bytes() == b"somebody's"


def test_a_server_is_not_made() -> None:
    make_local_store("http://localhost:5000")
