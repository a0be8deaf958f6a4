"""The directory of a new search: the driver that gets it, and its deletion."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from tests.tuning.conftest import MakeSearch
from tune_rescon.errors import NameTakenError, StorageError
from tune_rescon.tuning import SearchFolder, StudyRecord
from tune_rescon.tuning.folder_state import FolderState, folder_state, reserved


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    return SearchFolder(storage=tmp_path / "runs", name="s")


@pytest.mark.parametrize(("file", "is_kept"), [("space.yaml", True), ("search.log", False)])
def test_a_search_that_fails_keeps_its_directory_only_if_it_had_begun(
    file: str, is_kept: bool, folder: SearchFolder
) -> None:
    with contextlib.suppress(RuntimeError), reserved(folder):
        (folder.path / file).touch()
        raise RuntimeError
    assert folder.path.exists() is is_kept
    assert folder.storage.exists() is is_kept


@pytest.mark.parametrize("leftovers", [[], ["search.log"], ["search.log", "study.db", ".space.yaml.4711"]])
def test_leftovers_of_a_driver_killed_before_its_start_are_deleted(
    leftovers: list[str], folder: SearchFolder
) -> None:
    folder.create()
    for name in leftovers:
        # The driver died before its database had a table.
        (folder.path / name).write_text("" if name == "study.db" else "of the dead")
    with reserved(folder):
        assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("file", ["space.yaml", "trials.csv", "thesis.tex", "study.db.bak"])
def test_a_directory_with_other_files_is_not_changed(file: str, folder: SearchFolder) -> None:
    folder.create()
    (folder.path / file).write_text("dear")
    with pytest.raises(StorageError, match="must be free"), reserved(folder):
        pass
    assert (folder.path / file).read_text() == "dear"


@pytest.mark.timeout(20)  # a database
def test_a_record_with_trials_is_never_taken_over(make_search: MakeSearch) -> None:
    """As if only study.db was restored from a backup, or space.yaml was deleted."""
    folder = make_search("s", reports=4)
    folder.space_yaml.unlink()
    assert folder_state(folder) is FolderState.FOREIGN
    with (
        pytest.raises(NameTakenError, match=r"without its space\.yaml.* Restore"),
        reserved(folder),
    ):
        pass
    record = StudyRecord.load(folder.study_url, "s", metric="val_accuracy")
    assert sum(trial.epochs for trial in record.trials()) == 4


@pytest.mark.timeout(20)  # a database
@pytest.mark.parametrize("fault", ["cut", "locked"])
def test_an_unreadable_record_is_not_taken_over(
    fault: str, make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the study is being restored, or was restored incompletely."""
    folder = make_search("s", reports=4)
    folder.space_yaml.unlink()
    database = folder.study_db.read_bytes()
    with closing(sqlite3.connect(folder.study_db)) as connection:
        if fault == "cut":
            folder.study_db.write_bytes(database[: len(database) // 3])
        else:
            connection.execute("BEGIN EXCLUSIVE")
            # SQLite would wait five seconds for the lock, three times.
            monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0.1))
        assert folder_state(folder) is FolderState.FOREIGN
        with pytest.raises(NameTakenError, match=r"without its space\.yaml"), reserved(folder):
            pass
    assert folder.study_db.exists()


@pytest.mark.timeout(20)  # a database
def test_a_record_without_trials_is_taken_over(folder: SearchFolder) -> None:
    folder.create()
    StudyRecord.create(folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
    with reserved(folder):
        assert not folder.study_db.exists()


def test_a_name_is_reserved_while_its_search_begins(folder: SearchFolder) -> None:
    with reserved(folder):
        with pytest.raises(StorageError, match="must be free"), reserved(folder):
            pass
        assert folder.path.is_dir()


def test_a_driver_that_lost_the_directory_before_locking_does_not_begin(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def lose_before_lock(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        folder.path.rename(folder.path.with_name("lost"))
        folder.create()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", lose_before_lock)
    with pytest.raises(StorageError, match="must be free"), reserved(folder):
        pass
    assert folder.path.is_dir(), "the directory belongs to the other driver"


@pytest.fixture
def locks_of_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS can lock only files that are open for writing, and no directories."""
    lock = fcntl.flock

    def refuse(handle: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("locks_of_nfs")
def test_a_file_is_locked_where_a_directory_cannot_be(folder: SearchFolder) -> None:
    folder.create()
    with reserved(folder):
        assert folder_state(folder) is FolderState.OPENING
        with pytest.raises(NameTakenError), reserved(folder):
            pass
        folder.log.touch()
    assert folder_state(folder) is FolderState.ABANDONED
    with reserved(folder):
        assert not folder.log.exists()


def test_without_file_locks_a_name_stays_taken(folder: SearchFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, f"no lock {operation} of {handle}")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with reserved(folder):
        assert folder_state(folder) is FolderState.OPENING
        with pytest.raises(NameTakenError), reserved(folder):
            pass
    assert folder_state(folder) is FolderState.OPENING


@pytest.mark.parametrize(
    ("files", "state"),
    [
        (None, FolderState.FREE),
        ([], FolderState.ABANDONED),
        (["search.log", "study.db", "study.db-journal", ".space.yaml.12.tmp"], FolderState.ABANDONED),
        (["search.log", "study.db", "space.yaml"], FolderState.BEGUN),
        (["space.yaml", "thesis.tex"], FolderState.BEGUN),
        (["thesis.tex"], FolderState.FOREIGN),
    ],
)
def test_files_decide_folder_state(files: list[str] | None, state: FolderState, folder: SearchFolder) -> None:
    if files is not None:
        folder.create()
        for name in files:
            (folder.path / name).touch()
    assert folder_state(folder) is state


def test_a_file_of_the_name_is_not_a_search(folder: SearchFolder) -> None:
    folder.storage.mkdir()
    folder.path.touch()
    assert folder_state(folder) is FolderState.FOREIGN
    with pytest.raises(NameTakenError), reserved(folder):
        pass
