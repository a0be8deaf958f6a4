"""A new SQLite store is there as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from tune_rescon.tracking.mlflow_store import make_local_store

MAKE = """
import sys
from tune_rescon.tracking.mlflow_store import make_local_store
make_local_store(sys.argv[1])
"""


@pytest.mark.timeout(60)
def test_who_is_killed_amid_the_making_leaves_a_store_that_can_be_made(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    half = tmp_path / ".mlflow.db.half"
    maker = subprocess.Popen([sys.executable, "-c", MAKE, f"sqlite:///{file}"])
    while not (half.exists() and tables(half) > 2):
        assert maker.poll() is None
        time.sleep(0.01)
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()
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


def tables(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])
