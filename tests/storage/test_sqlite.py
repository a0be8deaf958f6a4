"""Databases on their way to a URL and back, while they are written and after machines died."""

from __future__ import annotations

import itertools
import logging
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


def make(path: Path, *, wal: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
        database.execute("CREATE TABLE epochs (n INTEGER)")
        database.commit()


def add(path: Path, n: int) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO epochs VALUES (?)", (n,))
        database.commit()


def epochs(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("SELECT n FROM epochs ORDER BY n")]


class Machine:
    """One machine's scratch."""

    def __init__(self, scratch: Path, remote: RemoteFolder) -> None:
        self.study = scratch / "study.db"
        self.remote = remote

    def begin(self) -> Sender:
        """A run: fetch, make what is not there, send."""
        term = fetch_databases(self.remote, {"study.db": self.study})
        if not self.study.exists():
            make(self.study)
        sender = Sender(self.remote, term=term, databases={"study.db": self.study}, files={})
        sender.send()
        return sender


@pytest.fixture
def here(tmp_path: Path, memory: RemoteFolder) -> Machine:
    return Machine(tmp_path / "here", memory)


@pytest.fixture
def there(tmp_path: Path, memory: RemoteFolder) -> Machine:
    return Machine(tmp_path / "there", memory)


@pytest.mark.parametrize("wal", [False, True])
def test_a_copy_of_a_database_in_use_is_one_consistent_file(tmp_path: Path, wal: bool) -> None:
    live, copy = tmp_path / "live.db", tmp_path / "copy.db"
    make(live, wal=wal)
    add(live, 1)
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
    make(path)
    written = content_digest(path)
    write_version(path, Version(70000, 80000))
    assert read_version(path) == parse_version(path.read_bytes()[60:72]) == Version(70000, 80000)
    assert parse_version(None) is None
    assert content_digest(path) == written


def test_another_machine_resumes_from_the_sent_copy(here: Machine, there: Machine) -> None:
    sender = here.begin()
    for n in (1, 2):
        add(here.study, n)
    sender.send()
    add(here.study, 3)

    there.begin()
    assert epochs(there.study) == [1, 2]
    assert read_version(there.study) == Version(2, 3)


def test_a_machine_restored_from_an_old_image_takes_the_sent_copy(here: Machine) -> None:
    sender = here.begin()
    add(here.study, 1)
    sender.send()
    image = here.study.read_bytes()
    add(here.study, 2)
    sender.send()
    here.study.write_bytes(image)
    here.begin()
    assert epochs(here.study) == [1, 2]


def test_the_same_machine_loses_nothing(here: Machine) -> None:
    here.begin()
    add(here.study, 1)
    here.begin()
    assert epochs(here.study) == [1]


def test_a_returning_machine_takes_the_newer_copy_and_reports_it(
    here: Machine, there: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    here.begin()
    add(here.study, 1)
    sender = there.begin()
    add(there.study, 10)
    sender.send()
    with caplog.at_level(logging.WARNING):
        here.begin()
    assert epochs(here.study) == [10]
    assert "study.db of this machine's run 1 gave way to run 2's at memory://" in caplog.text


def test_files_beside_an_older_copy_are_removed_with_it(here: Machine, there: Machine) -> None:
    here.begin()
    there.begin()
    beside = here.study.with_name("study.db-journal")
    beside.write_bytes(b"of the older copy")
    here.begin()
    assert not beside.exists()


def test_a_superseded_run_sends_nothing_more(here: Machine, there: Machine) -> None:
    sleeper = here.begin()
    add(here.study, 1)
    there.begin()
    with pytest.raises(SupersededError, match=r"later run \(2\)"):
        sleeper.send()
    assert there.remote.read("study.db", start=60, end=64) == (2).to_bytes(4, "big")


def test_a_damaged_local_copy_is_replaced(here: Machine) -> None:
    sender = here.begin()
    add(here.study, 1)
    sender.send()
    here.study.write_bytes(here.study.read_bytes()[:1000])
    assert not is_whole(here.study)
    here.begin()
    assert epochs(here.study) == [1]


def test_a_damaged_remote_copy_is_reported_and_not_used(here: Machine, there: Machine) -> None:
    here.begin()
    good = here.remote.read("study.db")
    assert good is not None
    here.remote.write("study.db", good[:1000])
    with pytest.raises(StorageError, match=r"got a damaged memory://.*/study\.db"):
        there.begin()
    assert list(there.study.parent.iterdir()) == []


def test_the_mlflow_copy_is_never_ahead_of_the_study_copy(
    memory: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs go into the study and then into MLflow's database, also between any two steps of a copy."""
    live = {name: tmp_path / name for name in ("study.db", "mlflow.db")}
    for path in live.values():
        make(path)
    sender = Sender(memory, term=1, databases=live, files={})
    counter = itertools.count(1)

    def meanwhile() -> None:
        epoch = next(counter)
        add(live["study.db"], epoch)
        add(live["mlflow.db"], epoch)
        seen = {}
        for name in live:
            if memory.download(name, tmp_path / "look.db"):
                seen[name] = epochs(tmp_path / "look.db")
        assert set(seen.get("mlflow.db", ())) <= set(seen.get("study.db", ()))

    def then(step: Callable[..., None]) -> Callable[..., None]:
        def both(*arguments: Any, **options: Any) -> None:
            step(*arguments, **options)
            meanwhile()

        return both

    monkeypatch.setattr("tune_rescon.storage.mirror.copy_database", then(copy_database))
    monkeypatch.setattr(RemoteFolder, "upload", then(RemoteFolder.upload))
    sender.send()
    sender.send()
    assert next(counter) == 9


def test_a_second_database_is_fetched_with_the_study_or_starts_empty(
    memory: RemoteFolder, tmp_path: Path
) -> None:
    def machine(name: str, *databases: str) -> dict[str, Path]:
        paths = {database: tmp_path / name / database for database in databases}
        term = fetch_databases(memory, paths)
        for path in paths.values():
            if not path.exists():
                make(path)
        Sender(memory, term=term, databases=paths, files={}).send()
        return paths

    here = machine("here", "study.db", "mlflow.db")
    add(here["study.db"], 1)
    add(here["mlflow.db"], 1)
    machine("there", "study.db")
    fetch_databases(memory, here)
    assert epochs(here["study.db"]) == epochs(here["mlflow.db"]) == []
    memory.delete("mlflow.db")
    machine("there", "study.db")
    fetch_databases(memory, here)
    assert not here["mlflow.db"].exists()


def test_an_unchanged_database_is_not_sent_again(
    here: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[str] = []
    whole = RemoteFolder.upload

    def upload(self: RemoteFolder, source: Path, name: str) -> None:
        sent.append(name)
        whole(self, source, name)

    monkeypatch.setattr(RemoteFolder, "upload", upload)
    make(here.study)
    table = tmp_path / "trials.csv"
    files = {"trials.csv": table, "best.yaml": tmp_path / "best.yaml"}
    sender = Sender(here.remote, term=1, databases={"study.db": here.study}, files=files)
    sender.send()
    add(here.study, 1)
    table.write_text("trial")
    sent.clear()
    sender.send()
    sender.send()
    assert sent == ["study.db", "trials.csv"]


def test_a_machine_whose_first_send_failed_takes_the_remote_copy(
    here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RemoteFolder, source: Path, name: str) -> None:
        raise RemoteError(f"no room for {source} as {name} at {self.url}")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", refuse)
        with pytest.raises(RemoteError):
            here.begin()
    sender = there.begin()
    add(there.study, 1)
    sender.send()
    here.begin()
    assert epochs(here.study) == [1]


def test_discard_deletes_all_but_the_file_to_keep(here: Machine) -> None:
    names = ["checkpoints/trial_0001/best.ckpt", "checkpoints/trial_0001/last.ckpt"]
    others = ["checkpoints/trial_0001/notes.txt", "checkpoints/trial_0011/best.ckpt", "space.yaml"]
    files = frozenset({"best.ckpt", "last.ckpt"})
    for name in names + others:
        here.remote.write(name, b"1")
    sender = Sender(here.remote, term=1, databases={}, files={})
    sender.discard([Discard(folder="checkpoints/trial_0001", names=files, keep="best.partial")])
    assert here.remote.names() == names + others, "what it was to keep is not there"
    sender.discard([Discard(folder="checkpoints/trial_0001", names=files, keep="best.ckpt")])
    assert here.remote.names() == [names[0], *others]
    for _ in "again":
        sender.discard([Discard(folder="checkpoints/trial_0001", names=files)])
    assert here.remote.names() == others
