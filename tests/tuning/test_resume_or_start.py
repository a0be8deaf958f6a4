"""A command that is repeated until its search is finished, after each moment of a possible kill."""

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
from tune_rescon.config import TrialState
from tune_rescon.errors import LeaseError, LeaseLostError, NameTakenError
from tune_rescon.spaces import Space, dump_space, load_space
from tune_rescon.storage import RemoteFolder, SearchHome, StorageUrl
from tune_rescon.tuning import (
    Decision,
    RunOptions,
    SearchFolder,
    SearchSampler,
    SearchState,
    StudyRecord,
    Verdict,
)
from tune_rescon.tuning.driver import process_start, this_driver
from tune_rescon.tuning.folder_state import reserved
from tune_rescon.tuning.lease import hold_lease
from tune_rescon.tuning.resume import is_finished
from tune_rescon.tuning.search_storage import open_store, search_lease
from tune_rescon.tuning.space_versions import SpaceVersions
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.study_attributes import record_outcome


@pytest.fixture(autouse=True)
def _quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease in a bucket is read back at once: these tests have one driver at a time, or know the other."""
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
def at_url(options: RunOptions) -> RunOptions:
    return dataclasses.replace(options, storage=StorageUrl(url=f"memory://{uuid.uuid4().hex}/runs"))


@contextlib.contextmanager
def as_process(pid: int) -> Iterator[None]:
    """Leases that are taken within it are held by this process of the machine."""
    driver = dataclasses.replace(this_driver(), pid=pid, started=process_start(pid) or 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_rescon.tuning.lease.this_driver", lambda: driver)
        yield


#: A process that lives, and a number above the largest that Linux gives.
ALIVE, DEAD = 1, 2**22 + 1


def store_url(options: RunOptions) -> StorageUrl:
    assert isinstance(options.storage, StorageUrl)
    return options.storage


def remote(options: RunOptions) -> RemoteFolder:
    return RemoteFolder.connect(store_url(options))


def new(options: RunOptions) -> RunOptions:
    """The options of ``--name``."""
    return dataclasses.replace(options, resume_or_start=False)


def begin(store: SearchStore, text: str = "row") -> None:
    """What a run does until its first trial."""
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


# A directory.


@pytest.mark.parametrize(
    ("left", "resumed"),
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
    left: list[str] | None, resumed: bool, options: RunOptions
) -> None:
    assert isinstance(options.storage, Path)
    folder = options.storage / "s"
    if left is not None:
        folder.mkdir(parents=True)
        for name in left:
            # It died before its database had a table.
            (folder / name).write_text("" if name == "study.db" else "of the dead")
    with open_store(options) as store:
        assert store.resumed is resumed
        assert sorted(path.name for path in folder.iterdir()) == sorted(left or []) * resumed


def test_files_of_another_kind_are_refused_at_once(options: RunOptions) -> None:
    assert isinstance(options.storage, Path)
    (options.storage / "s").mkdir(parents=True)
    (options.storage / "s" / "thesis.tex").touch()
    patient = dataclasses.replace(options, takeover_seconds=60)
    with pytest.raises(NameTakenError, match="It holds no search"), open_store(patient):
        pass


def waits_for(progress: list[str]) -> bool:
    """Whether the command has said that it waits for another driver."""
    return any("Waiting for up to 20 s." in line for line in progress)


@contextlib.contextmanager
def ended_once(true: Callable[[], bool], held: contextlib.ExitStack) -> Iterator[None]:
    """Another driver, which ends at a moment."""

    def end() -> None:
        wait_until(true)
        held.close()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("begun", [False, True])
def test_a_driver_that_is_about_to_begin_is_waited_for(
    begun: bool, options: RunOptions, progress: list[str]
) -> None:
    assert isinstance(options.storage, Path)
    folder = SearchFolder(storage=options.storage, name="s")
    held = contextlib.ExitStack()
    held.enter_context(reserved(folder))
    if begun:
        held.callback(folder.space_yaml.touch)
    patient = dataclasses.replace(options, takeover_seconds=20)
    with ended_once(lambda: waits_for(progress), held), open_store(patient) as store:
        assert store.resumed is begun
    assert "another driver is about to begin s" in progress[0]


def test_waiting_for_another_driver_times_out(options: RunOptions) -> None:
    assert isinstance(options.storage, Path)
    with (
        reserved(SearchFolder(storage=options.storage, name="s")),
        pytest.raises(LeaseError, match="another driver is about to begin s"),
        open_store(options),
    ):
        pass


# A URL.


def moments(options: RunOptions, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """What is at the URL after each write of a driver that starts a search, until it has begun."""
    folder, found = remote(options), []
    for method in ("create", "upload", "write", "delete"):
        real = getattr(RemoteFolder, method)

        def noting(self: RemoteFolder, *arguments: Any, real: Any = real) -> Any:
            done = real(self, *arguments)
            found.append({name: folder.read(name) or b"" for name in folder.names()})
            return done

        monkeypatch.setattr(RemoteFolder, method, noting)
    with as_process(DEAD), open_store(options) as store, search_lease(options, store):
        begin(store)
        assert store.close(5) == 0
    monkeypatch.undo()
    return found


def test_after_a_kill_at_any_moment_a_search_at_a_url_is_resumed_or_started(
    at_url: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = moments(at_url, monkeypatch)
    written = [set(names) for names in found]
    assert written[0] == {"s/search.json"}
    assert any("s/study.db" in names and "s/space.yaml" not in names for names in written)
    assert sum("s/space.yaml" in names for names in written) > 1
    assert not any(name.startswith("s/opening/") for name in written[-1])
    monkeypatch.setattr("tune_rescon.storage.remote.SharedValue.read_back_seconds", 0.02)
    for number, files in enumerate(found):
        url = StorageUrl(url=f"memory://{uuid.uuid4().hex}/runs")
        again = dataclasses.replace(at_url, storage=url, cache_root=tmp_path / f"machine{number}")
        for name, data in files.items():
            remote(again).write(name, data)
        begun = "s/space.yaml" in files
        with open_store(again) as store:
            assert store.resumed is begun, sorted(files)
            begin(store, "again")
            assert rows(store) == (["row", "again"] if begun else ["again"]), "nothing of a half is left"
            assert store.close(5) == 0
        assert not [name for name in remote(again).names() if "opening" in name]


def test_a_new_search_takes_over_a_name_whose_search_never_began(at_url: RunOptions) -> None:
    assert isinstance(at_url.storage, StorageUrl)
    home = SearchHome.create(at_url.storage, "s")
    folder = SearchFolder(storage=at_url.cache_root / "there", name="s")
    folder.create()
    StudyRecord.create(folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
    home.remote.write("study.db", folder.study_db.read_bytes())
    with open_store(new(at_url)) as store:
        assert not store.resumed
        assert "s/study.db" not in remote(at_url).names()


@pytest.mark.parametrize("identity", ["search.json", None])
@pytest.mark.parametrize("kept", ["checkpoints/trial_0000/best.ckpt", "trials.csv", "study.db"])
def test_a_search_at_a_url_without_its_space_file_is_not_taken_over(
    kept: str, identity: str | None, at_url: RunOptions, make_search: MakeSearch
) -> None:
    """Its files were copied in part, or ``space.yaml`` was deleted."""
    home = SearchHome.create(store_url(at_url), "s")
    if identity is None:
        home.remote.delete("search.json")
    study = make_search("s", reports=1, storage=at_url.cache_root / "copied").study_db
    home.remote.write(kept, study.read_bytes())
    for options in (at_url, new(at_url)):
        with pytest.raises(NameTakenError, match=r"without its space\.yaml"), open_store(options):
            pass
    assert home.remote.read(kept) == study.read_bytes()
    home.remote.write("space.yaml", b"version: 1")
    with open_store(at_url) as store:
        assert store.resumed


def test_a_search_that_has_begun_is_only_resumed(at_url: RunOptions) -> None:
    with open_store(at_url) as store:
        begin(store)
        store.close(5)
    with pytest.raises(NameTakenError, match="--resume s"), open_store(new(at_url)):
        pass
    with open_store(at_url) as store:
        assert store.resumed


@pytest.mark.parametrize("then", ["ends", "begins"])
def test_a_driver_that_is_about_to_begin_at_a_url_is_waited_for(
    then: str, at_url: RunOptions, progress: list[str]
) -> None:
    held = contextlib.ExitStack()
    with as_process(ALIVE):
        store = held.enter_context(open_store(at_url))
    if then == "begins":
        held.callback(begin, store)
    patient = dataclasses.replace(at_url, takeover_seconds=20)
    with ended_once(lambda: waits_for(progress), held), open_store(patient) as mine:
        assert mine.resumed is (then == "begins")


def test_a_driver_that_prepares_at_a_url_keeps_its_name(at_url: RunOptions) -> None:
    with contextlib.ExitStack() as held:
        with as_process(ALIVE):
            store = held.enter_context(open_store(at_url))
        for other in (at_url, new(at_url)):
            with pytest.raises(LeaseError, match="one driver at a time"), open_store(other):
                pass
        begin(store)


@pytest.mark.parametrize(("pid", "taken"), [(ALIVE, False), (DEAD, True)])
def test_with_an_external_study_a_live_driver_keeps_its_name_at_a_url(
    pid: int, taken: bool, at_url: RunOptions
) -> None:
    """The search's lease is in the database then, which has no such study yet."""
    options = dataclasses.replace(at_url, study_url="postgresql://db/studies")
    with contextlib.ExitStack() as held:
        with as_process(pid):
            held.enter_context(open_store(options))
        with contextlib.nullcontext() if taken else pytest.raises(LeaseError), open_store(options) as store:
            assert not store.resumed


