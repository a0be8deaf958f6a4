"""Searches are read from their studies: killed, running and old ones, and searches at a URL."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import psutil
import pytest

from tests.tuning.conftest import MakeSearch
from tune_rescon.config import TrialState
from tune_rescon.data import describe
from tune_rescon.errors import StorageError
from tune_rescon.spaces import load_space
from tune_rescon.storage import SearchHome, StorageUrl
from tune_rescon.tuning import SearchFolder, SearchLocation, SearchState, StudyRecord, read_search
from tune_rescon.tuning.driver import Driver, Lease, driver_lives, this_driver
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.reader import search_state
from tune_rescon.tuning.study_attributes import read_run_attributes, record_outcome, record_run
from tune_rescon.tuning.study_lease import StudyLeaseStore

pytestmark = pytest.mark.timeout(20)  # SQLite on a busy disk


def record_of(folder: SearchFolder) -> StudyRecord:
    return StudyRecord.load(folder.study_url, folder.name, metric="val_accuracy")


def lease_of_parent(folder: SearchFolder) -> LeaseKeeper:
    """Take the search's lease for the parent of this process, which is alive."""
    parent = psutil.Process(os.getppid())
    driver = dataclasses.replace(this_driver(), pid=parent.pid, started=parent.create_time())
    store = StudyLeaseStore.open(folder.study_url, folder.name)
    lease_keeper = LeaseKeeper(store, name=folder.name, me=driver, clock=time.monotonic, sleep=lambda _: None)
    lease_keeper.take()
    return lease_keeper


