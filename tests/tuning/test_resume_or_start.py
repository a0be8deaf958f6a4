"""``--resume-or-start``: a command that is repeated until its search is finished, killed at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.conftest import MakeSearch
from tests.waiting import wait_until
from tune_rescon.errors import LeaseError, LeaseLostError, NameTakenError
from tune_rescon.storage import RemoteFolder, SearchHome, StorageUrl
from tune_rescon.tuning import (
    RunOptions,
    SearchFolder,
    StudyRecord,
)
from tune_rescon.tuning.driver import process_start, this_driver
from tune_rescon.tuning.lease import hold_lease
from tune_rescon.tuning.search_storage import open_store, reserved, search_lease
from tune_rescon.tuning.store import SearchStore


@pytest.fixture(autouse=True)
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the read-back of a lease in a bucket, which these tests do not need."""
    monkeypatch.setattr("tune_rescon.storage.remote.SharedValue.read_back_seconds", 0.02)


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(
        name="s",
        resume_or_start=True,
        storage=tmp_path / "runs",
        study_url=None,
        cache_root=tmp_path / "cache",
        takeover_seconds=0.4,
    )


@pytest.fixture
def url_options(options: RunOptions) -> RunOptions:
    return dataclasses.replace(options, storage=StorageUrl(url=f"memory://{uuid.uuid4().hex}/runs"))


