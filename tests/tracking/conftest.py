"""A SQLite store that is made once and copied: its migrations take MLflow seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.tracking import MlflowWriter
from tune_rescon.tracking.runs import RunBook


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of a store of the test's own."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def make_writer(store: str, tmp_path: Path) -> Callable[..., MlflowWriter]:
    """Makes writers that have begun; each is one more run of the command."""

    def make(search: str = "s", uri: str = store) -> MlflowWriter:
        made = MlflowWriter(
            uri,
            experiment="digits",
            search=search,
            metric="val_accuracy",
            maximize=True,
            artifacts=tmp_path / "artifacts",
        )
        made.start()
        return made

    return make


@pytest.fixture
def make_book(store: str, tmp_path: Path) -> Callable[[], RunBook]:
    """Makes the books of a search, without a thread; each is one more run of the command."""

    def make() -> RunBook:
        book = RunBook(store, experiment="digits", search="s", metric="val_accuracy", maximize=True)
        book.connect(tmp_path / "artifacts")
        return book

    return make
