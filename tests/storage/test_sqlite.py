"""Databases on their way to a URL and back, while they are written and after machines died."""

from __future__ import annotations

import itertools
import logging
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tune_rescon.errors import StorageError
from tune_rescon.storage import Discard, RemoteError, RemoteFolder, Sender, SupersededError, fetch_databases
from tune_rescon.storage.sqlite import (
    Version,
    content_digest,
    copy_database,
    is_whole,
    parse_version,
    read_version,
    write_version,
)


def create_database(path: Path, *, wal: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
        database.execute("CREATE TABLE epochs (n INTEGER)")
        database.commit()


def add_epoch(path: Path, n: int) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO epochs VALUES (?)", (n,))
        database.commit()


def epochs(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("SELECT n FROM epochs ORDER BY n")]


class Machine:
    """A machine with a local copy of the study."""

    def __init__(self, scratch: Path, remote: RemoteFolder) -> None:
        self.study = scratch / "study.db"
        self.remote = remote

    def start_run(self) -> Sender:
        """Start a run of the search: fetch the study, create it if it is missing, send it."""
        term = fetch_databases(self.remote, {"study.db": self.study})
        if not self.study.exists():
            create_database(self.study)
        sender = Sender(self.remote, term=term, databases={"study.db": self.study}, files={})
        sender.send()
        return sender


@pytest.fixture
def machine(tmp_path: Path, memory: RemoteFolder) -> Machine:
    return Machine(tmp_path / "here", memory)


@pytest.fixture
def other_machine(tmp_path: Path, memory: RemoteFolder) -> Machine:
    return Machine(tmp_path / "there", memory)


@pytest.mark.parametrize("wal", [False, True])
def test_a_copy_of_a_database_in_use_is_one_consistent_file(tmp_path: Path, wal: bool) -> None:
    live, copy = tmp_path / "live.db", tmp_path / "copy.db"
    create_database(live, wal=wal)
    add_epoch(live, 1)
    with closing(sqlite3.connect(live)) as writer:
        writer.execute("INSERT INTO epochs VALUES (2)")
        copy_database(live, copy)
        writer.commit()
    assert epochs(copy) == [1]
    assert epochs(live) == [1, 2]
    assert [path.name for path in tmp_path.glob("copy.db*")] == ["copy.db"]
    write_version(copy, Version(7, 3))
    assert read_version(copy) == Version(7, 3)
    assert read_version(live) == Version(0, 0)


def test_a_version_is_read_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    assert read_version(path) is None
    create_database(path)
    written = content_digest(path)
    write_version(path, Version(70000, 80000))
    assert read_version(path) == parse_version(path.read_bytes()[60:72]) == Version(70000, 80000)
    assert parse_version(None) is None
    assert content_digest(path) == written


def test_another_machine_resumes_from_the_sent_copy(machine: Machine, other_machine: Machine) -> None:
    sender = machine.start_run()
    for n in (1, 2):
        add_epoch(machine.study, n)
    sender.send()
    add_epoch(machine.study, 3)

    other_machine.start_run()
    assert epochs(other_machine.study) == [1, 2]
    assert read_version(other_machine.study) == Version(2, 3)


def test_a_machine_restored_from_an_old_image_takes_the_sent_copy(machine: Machine) -> None:
    sender = machine.start_run()
    add_epoch(machine.study, 1)
    sender.send()
    image = machine.study.read_bytes()
    add_epoch(machine.study, 2)
    sender.send()
    machine.study.write_bytes(image)
    machine.start_run()
    assert epochs(machine.study) == [1, 2]


def test_the_same_machine_loses_nothing(machine: Machine) -> None:
    machine.start_run()
    add_epoch(machine.study, 1)
    machine.start_run()
    assert epochs(machine.study) == [1]


def test_a_returning_machine_takes_the_newer_copy_and_reports_it(
    machine: Machine, other_machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.start_run()
    add_epoch(machine.study, 1)
    sender = other_machine.start_run()
    add_epoch(other_machine.study, 10)
    sender.send()
    with caplog.at_level(logging.WARNING):
        machine.start_run()
    assert epochs(machine.study) == [10]
    assert "study.db of run 1 on this machine is replaced by that of run 2 at memory://" in caplog.text


def test_files_beside_an_older_copy_are_removed_with_it(machine: Machine, other_machine: Machine) -> None:
    machine.start_run()
    other_machine.start_run()
    beside = machine.study.with_name("study.db-journal")
    beside.write_bytes(b"of the older copy")
    machine.start_run()
    assert not beside.exists()


def test_a_superseded_run_sends_nothing_more(machine: Machine, other_machine: Machine) -> None:
    suspended = machine.start_run()
    add_epoch(machine.study, 1)
    other_machine.start_run()
    with pytest.raises(SupersededError, match=r"later run \(2\)"):
        suspended.send()
    assert other_machine.remote.read("study.db", start=60, end=64) == (2).to_bytes(4, "big")


def test_a_damaged_local_copy_is_replaced(machine: Machine) -> None:
    sender = machine.start_run()
    add_epoch(machine.study, 1)
    sender.send()
    machine.study.write_bytes(machine.study.read_bytes()[:1000])
    assert not is_whole(machine.study)
    machine.start_run()
    assert epochs(machine.study) == [1]


def test_a_damaged_remote_copy_is_reported_and_not_used(machine: Machine, other_machine: Machine) -> None:
    machine.start_run()
    data = machine.remote.read("study.db")
    assert data is not None
    machine.remote.write("study.db", data[:1000])
    with pytest.raises(StorageError, match=r"got a damaged memory://.*/study\.db"):
        other_machine.start_run()
    assert list(other_machine.study.parent.iterdir()) == []


def test_the_mlflow_copy_is_never_ahead_of_the_study_copy(
    memory: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch is written to both databases, the study first, between any two steps of a copy."""
    live = {name: tmp_path / name for name in ("study.db", "mlflow.db")}
    for path in live.values():
        create_database(path)
    sender = Sender(memory, term=1, databases=live, files={})
    counter = itertools.count(1)

    def write_epoch_and_compare() -> None:
        epoch = next(counter)
        add_epoch(live["study.db"], epoch)
        add_epoch(live["mlflow.db"], epoch)
        remote_epochs = {}
        for name in live:
            if memory.download(name, tmp_path / "look.db"):
                remote_epochs[name] = epochs(tmp_path / "look.db")
        assert set(remote_epochs.get("mlflow.db", ())) <= set(remote_epochs.get("study.db", ()))

    def followed_by_write(step: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any, **options: Any) -> None:
            step(*arguments, **options)
            write_epoch_and_compare()

        return wrapped

    monkeypatch.setattr("tune_rescon.storage.mirror.copy_database", followed_by_write(copy_database))
    monkeypatch.setattr(RemoteFolder, "upload", followed_by_write(RemoteFolder.upload))
    sender.send()
    sender.send()
    assert next(counter) == 9


def test_a_second_database_is_fetched_with_the_study_or_starts_empty(
    memory: RemoteFolder, tmp_path: Path
) -> None:
    def start_run_on(name: str, *databases: str) -> dict[str, Path]:
        paths = {database: tmp_path / name / database for database in databases}
        term = fetch_databases(memory, paths)
        for path in paths.values():
            if not path.exists():
                create_database(path)
        Sender(memory, term=term, databases=paths, files={}).send()
        return paths

    paths_here = start_run_on("here", "study.db", "mlflow.db")
    add_epoch(paths_here["study.db"], 1)
    add_epoch(paths_here["mlflow.db"], 1)
    start_run_on("there", "study.db")
    fetch_databases(memory, paths_here)
    assert epochs(paths_here["study.db"]) == epochs(paths_here["mlflow.db"]) == []
    memory.delete("mlflow.db")
    start_run_on("there", "study.db")
    fetch_databases(memory, paths_here)
    assert not paths_here["mlflow.db"].exists()


def test_an_unchanged_database_is_not_sent_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[str] = []
    original_upload = RemoteFolder.upload

    def upload(self: RemoteFolder, source: Path, name: str) -> None:
        sent.append(name)
        original_upload(self, source, name)

    monkeypatch.setattr(RemoteFolder, "upload", upload)
    create_database(machine.study)
    table = tmp_path / "trials.csv"
    files = {"trials.csv": table, "best.yaml": tmp_path / "best.yaml"}
    sender = Sender(machine.remote, term=1, databases={"study.db": machine.study}, files=files)
    sender.send()
    add_epoch(machine.study, 1)
    table.write_text("trial")
    sent.clear()
    sender.send()
    sender.send()
    assert sent == ["study.db", "trials.csv"]


def test_a_machine_whose_first_send_failed_takes_the_remote_copy(
    machine: Machine, other_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RemoteFolder, source: Path, name: str) -> None:
        raise RemoteError(f"no room for {source} as {name} at {self.url}")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", refuse)
        with pytest.raises(RemoteError):
            machine.start_run()
    sender = other_machine.start_run()
    add_epoch(other_machine.study, 1)
    sender.send()
    machine.start_run()
    assert epochs(machine.study) == [1]


def test_discard_deletes_all_but_the_file_to_keep(machine: Machine) -> None:
    names = ["checkpoints/trial_0001/best.ckpt", "checkpoints/trial_0001/last.ckpt"]
    others = ["checkpoints/trial_0001/notes.txt", "checkpoints/trial_0011/best.ckpt", "space.yaml"]
    files = frozenset({"best.ckpt", "last.ckpt"})
    for name in names + others:
        machine.remote.write(name, b"1")
    sender = Sender(machine.remote, term=1, databases={}, files={})
    sender.discard([Discard(folder="checkpoints/trial_0001", names=files, keep="best.partial")])
    assert machine.remote.names() == names + others, "the file to keep does not exist"
    sender.discard([Discard(folder="checkpoints/trial_0001", names=files, keep="best.ckpt")])
    assert machine.remote.names() == [names[0], *others]
    for _ in "again":
        sender.discard([Discard(folder="checkpoints/trial_0001", names=files)])
    assert machine.remote.names() == others


def test_a_killed_writers_transaction_is_rolled_back_for_a_reader_who_may_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the report of a colleague's search."""
    live, left = tmp_path / "live" / "study.db", tmp_path / "left" / "study.db"
    create_database(live)
    add_epoch(live, 1)
    left.parent.mkdir()
    with closing(sqlite3.connect(live, isolation_level=None)) as killed:
        killed.execute("PRAGMA cache_size=1")
        killed.execute("BEGIN IMMEDIATE")
        killed.executemany("INSERT INTO epochs VALUES (?)", ((n,) for n in range(2, 50_000)))
        for suffix in ("", "-journal"):
            shutil.copyfile(live.with_name(f"study.db{suffix}"), left.with_name(f"study.db{suffix}"))
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def read_only(database: str | Path, **kwargs: Any) -> sqlite3.Connection:
        # A test that runs as root may write any file.
        is_left = str(database) == f"{left.as_uri()}?mode=rw"
        return connect(f"{left.as_uri()}?mode=ro" if is_left else database, **kwargs)

    before = {path.name: path.read_bytes() for path in left.parent.iterdir()}
    monkeypatch.setattr(sqlite3, "connect", read_only)
    copy_database(left, tmp_path / "copy.db")
    assert epochs(tmp_path / "copy.db") == [1]
    assert {path.name: path.read_bytes() for path in left.parent.iterdir()} == before
