"""The list of a storage: each line agrees with its search, and a broken search does not affect the others."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from tune_rescon.storage import SearchHome, StorageUrl
from tune_rescon.tuning import SearchFolder, SearchLocation, SearchState, list_searches, read_search

MakeSearch = Callable[..., SearchFolder]

pytestmark = pytest.mark.timeout(20)  # SQLite on a busy disk


@pytest.mark.parametrize("reports", [None, 0, 5])
def test_a_line_agrees_with_the_search(
    reports: int | None, make_search: MakeSearch, location: SearchLocation
) -> None:
    make_search("a", reports=reports)
    (line,) = list_searches(location)
    result = read_search(location, "a")
    assert (line.name, line.state, line.metric, line.problem) == ("a", result.state, result.metric, "")
    assert (line.ended, line.total) == (sum(t.state.is_final for t in result.trials), 6)
    assert line.best == pytest.approx(result.best.value if result.best else math.nan, nan_ok=True)
    assert line.changed is not None
    assert datetime.now(UTC) - line.changed < timedelta(minutes=5)


@pytest.mark.parametrize("at", ["best", "last"])
def test_a_lines_value_is_that_of_the_epoch_that_counts(
    at: str, make_search: MakeSearch, location: SearchLocation
) -> None:
    folder = make_search("a", trials=3)
    with closing(sqlite3.connect(folder.path / "study.db", isolation_level=None)) as database:
        # Every curve falls.
        database.execute("UPDATE trial_intermediate_values SET intermediate_value = 1 - intermediate_value")
        database.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = ?", [f'"{at}"', "metric_at"]
        )
    best = read_search(location, "a").best
    assert best is not None
    assert best.value_epoch == (1 if at == "best" else best.epochs)
    (line,) = list_searches(location)
    assert line.best == pytest.approx(best.value)


def test_the_last_to_change_comes_first_and_a_broken_one_says_why(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    for name in ("old", "new", "garbage", "gone", "unreadable"):
        make_search(name, reports=2)
    assert isinstance(location.storage, Path)
    (location.storage / "garbage" / "study.db").write_bytes(b"no database" * 1000)
    (location.storage / "gone" / "study.db").unlink()
    (location.storage / "unreadable" / "space.yaml").write_text("version: 1\nname: [")
    found = {line.name: line for line in list_searches(location)}
    assert list(found)[:2] == ["new", "old"]
    assert found["new"].state is SearchState.INTERRUPTED
    assert {name for name, line in found.items() if line.problem} == {"garbage", "gone", "unreadable"}
    assert all(found[name].state is None for name in ("garbage", "gone", "unreadable"))
    # Looking makes no file.
    assert not (location.storage / "gone" / "study.db").exists()


def test_a_storage_without_a_search_has_none(location: SearchLocation) -> None:
    assert list_searches(location) == ()


def test_fifty_searches_are_listed_soon(make_search: MakeSearch, location: SearchLocation) -> None:
    assert isinstance(location.storage, Path)
    folder = make_search("s0")
    for number in range(1, 50):
        copy = shutil.copytree(folder.path, location.storage / f"s{number}")
        with closing(sqlite3.connect(copy / "study.db", isolation_level=None)) as database:
            database.execute("UPDATE studies SET study_name = ?", [copy.name])
    begun = time.process_time()
    found = list_searches(location)
    # It takes 1 s.
    assert time.process_time() - begun < 4
    assert [line.state for line in found] == [SearchState.FINISHED] * 50


def test_searches_at_a_url(make_search: MakeSearch, location: SearchLocation, tmp_path: Path) -> None:
    bucket = StorageUrl(url="memory://bucket/list")
    for name in ("a", "b"):
        folder = make_search(name, storage=tmp_path / "scratch")
        home = SearchHome.create(bucket, name)
        for file in ("space.yaml", "study.db")[: 2 if name == "a" else 1]:
            home.remote.upload(folder.path / file, file)
    found = list_searches(dataclasses.replace(location, storage=bucket))
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    assert [(line.name, line.state) for line in found] == [("a", SearchState.FINISHED), ("b", None)]
    assert found[1].problem
