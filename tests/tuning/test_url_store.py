"""The storage of a run at a URL: its name, its copies, and the files of a resume. No Ray is started."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tune_rescon.errors import StorageError
from tune_rescon.storage import RemoteError, RemoteFolder, SearchHome, StorageUrl
from tune_rescon.tuning import RunOptions, find_search
from tune_rescon.tuning.ray.worker import synchronised
from tune_rescon.tuning.search_storage import open_store
from tune_rescon.tuning.store import UrlStore


@pytest.fixture
def storage() -> StorageUrl:
    return StorageUrl(url=f"memory://{uuid.uuid4().hex}/runs")


@pytest.fixture
def options(storage: StorageUrl, tmp_path: Path) -> RunOptions:
    return RunOptions(name="s", storage=storage, cache_root=tmp_path / "here")


@pytest.fixture
def remote(storage: StorageUrl) -> RemoteFolder:
    return RemoteFolder.connect(storage)


def write(path: Path, text: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS t (x TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (text,))
        database.commit()


def texts(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("SELECT x FROM t")]


def begin_run(options: RunOptions, trial_numbers: tuple[int, ...] = ()) -> UrlStore:
    """Do the steps of a run up to its first trial."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(options))
        assert isinstance(store, UrlStore)
        store.fetch()
        write(store.folder.path / "study.db", f"run {len(trial_numbers)}")
        store.folder.space_yaml.write_text("version: 1")
        store.begin(trial_numbers)
    return store


def test_a_search_is_at_the_url_once_it_has_begun(options: RunOptions, remote: RemoteFolder) -> None:
    store = begin_run(options)
    assert store.url == f"{remote.url}/s"
    assert remote.names() == ["s/search.json", "s/space.yaml", "s/study.db"]
    store.folder.trials_csv.write_text("trial")
    assert store.close(5) == 0
    assert remote.read("s/trials.csv") == b"trial"


def test_another_machine_resumes_from_the_url(options: RunOptions, tmp_path: Path) -> None:
    store = begin_run(options)
    write(store.folder.path / "study.db", "epoch 1")
    store.close(5)
    other_options = dataclasses.replace(options, cache_root=tmp_path / "there", resume=True)
    store = begin_run(other_options, trial_numbers=(0,))
    assert store.close(5) == 0
    study = store.folder.path / "study.db"
    assert tmp_path / "there" in study.parents
    assert texts(study) == ["run 0", "epoch 1", "run 1"]


def test_another_machine_fetches_the_space(options: RunOptions, remote: RemoteFolder, tmp_path: Path) -> None:
    begin_run(options).close(5)
    remote.write("s/space.yaml", b"version: 1  # edited")
    with open_store(dataclasses.replace(options, cache_root=tmp_path / "there", resume=True)) as store:
        store.fetch()
        assert store.folder.space_yaml.read_text() == "version: 1  # edited"


def test_a_copy_of_the_url_does_not_work_on_the_files_of_the_original(
    options: RunOptions, remote: RemoteFolder
) -> None:
    """Both have the same search.json, and both are resumed on one machine."""
    original = begin_run(options)
    assert original.close(5) == 0
    storage = StorageUrl(url=f"{remote.url}-copy")
    for name in remote.names():
        RemoteFolder.connect(storage).write(name, remote.read(name) or b"")
    write(original.folder.study_db, "later")
    copy_options = dataclasses.replace(options, storage=storage, resume=True)
    with open_store(copy_options) as copy:
        copy.fetch()
        assert copy.folder.path != original.folder.path
        assert texts(copy.folder.study_db) == ["run 0"]
    folder = find_search(copy_options, "s", where="NAME")
    assert not folder.path.is_relative_to(original.folder.storage)


def test_a_name_is_given_back_if_the_search_cannot_begin(options: RunOptions, remote: RemoteFolder) -> None:
    with contextlib.suppress(ZeroDivisionError), open_store(options) as store:
        assert remote.names() == ["s/opening/0000000001.json", "s/search.json"]
        store.folder.log.write_text("something")
        _ = 1 / 0
    assert remote.names() == []
    assert not store.folder.storage.exists()


def test_a_search_that_has_begun_is_kept_after_an_error(options: RunOptions, remote: RemoteFolder) -> None:
    with contextlib.suppress(ZeroDivisionError), open_store(options) as store:
        store.folder.space_yaml.write_text("version: 1")
        store.begin(())
        assert store.close(5) == 0
        _ = 1 / 0
    assert remote.read("s/space.yaml") == b"version: 1"
    assert store.folder.path.exists()


def test_checkpoints_of_trials_outside_the_record_are_moved_aside(
    options: RunOptions, remote: RemoteFolder, progress: list[str]
) -> None:
    begin_run(options).close(5)
    for number in (0, 1, 12):
        remote.write(f"s/checkpoints/trial_{number:04d}/last.ckpt", b"%d" % number)
    for file in ("trial_0012/best.ckpt", "trial_0012/own.txt", "trial_0012.lost_1/best.ckpt"):
        remote.write(f"s/checkpoints/{file}", b"0")
    begin_run(dataclasses.replace(options, resume=True), trial_numbers=(0, 1)).close(5)
    assert remote.names("s/checkpoints") == [
        "s/checkpoints/trial_0000/last.ckpt",
        "s/checkpoints/trial_0001/last.ckpt",
        "s/checkpoints/trial_0012.lost_1/best.ckpt",
        "s/checkpoints/trial_0012.lost_2/best.ckpt",
        "s/checkpoints/trial_0012.lost_2/last.ckpt",
        "s/checkpoints/trial_0012/own.txt",
    ]
    assert remote.read("s/checkpoints/trial_0012.lost_2/last.ckpt") == b"12"
    (message,) = progress
    assert message == (
        "The record lacks the trials of 1 folder of checkpoints. It may have been restored from a backup, or"
        " its newest copy was lost with a machine."
        f" Moved aside in {remote.url}/s/checkpoints: trial_0012.lost_2"
    )


