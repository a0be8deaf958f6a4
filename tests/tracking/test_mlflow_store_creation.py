"""A new SQLite store is created completely or not at all."""

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
def test_store_creation_survives_a_kill(tmp_path: Path) -> None:
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


def test_an_existing_store_is_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"somebody's")
    make_local_store(f"sqlite:///{file}")
    assert file.read_bytes() == b"somebody's"


def test_no_file_is_created_for_a_server() -> None:
    make_local_store("http://localhost:5000")


def tables(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])