@contextlib.contextmanager
def as_process(pid: int) -> Iterator[None]:
    """Leases that are taken in the block are held by the process ``pid``."""
    driver = dataclasses.replace(this_driver(), pid=pid, started=process_start(pid) or 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_rescon.tuning.lease.this_driver", lambda: driver)
        yield


#: The number of a live process, and a number above the largest one of Linux.
ALIVE_PID, DEAD_PID = 1, 2**22 + 1


def store_url(options: RunOptions) -> StorageUrl:
    assert isinstance(options.storage, StorageUrl)
    return options.storage


def remote(options: RunOptions) -> RemoteFolder:
    return RemoteFolder.connect(store_url(options))


def new_search_options(options: RunOptions) -> RunOptions:
    """The options with ``--name`` instead of ``--resume-or-start``."""
    return dataclasses.replace(options, resume_or_start=False)


def begin_search(store: SearchStore, text: str = "row") -> None:
    """Do the steps of a run before its first trial."""
    store.fetch()
    with closing(sqlite3.connect(store.folder.study_db)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS t (x TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (text,))
        database.commit()
    store.folder.space_yaml.write_text("version: 1")
    store.begin(())


def rows(store: SearchStore) -> list[str]:
    with closing(sqlite3.connect(store.folder.study_db)) as database:
        return [row[0] for row in database.execute("SELECT x FROM t")]


# A search in a directory.


@pytest.mark.parametrize(
    ("files", "resumed"),
    [
        (None, False),
        ([], False),
        (["search.log"], False),
        (["search.log", "study.db"], False),
        (["search.log", "study.db", "study.db-journal"], False),
        (["search.log", "study.db", ".space.yaml.4711"], False),
        (["search.log", "study.db", "space.yaml"], True),
        (["search.log", "study.db", "space.yaml", "checkpoints"], True),
    ],
)
def test_after_a_kill_at_any_moment_a_search_is_resumed_or_started(
    files: list[str] | None, resumed: bool, options: RunOptions
) -> None:
    assert isinstance(options.storage, Path)
    folder = options.storage / "s"
    if files is not None:
        folder.mkdir(parents=True)
        for name in files:
            # The driver died before its database had a table.
            (folder / name).write_text("" if name == "study.db" else "of a dead driver")
    with open_store(options) as store:
        assert store.resumed is resumed
        assert sorted(path.name for path in folder.iterdir()) == sorted(files or []) * resumed


def test_files_of_another_kind_are_refused_at_once(options: RunOptions) -> None:
    assert isinstance(options.storage, Path)
    (options.storage / "s").mkdir(parents=True)
    (options.storage / "s" / "thesis.tex").touch()
    patient_options = dataclasses.replace(options, takeover_seconds=60)
    with pytest.raises(NameTakenError, match="It contains no search"), open_store(patient_options):
        pass


def is_waiting(progress: list[str]) -> bool:
    """Whether the command has reported that it waits for another driver."""
    return any("Waiting for up to 20 s." in line for line in progress)


@contextlib.contextmanager
def released_once(condition: Callable[[], bool], other_driver: contextlib.ExitStack) -> Iterator[None]:
    """Release the other driver in a thread as soon as ``condition`` holds."""

    def end() -> None:
        wait_until(condition)
        other_driver.close()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_driver_that_is_about_to_begin_is_waited_for(
    has_begun: bool, options: RunOptions, progress: list[str]
) -> None:
    assert isinstance(options.storage, Path)
    folder = SearchFolder(storage=options.storage, name="s")
    other_driver = contextlib.ExitStack()
    other_driver.enter_context(reserved(folder))
    if has_begun:
        other_driver.callback(folder.space_yaml.touch)
    patient_options = dataclasses.replace(options, takeover_seconds=20)
    with released_once(lambda: is_waiting(progress), other_driver), open_store(patient_options) as store:
        assert store.resumed is has_begun
    assert "another driver is about to begin s" in progress[0]


def test_waiting_for_another_driver_times_out(options: RunOptions) -> None:
    assert isinstance(options.storage, Path)
    with (
        reserved(SearchFolder(storage=options.storage, name="s")),
        pytest.raises(LeaseError, match="another driver is about to begin s"),
        open_store(options),
    ):
        pass


# A search at a URL.


def snapshots(options: RunOptions, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """The files at the URL after each write of a driver that starts a search."""
    folder, states = remote(options), []
    for method in ("create", "upload", "write", "delete"):
        real = getattr(RemoteFolder, method)

        def record_state(self: RemoteFolder, *arguments: Any, real: Any = real) -> Any:
            result = real(self, *arguments)
            states.append({name: folder.read(name) or b"" for name in folder.names()})
            return result

        monkeypatch.setattr(RemoteFolder, method, record_state)
    with as_process(DEAD_PID), open_store(options) as store, search_lease(options, store):
        begin_search(store)
        assert store.close(5) == 0
    monkeypatch.undo()
    return states


def test_after_a_kill_at_any_moment_a_search_at_a_url_is_resumed_or_started(
    url_options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = snapshots(url_options, monkeypatch)
    names_of_states = [set(names) for names in states]
    assert names_of_states[0] == {"s/search.json"}
    assert any("s/study.db" in names and "s/space.yaml" not in names for names in names_of_states)
    assert sum("s/space.yaml" in names for names in names_of_states) > 1
    assert not any(name.startswith("s/opening/") for name in names_of_states[-1])
    monkeypatch.setattr("tune_rescon.storage.remote.SharedValue.read_back_seconds", 0.02)
    for number, files in enumerate(states):
        url = StorageUrl(url=f"memory://{uuid.uuid4().hex}/runs")
        restarted = dataclasses.replace(url_options, storage=url, cache_root=tmp_path / f"machine{number}")
        for name, data in files.items():
            remote(restarted).write(name, data)
        has_begun = "s/space.yaml" in files
        with open_store(restarted) as store:
            assert store.resumed is has_begun, sorted(files)
            begin_search(store, "again")
            assert rows(store) == (["row", "again"] if has_begun else ["again"]), (
                "rows of an incomplete start are removed"
            )
            assert store.close(5) == 0
        assert not [name for name in remote(restarted).names() if "opening" in name]


def test_a_new_search_takes_over_a_name_whose_search_never_began(url_options: RunOptions) -> None:
    assert isinstance(url_options.storage, StorageUrl)
    home = SearchHome.create(url_options.storage, "s")
    folder = SearchFolder(storage=url_options.cache_root / "there", name="s")
    folder.create()
    StudyRecord.create(folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
    home.remote.write("study.db", folder.study_db.read_bytes())
    with open_store(new_search_options(url_options)) as store:
        assert not store.resumed
        assert "s/study.db" not in remote(url_options).names()


@pytest.mark.parametrize("identity", ["search.json", None])
@pytest.mark.parametrize("file", ["checkpoints/trial_0000/best.ckpt", "trials.csv", "study.db"])
def test_a_search_at_a_url_without_its_space_file_is_not_taken_over(
    file: str, identity: str | None, url_options: RunOptions, make_search: MakeSearch
) -> None:
    """The files were copied incompletely, or ``space.yaml`` was deleted."""
    home = SearchHome.create(store_url(url_options), "s")
    if identity is None:
        home.remote.delete("search.json")
    study = make_search("s", reports=1, storage=url_options.cache_root / "copied").study_db
    home.remote.write(file, study.read_bytes())
    for options in (url_options, new_search_options(url_options)):
        with pytest.raises(NameTakenError, match=r"without its space\.yaml"), open_store(options):
            pass
    assert home.remote.read(file) == study.read_bytes()
    home.remote.write("space.yaml", b"version: 1")
    with open_store(url_options) as store:
        assert store.resumed


def test_a_search_that_has_begun_is_only_resumed(url_options: RunOptions) -> None:
    with open_store(url_options) as store:
        begin_search(store)
        store.close(5)
    with pytest.raises(NameTakenError, match="--resume s"), open_store(new_search_options(url_options)):
        pass
    with open_store(url_options) as store:
        assert store.resumed


@pytest.mark.parametrize("outcome", ["ends", "begins"])
def test_a_driver_that_is_about_to_begin_at_a_url_is_waited_for(
    outcome: str, url_options: RunOptions, progress: list[str]
) -> None:
    other_driver = contextlib.ExitStack()
    with as_process(ALIVE_PID):
        store = other_driver.enter_context(open_store(url_options))
    if outcome == "begins":
        other_driver.callback(begin_search, store)
    patient_options = dataclasses.replace(url_options, takeover_seconds=20)
    with (
        released_once(lambda: is_waiting(progress), other_driver),
        open_store(patient_options) as second_store,
    ):
        assert second_store.resumed is (outcome == "begins")


def test_a_driver_that_prepares_at_a_url_keeps_its_name(url_options: RunOptions) -> None:
    with contextlib.ExitStack() as other_driver:
        with as_process(ALIVE_PID):
            store = other_driver.enter_context(open_store(url_options))
        for second_options in (url_options, new_search_options(url_options)):
            with pytest.raises(LeaseError, match="one driver at a time"), open_store(second_options):
                pass
        begin_search(store)


@pytest.mark.parametrize(("pid", "is_taken"), [(ALIVE_PID, False), (DEAD_PID, True)])
def test_with_an_external_study_a_live_driver_keeps_its_name_at_a_url(
    pid: int, is_taken: bool, url_options: RunOptions
) -> None:
    """The lease of such a search is in the database, which does not have the study yet."""
    options = dataclasses.replace(url_options, study_url="postgresql://db/studies")
    with contextlib.ExitStack() as other_driver:
        with as_process(pid):
            other_driver.enter_context(open_store(options))
        with (
            contextlib.nullcontext() if is_taken else pytest.raises(LeaseError),
            open_store(options) as store,
        ):
            assert not store.resumed


@pytest.mark.parametrize("outcome", ["begins", "gives up"])
def test_a_name_at_a_url_is_looked_at_again_under_its_lease(
    outcome: str, url_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other driver begins or releases the name after this one has looked."""
    other_driver = contextlib.ExitStack()
    store = other_driver.enter_context(open_store(url_options))
    other_home = SearchHome.look(store_url(url_options), "s")
    assert other_home is not None

    def act_before_lease(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr("tune_rescon.tuning.search_storage.hold_lease", hold_lease)
        if outcome == "begins":
            begin_search(store)
        else:
            other_home.remove()
        other_driver.close()
        return hold_lease(*arguments, **options)

    monkeypatch.setattr("tune_rescon.tuning.search_storage.hold_lease", act_before_lease)
    with open_store(url_options) as second_store:
        assert second_store.resumed is (outcome == "begins")
        home = SearchHome.look(store_url(url_options), "s")
        assert home is not None
        assert (home.identity == other_home.identity) is second_store.resumed


class OvertakenError(Exception):
    """Ends a driver like a LeaseLostError."""


def test_a_driver_that_lost_its_lease_before_it_began_writes_nothing(
    url_options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver was suspended for longer than its lease, and another one has deleted its files."""
    monkeypatch.setattr("tune_rescon.tuning.lease.LeaseKeeper.beat", lambda *_: None)
    short_lease = dataclasses.replace(url_options, lease_seconds=0.05)
    with contextlib.suppress(OvertakenError), open_store(short_lease) as store:
        with open_store(
            dataclasses.replace(url_options, cache_root=url_options.cache_root / "other")
        ) as second_store:
            begin_search(second_store, "mine")
            assert second_store.close(5) == 0
        files = remote(url_options).names()
        with pytest.raises(LeaseLostError):
            begin_search(store, "theirs")
        raise OvertakenError
    assert remote(url_options).names() == files, "files of the other driver are not deleted"


# The driver of a started search.


@pytest.fixture
def begun_search(options: RunOptions) -> RunOptions:
    with open_store(options) as store:
        StudyRecord.create(store.folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
        store.folder.space_yaml.touch()
    return options


def test_the_driver_of_a_search_is_waited_for(begun_search: RunOptions, progress: list[str]) -> None:
    other_driver = contextlib.ExitStack()
    with as_process(ALIVE_PID):
        other_driver.enter_context(
            search_lease(begun_search, other_driver.enter_context(open_store(begun_search)))
        )
    patient_options = dataclasses.replace(begun_search, takeover_seconds=20)
    with (
        released_once(lambda: is_waiting(progress), other_driver),
        open_store(patient_options) as store,
        search_lease(patient_options, store) as keeper,
    ):
        keeper.ensure_held()
    assert "one driver at a time, and s has one" in progress[0]


@pytest.mark.parametrize("flag", ["resume", "resume_or_start"])
def test_a_live_driver_keeps_its_search(flag: str, begun_search: RunOptions) -> None:
    options = dataclasses.replace(begun_search, resume=flag == "resume", resume_or_start=flag != "resume")
    with contextlib.ExitStack() as other_driver:
        with as_process(ALIVE_PID):
            other_driver.enter_context(
                search_lease(begun_search, other_driver.enter_context(open_store(begun_search)))
            )
        store = other_driver.enter_context(open_store(options))
        with pytest.raises(LeaseError, match="s has one"), search_lease(options, store):
            pass
