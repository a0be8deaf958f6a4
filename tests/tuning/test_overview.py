"""The list of searches: each line agrees with its search; a broken search does not affect the others."""

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
from unittest import mock

import fsspec
import pytest

from tests.tuning.conftest import MakeSearch
from tune_rescon.spaces import dump_space, load_space
from tune_rescon.storage import SearchHome, StorageUrl
from tune_rescon.testing import SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning import SearchFolder, SearchLocation, SearchState, list_searches, read_search

pytestmark = pytest.mark.timeout(20)  # SQLite on a busy disk


@pytest.mark.parametrize("reports", [None, 0, 5])
def test_a_line_agrees_with_the_search(
    reports: int | None, make_search: MakeSearch, location: SearchLocation
) -> None:
    make_search("a", reports=reports)
    (line,) = list_searches(location)
    result = read_search(location, "a")
    assert (line.name, line.state, line.metric, line.problem) == ("a", result.state, result.metric, "")
    assert (line.ended, line.total) == (sum(record.state.is_final for record in result.trials), 6)
    assert line.best == pytest.approx(result.best.value if result.best else math.nan, nan_ok=True)
    assert line.changed is not None
    assert datetime.now(UTC) - line.changed < timedelta(minutes=5)


def test_a_killed_drivers_transaction_is_rolled_back_for_a_reader_who_may_not_write(
    make_search: MakeSearch, location: SearchLocation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = make_search("a").study_db
    (line,) = list_searches(location)
    copy = Path(shutil.copy(file, tmp_path / "study.db"))
    with closing(sqlite3.connect(copy, isolation_level=None)) as killed:
        killed.execute("PRAGMA cache_size=1")
        killed.execute("BEGIN IMMEDIATE")
        killed.execute("UPDATE trial_intermediate_values SET intermediate_value = 2.0")
        killed.execute("CREATE TABLE large AS SELECT zeroblob(1000000)")
        for suffix in ("", "-journal"):
            shutil.copyfile(f"{copy}{suffix}", f"{file}{suffix}")
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def read_only(database: str | Path, **kwargs: bool | float) -> sqlite3.Connection:
        # A test that runs as root may write any file.
        is_ours = str(database) == f"{file.as_uri()}?mode=rw"
        return connect(f"{file.as_uri()}?mode=ro" if is_ours else database, **kwargs)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    assert list_searches(location) == (line,)
    assert read_search(location, "a").state is SearchState.FINISHED


def test_a_search_is_listed_without_a_copy_during_a_transaction_of_its_driver(
    make_search: MakeSearch, location: SearchLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_search("a", reports=4).study_db
    listed = list_searches(location)
    monkeypatch.setattr("tune_rescon.storage.sqlite._back_up", mock.Mock(side_effect=AssertionError))
    with closing(sqlite3.connect(file, isolation_level=None, timeout=0)) as driver:
        driver.execute("BEGIN IMMEDIATE")
        driver.execute("DELETE FROM trial_intermediate_values")
        assert file.with_name("study.db-journal").stat().st_size > 0
        assert list_searches(location) == listed
        driver.execute("COMMIT")


def test_a_line_is_of_the_recorded_space_until_a_resume_uses_the_edited_file(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    folder = make_search("a")
    (before,) = list_searches(location)
    space = load_space(str(folder.space_yaml), ["budget.trials=12"])
    folder.space_yaml.write_text(dump_space(space), encoding="utf-8")
    result = read_search(location, "a")
    (line,) = list_searches(location)
    assert line == before
    assert (line.total, line.state) == (result.space.budget.trials, result.state)


def resumed_by_an_earlier_version(folder: SearchFolder, *, trials: int) -> None:
    """Change the total of a search as an earlier version did, which wrote the new space to the file only."""
    with closing(sqlite3.connect(folder.study_db)) as database, database:
        database.execute("DELETE FROM study_user_attributes WHERE key LIKE 'space:%'")
    space = load_space(str(folder.space_yaml), [f"budget.trials={trials}"])
    folder.space_yaml.write_text(dump_space(space), encoding="utf-8")


def test_a_line_of_a_record_without_versions_of_the_space_is_of_the_file(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    resumed_by_an_earlier_version(make_search("a"), trials=12)
    result = read_search(location, "a")
    (line,) = list_searches(location)
    assert (line.total, line.state) == (12, result.state) == (result.space.budget.trials, result.state)


def test_a_line_has_no_more_ended_trials_than_trials(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    """A resume has lowered the budget below the six trials that there are."""
    resumed_by_an_earlier_version(make_search("a"), trials=2)
    (line,) = list_searches(location)
    assert (line.ended, line.total) == (6, 6)


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


def test_a_line_has_no_value_of_a_failed_trial_unless_all_failed(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    folder = make_search("a", trials=3, reports=5)
    for failed in (1, 3):
        furthest = max(read_search(location, "a").trials, key=lambda trial: trial.epochs)
        with closing(sqlite3.connect(folder.path / "study.db", isolation_level=None)) as database:
            database.execute(
                "UPDATE trial_user_attributes SET value_json = '\"failed\"' WHERE key = 'state'"
                + (f" AND trial_id = {furthest.number + 1}" if failed == 1 else "")
            )
        best = read_search(location, "a").best
        assert best is not None
        assert (best.number == furthest.number) is (failed == 3)
        (line,) = list_searches(location)
        assert line.best == pytest.approx(best.value)


def test_a_line_of_a_users_own_metric_has_the_best_value_by_its_direction(location: SearchLocation) -> None:
    """The direction of the metric is in the study only."""
    assert isinstance(location.storage, Path)
    folder = SearchFolder(storage=location.storage, name="a")
    metric = "metric={name: val_loss, mode: min, log: ['own_metrics:wrong']}"
    settings = (
        "initial=[]",
        "budget.trials=6",
        "fidelity.max=3",
        "sampler.type=random",
        "scheduler.type=none",
        metric,
    )
    search = SimulatedSearch(load_space("att92", settings), folder=folder)
    Simulation(lambda trial: SyntheticCurve(limit=0.9 - 0.1 * trial.number)).drive(search.policy())
    # The simulation reports losses only, so the metric is renamed to that of the function afterwards.
    with closing(sqlite3.connect(folder.study_db, isolation_level=None)) as database:
        database.execute("UPDATE study_user_attributes SET value_json = '\"val_wrong\"' WHERE key = 'metric'")
    losses = [record.value for record in read_search(location, "a").trials if record.epochs == 3]
    (line,) = list_searches(location)
    assert (line.problem, line.metric) == ("", "val_wrong")
    assert line.best == pytest.approx(min(losses))
    assert min(losses) < max(losses)


def test_a_line_of_final_trainings_has_the_value_of_the_winner_by_the_mean(
    tmp_path: Path, location: SearchLocation
) -> None:
    row = "depth: 92, image_size: 32, weight_decay: 1e-4, drop_path: 0.0"
    rows = [f"{{{row}, learning_rate: {rate}}}" for rate in (0.1, 0.1, 0.05, 0.05)]
    settings = (
        "metric.name=test_accuracy",
        "dataset.hold_out=false",
        f"initial=[{', '.join(rows)}]",
        "budget.trials=4",
        "fidelity.max=2",
        "scheduler.type=none",
        "sampler.repeats=true",
    )
    search = SimulatedSearch(
        load_space("att92", settings),
        folder=SearchFolder(storage=tmp_path / "runs", name="a"),
    )
    Simulation(lambda _: SyntheticCurve(limit=0.9)).drive(search.policy())
    # The simulation has no test images. The best seed belongs to the parameters with the worse mean.
    with closing(sqlite3.connect(tmp_path / "runs" / "a" / "study.db", isolation_level=None)) as database:
        for number, value in enumerate((0.9, 0.5, 0.8, 0.75)):
            database.execute(
                "UPDATE trial_intermediate_values SET intermediate_value_type = 'FINITE',"
                " intermediate_value = ? WHERE step = 2 AND trial_id ="
                " (SELECT trial_id FROM trials WHERE number = ?)",
                [value, number],
            )
    result = read_search(location, "a")
    assert result.best is not None
    assert result.best.number == 2
    assert max(result.trials, key=lambda trial: trial.value).number == 0
    (line,) = list_searches(location)
    assert (line.problem, line.best) == ("", result.best.value)


def test_the_last_changed_search_is_first_and_broken_ones_have_a_problem(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    for name in ("old", "new", "garbage", "gone", "unreadable"):
        make_search(name, reports=2)
    assert isinstance(location.storage, Path)
    (location.storage / "garbage" / "study.db").write_bytes(b"no database" * 1000)
    (location.storage / "gone" / "study.db").unlink()
    (location.storage / "unreadable" / "space.yaml").write_text("version: 1\nname: [")
    lines = {line.name: line for line in list_searches(location)}
    assert list(lines)[:2] == ["new", "old"]
    assert lines["new"].state is SearchState.INTERRUPTED
    assert {name for name, line in lines.items() if line.problem} == {"garbage", "gone", "unreadable"}
    assert all(lines[name].state is None for name in ("garbage", "gone", "unreadable"))
    # Listing creates no file.
    assert not (location.storage / "gone" / "study.db").exists()


def test_a_storage_without_a_search_has_none(location: SearchLocation) -> None:
    assert list_searches(location) == ()


def test_fifty_searches_are_listed_quickly(make_search: MakeSearch, location: SearchLocation) -> None:
    assert isinstance(location.storage, Path)
    folder = make_search("s0")
    for number in range(1, 50):
        copied_folder = shutil.copytree(folder.path, location.storage / f"s{number}")
        with closing(sqlite3.connect(copied_folder / "study.db", isolation_level=None)) as database:
            database.execute("UPDATE studies SET study_name = ?", [copied_folder.name])
    start = time.process_time()
    lines = list_searches(location)
    # It takes 1 s.
    assert time.process_time() - start < 4
    assert [line.state for line in lines] == [SearchState.FINISHED] * 50


def test_url_searches_are_listed(make_search: MakeSearch, location: SearchLocation, tmp_path: Path) -> None:
    bucket = StorageUrl(url="memory://bucket/list")
    for name in ("a", "b"):
        folder = make_search(name, storage=tmp_path / "scratch")
        home = SearchHome.create(bucket, name)
        for file in ("space.yaml", "study.db")[: 2 if name == "a" else 1]:
            home.remote.upload(folder.path / file, file)
    lines = list_searches(dataclasses.replace(location, storage=bucket))
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    assert [(line.name, line.state) for line in lines] == [("a", SearchState.FINISHED), ("b", None)]
    assert lines[1].problem