def test_pruned_checkpoints_are_deleted_at_the_url(options: RunOptions, remote: RemoteFolder) -> None:
    store = begin_run(options, trial_numbers=(0, 1))
    for number in (0, 1):
        for name in ("best.ckpt", "last.ckpt"):
            remote.write(f"s/checkpoints/trial_{number:04d}/{name}", b"1")
    store.prune(0, None)
    store.prune(1, f"{store.checkpoint_url(1)}/best.ckpt")
    store.close(5)
    assert remote.names("s/checkpoints") == ["s/checkpoints/trial_0001/best.ckpt"]


def test_an_unwritable_url_is_refused_and_stays_empty(
    options: RunOptions, remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RemoteFolder, source: Path, name: str) -> None:
        raise RemoteError(f"writing {self.url}/{name}: no room for {source.name}")

    monkeypatch.setattr(RemoteFolder, "upload", refuse)
    with pytest.raises(
        StorageError, match=r"--storage: must be a URL that can be .* no room for study\.db\)"
    ):
        begin_run(options)
    assert remote.names() == []


@pytest.mark.parametrize(
    ("study", "tracking", "databases", "lease"),
    [
        (None, None, {"study.db", "mlflow.db"}, True),
        ("postgresql://db/s", None, {"mlflow.db"}, False),
        (None, "http://mlflow", {"study.db"}, True),
    ],
)
def test_a_study_on_a_server_is_not_copied(
    study: str | None, tracking: str | None, databases: set[str], lease: bool, options: RunOptions,
    remote: RemoteFolder,
) -> None:  # fmt: skip
    with open_store(dataclasses.replace(options, study_url=study, tracking_uri=tracking)) as store:
        assert (store.lease is not None) is lease
        store.fetch()
        write(store.folder.path / "study.db", "")
        write(store.folder.storage / "mlflow.db", "")
        store.begin(())
    store.close(5)
    assert {name.partition("/")[2] for name in remote.names("s")} - {"search.json"} == databases


def test_a_lease_is_one_value_for_all_machines(
    options: RunOptions, storage: StorageUrl, tmp_path: Path
) -> None:
    store = begin_run(options)
    other_machine = dataclasses.replace(options, cache_root=tmp_path / "there")
    lease, other_lease = store.lease, UrlStore(SearchHome.find(storage, "s"), other_machine).lease
    assert lease is not None
    assert other_lease is not None
    assert other_lease.read() is None
    assert lease.replace(None, {"token": "a"})
    assert other_lease.read() == {"token": "a"}
    assert not other_lease.replace(None, {"token": "b"})
    store.close(5)


def test_files_of_another_search_are_copied_to_be_read(options: RunOptions) -> None:
    store = begin_run(options)
    store.close(5)
    search = find_search(options, "s", where="--warm-start", with_study=True)
    assert search.space_yaml.read_text() == "version: 1"
    assert texts(search.path / "study.db") == ["run 0"]
    assert search.path != store.folder.path
    with pytest.raises(StorageError, match=r"^--warm-start: no search named 't' in memory://"):
        find_search(options, "t", where="--warm-start")


def test_a_file_that_is_gone_at_the_url_is_not_read_from_an_earlier_copy(
    options: RunOptions, remote: RemoteFolder
) -> None:
    begin_run(options).close(5)
    search = find_search(options, "s", where="NAME", with_study=True)
    assert search.study_db.exists()
    remote.delete("s/study.db")
    search_again = find_search(options, "s", where="NAME", with_study=True)
    assert search_again.path == search.path
    assert not search_again.study_db.exists()


def progress(folder: Path) -> int:
    path = folder / "last.ckpt"
    return int(path.read_text()) if path.exists() else 0


@pytest.fixture
def train(remote: RemoteFolder) -> Callable[..., list[str]]:
    """Trains one epoch of trial 0 in a folder; returns the notes."""

    def train(run: Path, *, url: str | None = f"{remote.url}/s/checkpoints/trial_0000") -> list[str]:
        notes: list[str] = []
        folder = run / "trial_0000"
        with synchronised(folder, url, names=["last.ckpt"], progress=progress, note=notes.append) as sync:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "last.ckpt").write_text(str(progress(folder) + 1))
            sync.send(last=False)
            where = url or folder
            assert sync.location(folder / "last.ckpt") == f"{where}/last.ckpt"
        return notes

    return train


def test_a_trial_moves_from_node_to_node(
    train: Callable[..., list[str]], remote: RemoteFolder, tmp_path: Path
) -> None:
    for node in ("a", "b"):
        assert train(tmp_path / node / "run 1") == []
        assert not (tmp_path / node / "run 1" / "trial_0000").exists()
    assert remote.read("s/checkpoints/trial_0000/last.ckpt") == b"2"


def test_files_of_an_earlier_run_on_a_node_are_not_used(
    train: Callable[..., list[str]], remote: RemoteFolder, tmp_path: Path
) -> None:
    remaining = tmp_path / "run 1" / "trial_0000" / "last.ckpt"
    remaining.parent.mkdir(parents=True)
    remaining.write_text("7")
    train(tmp_path / "run 2")
    assert remote.read("s/checkpoints/trial_0000/last.ckpt") == b"1"
    assert not remaining.exists()


def test_without_a_url_checkpoints_stay_in_their_directory(
    train: Callable[..., list[str]], tmp_path: Path
) -> None:
    for _ in range(2):
        train(tmp_path, url=None)
    assert progress(tmp_path / "trial_0000") == 2