def test_the_result_of_a_finished_search_is_read_from_its_record(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    folder = make_search("a")
    result = read_search(location, "a")
    assert result.trials == record_of(folder).trials()
    assert (result.name, result.state, result.failure) == ("a", SearchState.FINISHED, None)
    assert (result.rungs, result.device, result.devices_per_trial) == ((1, 3), "GPU", 1)
    assert result.best is not None
    assert result.best.state is TrialState.FINISHED
    assert set(result.costs) == set(range(6))
    assert all(cost.gmacs > 0 for cost in result.costs.values())
    assert result.tracking_uri == folder.mlflow_uri


def test_reading_changes_no_byte(make_search: MakeSearch, location: SearchLocation) -> None:
    folder = make_search("a", reports=4)

    def state() -> dict[str, str]:
        files = [path for path in folder.path.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    read_search(location, "a")
    assert state() == before


@pytest.mark.parametrize("reports", [0, 1, 3, 5])
def test_running_trials_of_a_killed_search_are_read_as_interrupted(
    reports: int, make_search: MakeSearch, location: SearchLocation
) -> None:
    make_search("a", reports=reports)
    result = read_search(location, "a")
    assert result.state is SearchState.INTERRUPTED
    assert sum(trial.epochs for trial in result.trials) == reports
    assert TrialState.RUNNING not in {trial.state for trial in result.trials}
    assert TrialState.INTERRUPTED in {trial.state for trial in result.trials}


def test_a_search_with_a_driver_is_read_as_running_without_blocking_it(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    folder = make_search("a", reports=4)
    lease_keeper = lease_of_parent(folder)
    result = read_search(location, "a")
    assert result.state is SearchState.RUNNING
    assert TrialState.RUNNING in {trial.state for trial in result.trials}
    lease_keeper.renew()
    lease_keeper.release()
    assert read_search(location, "a").state is SearchState.INTERRUPTED


def test_a_search_is_read_during_a_transaction_of_its_driver(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    folder = make_search("a", reports=4)
    with closing(sqlite3.connect(folder.path / "study.db", isolation_level=None)) as driver:
        driver.execute("BEGIN IMMEDIATE")
        driver.execute("DELETE FROM trial_intermediate_values")
        assert sum(trial.epochs for trial in read_search(location, "a").trials) == 4
        driver.execute("ROLLBACK")


def test_an_unfinished_transaction_of_a_killed_driver_is_rolled_back(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    folder = make_search("whole", reports=4)
    killed = SearchFolder(storage=folder.storage, name="killed")
    with closing(sqlite3.connect(folder.path / "study.db", isolation_level=None)) as driver:
        driver.execute("UPDATE studies SET study_name = 'killed'")
        # Pages are written to the file before the transaction ends, as in a long transaction.
        driver.execute("PRAGMA cache_size = 1")
        driver.execute("BEGIN")
        driver.execute("DELETE FROM trial_system_attributes")
        driver.execute("DELETE FROM trial_intermediate_values")
        # A kill leaves the files as they are now.
        shutil.copytree(folder.path, killed.path)
        driver.execute("ROLLBACK")
    assert (killed.path / "study.db-journal").stat().st_size > 0
    assert sum(trial.epochs for trial in read_search(location, "killed").trials) == 4


@pytest.mark.parametrize("state", [SearchState.FAILED, SearchState.FINISHED, SearchState.INTERRUPTED])
def test_the_outcome_of_a_run_is_read(
    state: SearchState, make_search: MakeSearch, location: SearchLocation
) -> None:
    record = record_of(make_search("a", reports=4))
    assert not read_search(location, "a").has_outcome
    record_outcome(record, state, "Too much failed." if state is SearchState.FAILED else None)
    result = read_search(location, "a")
    assert result.state is state
    assert result.has_outcome
    assert result.failure == ("Too much failed." if state is SearchState.FAILED else None)


def test_run_attributes_read_back_without_passwords(make_search: MakeSearch) -> None:
    record = record_of(make_search("a", reports=0))
    datasets = {"cifar10": describe(load_space("att92").dataset, data_root=Path("data"))}
    record_run(record, datasets, "http://user:secret@mlflow:5000")
    notes = read_run_attributes(record)
    assert (notes.datasets, notes.tracking_uri, notes.outcome) == (datasets, "http://mlflow:5000", None)
    record_run(record, datasets, "http://mlflow:5000")
    assert read_run_attributes(record).tracking_uri == "http://mlflow:5000"


def test_a_relative_tracking_uri_is_recorded_as_absolute(
    make_search: MakeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a relative URI, `report --sync` in another directory would create a second store."""
    record = record_of(make_search("a", reports=0))
    monkeypatch.chdir(tmp_path)
    record_run(record, {}, "sqlite:///50%25.db?timeout=9")
    assert read_run_attributes(record).tracking_uri == f"sqlite:///{tmp_path}/50%25.db?timeout=9"


def test_an_epoch_without_its_details_is_not_read(make_search: MakeSearch, location: SearchLocation) -> None:
    folder = make_search("a")
    before = sum(trial.epochs for trial in read_search(location, "a").trials)
    with closing(sqlite3.connect(folder.path / "study.db", isolation_level=None)) as database:
        database.execute(
            "DELETE FROM trial_system_attributes WHERE key = 'tune_rescon:epoch:3' AND trial_id ="
            " (SELECT MAX(trial_id) FROM trial_system_attributes WHERE key = 'tune_rescon:epoch:3')"
        )
    assert sum(trial.epochs for trial in read_search(location, "a").trials) == before - 1


def test_a_folder_without_its_study_is_reported(make_search: MakeSearch, location: SearchLocation) -> None:
    folder = make_search("a")
    (folder.path / "study.db").unlink()
    with pytest.raises(StorageError, match="If the search was given a --study, give it here too"):
        read_search(location, "a")


def test_a_study_in_another_database_is_read(
    make_search: MakeSearch, location: SearchLocation, tmp_path: Path
) -> None:
    folder = make_search("a")
    (folder.path / "study.db").rename(tmp_path / "elsewhere.db")
    moved = dataclasses.replace(location, study_url=f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert len(read_search(moved, "a").trials) == 6


def test_a_missing_search_is_refused_with_the_existing_ones(
    make_search: MakeSearch, location: SearchLocation
) -> None:
    make_search("a", reports=0)
    with pytest.raises(StorageError, match=r"--compare: no search named 'b' .*Searches there: a"):
        read_search(location, "b", where="--compare")


@pytest.fixture
def bucket() -> Iterator[StorageUrl]:
    filesystem = fsspec.filesystem("memory")
    yield StorageUrl(url="memory://bucket/runs")
    filesystem.rm("/bucket", recursive=True)


def test_a_search_at_a_url_is_read(
    make_search: MakeSearch, location: SearchLocation, bucket: StorageUrl, tmp_path: Path
) -> None:
    folder = make_search("a", storage=tmp_path / "scratch")
    home = SearchHome.create(bucket, "a")
    for name in ("space.yaml", "study.db"):
        home.remote.upload(folder.path / name, name)
    at_url = dataclasses.replace(location, storage=bucket)
    result = read_search(at_url, "a")
    assert (result.url, result.state, len(result.trials)) == (home.remote.url, SearchState.FINISHED, 6)


THIS_DRIVER = Driver(host="here", place="here 1", pid=1, started=0.0)
SAME_MACHINE = Driver(host="here", place="here 1", pid=2, started=5.0)
OTHER_MACHINE = Driver(host="there", place="there 1", pid=2, started=5.0)


def lease(driver: Driver | None) -> Lease:
    return Lease(driver=driver, token="t", beat=1, since="", seconds=20.0, driven=0.0)


@pytest.mark.parametrize(
    ("recorded_lease", "started", "seconds_since_heartbeat", "is_alive"),
    [
        (None, None, 0.0, False),
        (lease(None), 5.0, 0.0, False),
        # For a process of this machine the process table decides, not the heartbeat.
        (lease(SAME_MACHINE), 5.0, 1e6, True),
        (lease(SAME_MACHINE), None, 0.0, False),
        # A reused number, or another machine: the heartbeat decides.
        (lease(SAME_MACHINE), 500.0, 1.0, True),
        (lease(SAME_MACHINE), 500.0, 100.0, False),
        (lease(OTHER_MACHINE), None, 39.0, True),
        (lease(OTHER_MACHINE), None, 41.0, False),
    ],
)
def test_a_driver_is_alive_by_its_process_or_its_heartbeat(
    recorded_lease: Lease | None, started: float | None, seconds_since_heartbeat: float, is_alive: bool
) -> None:
    assert (
        driver_lives(recorded_lease, THIS_DRIVER, lambda _: started, silent=seconds_since_heartbeat)
        == is_alive
    )


@pytest.mark.parametrize(
    ("alive", "outcome", "ended", "expected"),
    [
        (True, None, 0, SearchState.RUNNING),
        (True, SearchState.FINISHED, 12, SearchState.RUNNING),
        (False, SearchState.INTERRUPTED, 3, SearchState.INTERRUPTED),
        # The hours or the points of the space were used up.
        (False, SearchState.FINISHED, 3, SearchState.FINISHED),
        (False, SearchState.FAILED, 12, SearchState.FAILED),
        (False, None, 11, SearchState.INTERRUPTED),
        (False, None, 12, SearchState.FINISHED),
    ],
)
def test_the_search_state_follows_from_driver_outcome_and_trials(
    alive: bool, outcome: SearchState | None, ended: int, expected: SearchState
) -> None:
    assert search_state(alive=alive, outcome=outcome, ended=ended, total=12) is expected
