"""The accepted tracking URIs, and the lock of a SQLite file."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from tune_rescon.errors import StorageError
from tune_rescon.tracking import check_tracking_uri
from tune_rescon.tracking.worker import alone_at


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost:5000",
        "https://mlflow.example.org",
        "sqlite:///runs/mlflow.db",
        "postgresql://user@host/db",
        "postgresql+psycopg2://user@host/db",
        "mysql+pymysql://user@host/db",
        "databricks",
        "databricks://profile",
    ],
)
def test_a_server_or_a_database_is_accepted(uri: str) -> None:
    check_tracking_uri(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "./mlruns",
        "mlruns",
        "/tmp/mlruns",
        "file:///tmp/mlruns",
        "C:\\mlruns",
        "sqlite:mlflow.db",
        "ftp://x",
    ],
)
def test_any_other_uri_is_refused_with_the_schemes_that_exist(uri: str) -> None:
    with pytest.raises(StorageError) as error:
        check_tracking_uri(uri)
    message = str(error.value)
    assert message.startswith("--tracking-uri: must begin with one of http://, https://, sqlite://")
    assert repr(uri) in message


def test_writers_of_one_file_lock_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    with alone_at(uri), pytest.raises(Timeout):
        FileLock(tmp_path / "new" / ".mlflow.db.lock").acquire(timeout=0)
    with alone_at(uri):
        pass


def test_a_server_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with alone_at("http://localhost:5000"), alone_at("http://localhost:5000"):
        assert not list(tmp_path.iterdir())
