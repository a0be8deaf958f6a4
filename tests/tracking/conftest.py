"""A SQLite store that is made once and copied: its migrations take MLflow seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.tracking import Destination, MlflowWriter
from tune_rescon.tracking.desk import Desk
from tune_rescon.tracking.runs import RunBook


def destination(uri: str, search: str, artifacts: Path) -> Destination:
    return Destination(
        uri=uri,
        experiment="digits",
        search=search,
        metric="val_accuracy",
        maximize=True,
        artifacts=artifacts,
    )


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of a store of the test's own."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def make_writer(store: str, tmp_path: Path) -> Callable[..., MlflowWriter]:
    """Makes writers that have begun; each is one more run of the command.

    They make their calls on their own thread, where a test can get between; the process is in test_desk.py.
    """

    def make(search: str = "s", uri: str = store) -> MlflowWriter:
        made = MlflowWriter(destination(uri, search, tmp_path / "artifacts"), open_desk=Desk)
        made.start()
        return made

    return make


@pytest.fixture
def make_book(store: str, tmp_path: Path) -> Callable[[], RunBook]:
    """Makes the books of a search, without a thread; each is one more run of the command."""

    def make() -> RunBook:
        book = RunBook(destination(store, "s", tmp_path / "artifacts"))
        book.connect()
        return book

    return make