@pytest.mark.parametrize("then", ["begins", "gives up"])
def test_a_name_at_a_url_is_looked_at_again_under_its_lease(
    then: str, at_url: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other driver begins, or gives its name back, after this one has looked."""
    held = contextlib.ExitStack()
    store = held.enter_context(open_store(at_url))
    other = SearchHome.look(store_url(at_url), "s")
    assert other is not None

    def late(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr("tune_rescon.tuning.search_storage.hold_lease", hold_lease)
        if then == "begins":
            begin(store)
        else:
            other.remove()
        held.close()
        return hold_lease(*arguments, **options)

    monkeypatch.setattr("tune_rescon.tuning.search_storage.hold_lease", late)
    with open_store(at_url) as mine:
        assert mine.resumed is (then == "begins")
        found = SearchHome.look(store_url(at_url), "s")
        assert found is not None
        assert (found.identity == other.identity) is mine.resumed


class OvertakenError(Exception):
    """Ends a driver, as a LeaseLostError does."""


def test_a_driver_that_lost_its_lease_before_it_began_writes_nothing(
    at_url: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped for longer than its lease; another one has cleared its files."""
    monkeypatch.setattr("tune_rescon.tuning.lease.LeaseKeeper.beat", lambda *_: None)
    short = dataclasses.replace(at_url, lease_seconds=0.05)
    with contextlib.suppress(OvertakenError), open_store(short) as store:
        with open_store(dataclasses.replace(at_url, cache_root=at_url.cache_root / "other")) as mine:
            begin(mine, "mine")
            assert mine.close(5) == 0
        begun = remote(at_url).names()
        with pytest.raises(LeaseLostError):
            begin(store, "theirs")
        raise OvertakenError
    assert remote(at_url).names() == begun, "and deletes nothing of the other's"


# The driver of a search that has begun.


@pytest.fixture
def begun(options: RunOptions) -> RunOptions:
    with open_store(options) as store:
        StudyRecord.create(store.folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
        store.folder.space_yaml.touch()
    return options


def test_the_driver_of_a_search_is_waited_for(begun: RunOptions, progress: list[str]) -> None:
    held = contextlib.ExitStack()
    with as_process(ALIVE):
        held.enter_context(search_lease(begun, held.enter_context(open_store(begun))))
    patient = dataclasses.replace(begun, takeover_seconds=20)
    with (
        ended_once(lambda: waits_for(progress), held),
        open_store(patient) as store,
        search_lease(patient, store) as keeper,
    ):
        keeper.ensure_held()
    assert "one driver at a time, and s has one" in progress[0]


@pytest.mark.parametrize("way", ["resume", "resume_or_start"])
def test_a_live_driver_keeps_its_search(way: str, begun: RunOptions) -> None:
    options = dataclasses.replace(begun, resume=way == "resume", resume_or_start=way != "resume")
    with contextlib.ExitStack() as held:
        with as_process(ALIVE):
            held.enter_context(search_lease(begun, held.enter_context(open_store(begun))))
        mine = held.enter_context(open_store(options))
        with pytest.raises(LeaseError, match="s has one"), search_lease(options, mine):
            pass


# A search that is finished.


SPACE = ("budget.trials=2", "fidelity.max=1", "sampler.type=random")


def space(*overrides: str) -> Space:
    return load_space("digits", [*SPACE, *overrides])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a study with two trials, both of which ran to their end."""
    url = f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
    record = StudyRecord.create(url, "s", metric="val_accuracy", maximize=True, space=dump_space(space()))
    sampler = SearchSampler(space())
    for number in range(2):
        proposal = sampler.ask()
        assert proposal is not None
        sampler.on_trial_start(record.open(proposal))
        record.report(number, 1, {"val_accuracy": 0.5}, Verdict(decision=Decision.STOP))
        record.close(number, TrialState.FINISHED, checkpoint=None)
    return url


@pytest.mark.parametrize(
    ("outcome", "edits", "finished"),
    [
        (SearchState.FINISHED, [], True),
        (SearchState.FINISHED, ["resources_per_trial.cpu=2", "budget.concurrent=1"], True),
        (SearchState.FINISHED, ["budget.trials=1"], True),
        (SearchState.FINISHED, ["budget.trials=3"], False),
        (SearchState.INTERRUPTED, [], False),
        (SearchState.FAILED, [], False),
        (None, [], False),
    ],
)
def test_a_search_is_finished_if_it_completed_and_no_trial_remains(
    outcome: SearchState | None, edits: list[str], finished: bool, study: str
) -> None:
    record = StudyRecord.load(study, "s", metric="val_accuracy")
    if outcome is None:
        record.set_attribute("outcome", None)
    else:
        record_outcome(record, outcome, None)
    assert is_finished(record, SpaceVersions(spaces=(space(),)), space(*edits)) is finished


@pytest.mark.parametrize(
    ("edits", "finished"),
    [
        ([], True),
        (["budget.hours=1"], True),
        (["budget.hours=2"], False),
        (["budget.hours=1", "sampler.repeats=true"], False),
        (["parameters.learning_rate.high=0.2"], False),
    ],
)
def test_a_search_is_finished_if_its_hours_or_points_are_used_up(
    edits: list[str], finished: bool, study: str
) -> None:
    """Two of twenty trials ran, and the last run ended by itself: its hours were over, or its points."""
    record = StudyRecord.load(study, "s", metric="val_accuracy")
    record_outcome(record, SearchState.FINISHED, None)
    whole = space("budget.trials=20", "budget.hours=1")
    again = space("budget.trials=20", "budget.hours=1", *edits)
    assert is_finished(record, SpaceVersions(spaces=(whole,)), again) is finished
