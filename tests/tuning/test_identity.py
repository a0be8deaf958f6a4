"""The id of a search: created with its study and kept when the search moves. Copies get a new id."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import uuid
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection

from tests.tuning.conftest import MakeSearch
from tune_rescon.errors import StorageError
from tune_rescon.spaces import dump_space, load_goal, load_space
from tune_rescon.storage import RemoteFolder, StorageUrl, sqlite_url
from tune_rescon.tuning import (
    RunOptions,
    SearchFolder,
    SearchLocation,
    StudyRecord,
    list_searches,
    read_search,
)
from tune_rescon.tuning.identity import (
    check_same_search,
    ensure_identity,
    read_id,
    with_id,
    write_id,
)
from tune_rescon.tuning.mlflow_sync import sync_tracking
from tune_rescon.tuning.resume import resume_record
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.trial import Proposal
from tune_rescon.tuning.warm_start import overlapping_trials

SERVER = "postgresql://db/studies"


def create_record(folder: SearchFolder) -> StudyRecord:
    """Create a study in memory. The folder gets no study file."""
    folder.path.mkdir(parents=True, exist_ok=True)
    storage = InMemoryStorage()
    study = storage.create_new_study([StudyDirection.MAXIMIZE], folder.name)
    return StudyRecord.on_storage(storage, study, metric="val_accuracy")


def identify(record: StudyRecord, folder: SearchFolder, *, study_url: str | None = None) -> str:
    """Ensure the id like a run of the search, and write it to ``space.yaml``."""
    identity = ensure_identity(record, folder, url=None, study_url=study_url)
    folder.space_yaml.write_text(with_id("version: 1\n", identity.id))
    return identity.id


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    return SearchFolder(storage=tmp_path / "runs", name="s")


def test_an_id_is_created_once_and_kept(folder: SearchFolder) -> None:
    record = create_record(folder)
    first = identify(record, folder)
    assert len(first) == 32
    assert record.attribute("id") == read_id(folder.space_yaml) == first
    assert identify(record, folder) == first


def test_another_search_of_the_same_name_has_another_id(folder: SearchFolder) -> None:
    first = identify(create_record(folder), folder)
    shutil.rmtree(folder.path)
    assert identify(create_record(folder), folder) != first


@pytest.mark.timeout(20)  # databases
def test_a_study_in_a_shared_database_belongs_to_one_folder(
    tmp_path: Path, make_search: MakeSearch, location: SearchLocation
) -> None:
    """Searches with the same name in two storages have different trials 0."""
    first_folder, second_folder = make_search("a"), make_search("a", storage=tmp_path / "others")
    for folder in (first_folder, second_folder):
        record = StudyRecord.load(folder.study_url, "a", metric="val_accuracy")
        identity = ensure_identity(record, folder, url=None, study_url=None)
        write_id(folder.space_yaml, identity.id)
    shared = dataclasses.replace(location, study_url=first_folder.study_url)
    assert read_search(shared, "a").trials
    other_folder = dataclasses.replace(shared, storage=second_folder.storage)
    with pytest.raises(StorageError, match="the study 'a' in the database must be that of the search in"):
        read_search(other_folder, "a")
    (line,) = list_searches(other_folder)
    assert "that of another search" in line.problem
    options = RunOptions(
        name="a",
        resume=True,
        storage=second_folder.storage,
        study_url=first_folder.study_url,
        cache_root=tmp_path / "cache",
    )
    space = load_space(str(second_folder.space_yaml))
    with pytest.raises(StorageError, match="that of another search"):
        resume_record(space, options, SearchStore(second_folder))
    with pytest.raises(StorageError, match="that of another search"):
        overlapping_trials(
            space,
            dataclasses.replace(options, name="b", resume=False, warm_start="a"),
            weights={},
            digests={},
        )
    second_folder.space_yaml.write_text(dump_space(space))  # an earlier version wrote no id
    assert read_search(other_folder, "a").trials


def test_a_moved_search_keeps_its_id(folder: SearchFolder, tmp_path: Path) -> None:
    record = create_record(folder)
    first = identify(record, folder)
    moved = SearchFolder(storage=tmp_path / "elsewhere", name="renamed")
    moved.storage.mkdir()
    folder.path.rename(moved.path)
    assert identify(record, moved) == first
    link = SearchFolder(storage=tmp_path / "linked", name="renamed")
    link.storage.symlink_to(moved.storage)
    assert identify(record, link) == first


def test_a_copy_gets_a_new_id_at_its_first_resume(folder: SearchFolder, tmp_path: Path) -> None:
    record = create_record(folder)
    first = identify(record, folder)
    copy = SearchFolder(storage=tmp_path / "copies", name="s")
    shutil.copytree(folder.path, copy.path)
    second = identify(record, copy)
    assert second != first
    assert identify(record, copy) == second
    assert read_id(folder.space_yaml) == first


def test_a_copy_gets_its_own_id_if_another_host_drove_the_original_there(
    folder: SearchFolder, tmp_path: Path
) -> None:
    """Both hosts share the file system."""
    record = create_record(folder)
    first = identify(record, folder)
    copy = SearchFolder(storage=tmp_path / "copies", name="s")
    shutil.copytree(folder.path, copy.path)
    record.set_attribute("place", f"another-host:{folder.path}")
    assert identify(record, copy) != first


@pytest.mark.parametrize("recorded_place", ["", "{host}:", "{host}:{original}/gone"])
def test_a_search_without_a_known_original_keeps_its_id(
    recorded_place: str, folder: SearchFolder, tmp_path: Path
) -> None:
    record = create_record(folder)
    first = identify(record, folder)
    copy = SearchFolder(storage=tmp_path / "copies", name="s")
    shutil.copytree(folder.path, copy.path)
    record.set_attribute("place", recorded_place.format(original=folder.path, host=socket.gethostname()))
    assert identify(record, copy) == first
    assert record.attribute("place") == f"{socket.gethostname()}:{copy.path}"


def test_a_search_keeps_its_id_if_its_original_has_another(folder: SearchFolder, tmp_path: Path) -> None:
    record = create_record(folder)
    first = identify(record, folder)
    copy = SearchFolder(storage=tmp_path / "copies", name="s")
    shutil.copytree(folder.path, copy.path)
    write_id(folder.space_yaml, "0" * 32)
    assert identify(record, copy) == first


def test_the_location_of_a_search_at_a_url_is_its_url(folder: SearchFolder) -> None:
    record, url = create_record(folder), "s3://ann:s3cret@bucket/runs/s"
    identities = [ensure_identity(record, folder, url=url, study_url=None) for _ in range(2)]
    assert identities[0] == identities[1]
    assert identities[0].location == "s3://ann:***@bucket/runs/s"
    assert (record.attribute("id"), record.attribute("place")) == (identities[0].id, identities[0].location)


def identify_at(record: StudyRecord, folder: SearchFolder, url: str) -> str:
    """Ensure the id like a run of a search at a URL, and write it to ``space.yaml`` there."""
    identity = ensure_identity(record, folder, url=url, study_url=None)
    remote = RemoteFolder.connect(StorageUrl(url=url))
    remote.write("space.yaml", with_id("version: 1\n", identity.id).encode())
    return identity.id


def copy_files(source: str, target: str) -> list[str]:
    """Copy a search as `aws s3 sync` does, and return the names of the copies."""
    there, here = (RemoteFolder.connect(StorageUrl(url=url)) for url in (source, target))
    for name in there.names():
        here.write(name, there.read(name) or b"")
    return here.names()


@pytest.fixture
def bucket() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.mark.parametrize(
    ("original", "copy"),
    [
        ("{bucket}/runs/s", "{bucket}/copies/s"),
        ("{bucket}/runs/s", "{local}"),
        ("{local}", "{bucket}/copies/s"),
    ],
    ids=["url-to-url", "download", "upload"],
)
def test_a_copy_of_a_search_at_a_url_gets_a_new_id(
    original: str, copy: str, bucket: str, folder: SearchFolder, tmp_path: Path
) -> None:
    record = create_record(folder)
    scratch = SearchFolder(storage=tmp_path / "scratch", name="s")
    places = [place.format(bucket=bucket, local="local") for place in (original, copy)]

    def resume_at(place: str) -> str:
        return identify(record, folder) if place == "local" else identify_at(record, scratch, place)

    first = resume_at(places[0])
    urls = [f"file://{folder.path}" if place == "local" else place for place in places]
    names = copy_files(*urls)
    second = resume_at(places[1])
    assert second != first
    assert resume_at(places[1]) == second
    assert RemoteFolder.connect(StorageUrl(url=urls[1])).names() == names, "no file is left"


def test_a_moved_search_at_a_url_keeps_its_id(bucket: str, folder: SearchFolder) -> None:
    record = create_record(folder)
    first = identify_at(record, folder, f"{bucket}/runs/s")
    copy_files(f"{bucket}/runs/s", f"{bucket}/elsewhere/s")
    RemoteFolder.connect(StorageUrl(url=f"{bucket}/runs/s")).delete("space.yaml")
    assert identify_at(record, folder, f"{bucket}/elsewhere/s") == first
    assert record.attribute("place") == f"{bucket}/elsewhere/s"
    same_place = bucket.replace("memory://", "memory:///")
    assert identify_at(record, folder, f"{same_place}/elsewhere/s") == first, "another name of the URL"


def test_a_search_whose_original_cannot_be_read_keeps_its_id(bucket: str, folder: SearchFolder) -> None:
    record = create_record(folder)
    first = identify_at(record, folder, f"{bucket}/runs/s")
    record.set_attribute("place", "no-such-scheme://bucket/runs/s")
    assert identify_at(record, folder, f"{bucket}/runs/s") == first


def test_an_unreadable_space_has_no_id(folder: SearchFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.space_yaml.write_bytes(b"\xff\xfe# tune_rescon.id: \n")
    assert read_id(folder.space_yaml) is None
    folder.space_yaml.write_text(f"version: 1\n# tune_rescon.id: {'0' * 32}\n")
    assert read_id(folder.space_yaml) is None, "the id must be in the first line"


def test_a_study_in_a_database_is_not_copied_with_the_folder(folder: SearchFolder, tmp_path: Path) -> None:
    record = create_record(folder)
    first = identify(record, folder, study_url=SERVER)
    copy = SearchFolder(storage=tmp_path / "copies", name="s")
    shutil.copytree(folder.path, copy.path)
    assert identify(record, copy, study_url=SERVER) == first


@pytest.mark.parametrize("is_moved", [False, True], ids=["copied", "moved"])
def test_a_folder_copied_with_the_file_of_its_study_is_another_search(
    is_moved: bool, folder: SearchFolder, tmp_path: Path
) -> None:
    record = create_record(folder)
    record.open(Proposal(params={}, distributions={}))
    first = identify(record, folder, study_url=f"sqlite:///{tmp_path}/studies.db")
    copy = SearchFolder(storage=tmp_path / "copies", name="s")
    shutil.copytree(folder.path, copy.path)
    if is_moved:
        shutil.rmtree(folder.path)
    second = identify(record, copy, study_url=f"sqlite:///{tmp_path}/copies.db")
    assert (second == first) is is_moved
    assert identify(record, copy, study_url=f"sqlite:///{tmp_path}/copies.db") == second


@pytest.mark.timeout(20)  # a database
@pytest.mark.parametrize("on_server", [True, False], ids=["server", "file"])
def test_a_copied_folder_does_not_share_the_study_of_its_original(
    on_server: bool,
    tmp_path: Path,
    make_search: MakeSearch,
    location: SearchLocation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = make_search("a")
    database = sqlite_url(original.study_db.rename(tmp_path / "studies.db"))
    record = StudyRecord.load(database, "a", metric="val_accuracy")
    write_id(original.space_yaml, ensure_identity(record, original, url=None, study_url=None).id)
    copy = SearchFolder(storage=tmp_path / "copies", name="a")
    shutil.copytree(original.path, copy.path)

    def resume(folder: SearchFolder, study_url: str = database) -> None:
        options = RunOptions(name="a", resume=True, storage=folder.storage, study_url=study_url)
        resume_record(load_space(str(folder.space_yaml)), options, SearchStore(folder))

    resume(copy)  # An earlier version has not recorded the file of the database, which may be a copy.
    if on_server:
        monkeypatch.setattr("tune_rescon.tuning.identity.sqlite_file", lambda _: None)
    else:
        ensure_identity(record, original, url=None, study_url=database)
        resume(copy, sqlite_url(Path(shutil.copy(tmp_path / "studies.db", tmp_path / "copies.db"))))
    before = record.attributes()
    resume(original)
    of_copy = dataclasses.replace(location, storage=copy.storage, study_url=database)
    read = read_search(of_copy, "a")
    assert (len(read.trials), read.study_url) == (6, database), "it may be read"
    with pytest.raises(StorageError, match=r"driven from one folder.* a copy of the search in .*/runs/a\."):
        resume(copy)
    with pytest.raises(StorageError, match="driven from one folder"):
        sync_tracking(of_copy, "a", timeout=1, present=lambda _: pytest.fail("nothing is sent"))
    assert StudyRecord.load(database, "a", metric="val_accuracy").attributes().keys() == before.keys() | {
        "lease"
    }
    shutil.rmtree(original.path)
    resume(copy)


def test_a_new_search_that_takes_over_a_study_without_trials_has_another_id(
    folder: SearchFolder, tmp_path: Path
) -> None:
    """The searches are in different storages and share one database."""
    record = create_record(folder)
    first = identify(record, folder, study_url=SERVER)
    other = SearchFolder(storage=tmp_path / "others", name="s")
    other.path.mkdir(parents=True)
    second = identify(record, other, study_url=SERVER)
    assert second != first
    with pytest.raises(StorageError, match="that of another search"):
        check_same_search(record.attributes(), folder)
    other.space_yaml.unlink()
    assert identify(record, other, study_url=SERVER) == second, (
        "the id of the study is kept if its driver died before it began"
    )


def test_the_id_in_a_space_file_is_a_comment(folder: SearchFolder) -> None:
    space = load_space("digits")
    folder.path.mkdir(parents=True)
    folder.space_yaml.write_text(dump_space(space))
    assert read_id(folder.space_yaml) is None
    for search_id in ("0" * 32, "1" * 32, "1" * 32):
        write_id(folder.space_yaml, search_id)
        assert read_id(folder.space_yaml) == search_id
        assert folder.space_yaml.read_text() == with_id(dump_space(space), search_id)
    assert load_space(str(folder.space_yaml)) == space
    assert load_goal(folder.space_yaml).metric == space.metric
    assert read_id(folder.path / "gone.yaml") is None
