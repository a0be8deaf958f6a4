"""Data that MLflow lacks is sent from the record: all of it, once, and only if no driver runs."""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from contextlib import nullcontext
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import mlflow
import pytest
from mlflow.entities import Run

from tests.mlflow_in_process import mlflow_in_process
from tests.tuning.conftest import MakeSearch
from tests.waiting import LONGEST_WAIT, reserved_port
from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe
from tune_rescon.errors import LeaseError, StorageError
from tune_rescon.storage import RemoteFolder, SearchHome, StorageUrl
from tune_rescon.tracking import writer
from tune_rescon.tuning import (
    Presentation,
    SearchFolder,
    SearchLocation,
    StudyRecord,
    StudyResult,
    read_search,
    study_attributes,
    sync_tracking,
)
from tune_rescon.tuning.identity import read_id, write_id
from tune_rescon.tuning.input_digests import record_images
from tune_rescon.tuning.lease import hold_lease
from tune_rescon.tuning.mlflow_sync import Synced
from tune_rescon.tuning.stopping.rule import Decision, Verdict
from tune_rescon.tuning.study_attributes import provenance, record_provenance, record_run
from tune_rescon.tuning.study_lease import StudyLeaseStore

CONTINUE = Verdict(decision=Decision.CONTINUE)

# MLflow is imported, each call uses a database, and taking a lease waits half a second.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store(location: SearchLocation, empty_store: Path) -> str:
    """The storage's MLflow store after a search that ended before its first request."""
    assert isinstance(location.storage, Path)
    location.storage.mkdir()
    return f"sqlite:///{shutil.copy(empty_store, location.storage / 'mlflow.db')}"


def sync(location: SearchLocation, *, timeout: float = LONGEST_WAIT, in_process: bool = True) -> Synced:
    """Call MLflow in this process, or in one of its own, which takes seconds to start."""
    presentation = mock.create_autospec(Presentation, instance=True)
    presentation.note.return_value = "**best**"
    presentation.conclude.side_effect = draw
    with mlflow_in_process() if in_process else nullcontext():
        return sync_tracking(location, "a", timeout=timeout, present=lambda _: presentation)


def draw(result: StudyResult, folder: SearchFolder) -> list[Path]:
    folder.report_html.write_text(f"{len(result.trials)} trials", encoding="utf-8")
    return [folder.report_html]


def runs(store: str) -> tuple[Run, dict[int, Run]]:
    """Return the parent run and the trial runs by number."""
    client = mlflow.MlflowClient(store)
    all_runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = [run for run in all_runs if "tune_rescon.trial" not in run.data.tags]
    children = {
        int(r.data.tags["tune_rescon.trial"]): r for r in all_runs if "tune_rescon.trial" in r.data.tags
    }
    assert len(children) == len(all_runs) - 1
    return parent, children


@pytest.mark.parametrize(
    ("reports", "status"), [pytest.param(None, "FINISHED", marks=pytest.mark.nightly), (4, "KILLED")]
)
def test_all_data_is_sent_once(
    reports: int | None, status: str, make_search: MakeSearch, location: SearchLocation, store: str
) -> None:
    folder = make_search("a", reports=reports)
    record = StudyRecord.load(folder.study_url, "a", metric="val_accuracy")
    for _ in range(2):
        summary = sync(location)
        assert (summary.uri, summary.pending_updates, summary.last_error) == (store, 0, "")
        parent, children = runs(store)
        assert parent.info.status == status
        note = parent.data.tags["mlflow.note.content"]
        assert note.startswith("**best**\n")
        assert str(folder.path) in note, "the runs have the id of their search"
        assert parent.data.tags["tune_rescon.id"] == read_id(folder.space_yaml)
        assert sorted(children) == [trial.number for trial in record.trials()]
        for trial in record.trials():
            history = mlflow.MlflowClient(store).get_metric_history(
                children[trial.number].info.run_id, "val_accuracy"
            )
            assert [point.value for point in history] == list(trial.values)
            assert children[trial.number].info.status != "RUNNING"
    reloaded = StudyRecord.load(folder.study_url, "a", metric="val_accuracy")
    assert {t.number: t.mlflow_run_id for t in reloaded.trials()} == {
        number: run.info.run_id for number, run in children.items()
    }


def test_a_search_at_a_url_is_sent_from_another_machine(
    make_search: MakeSearch,
    location: SearchLocation,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow writes the files of a named store to ./mlruns
    folder = make_search("a", reports=4)
    record_run(StudyRecord.load(folder.study_url, "a", metric="val_accuracy"), {}, store)
    remote = StorageUrl(url=f"memory://{uuid.uuid4().hex}")
    SearchHome.create(remote, "a")
    for name in ("space.yaml", "study.db"):
        RemoteFolder.connect(remote).write(f"a/{name}", (folder.path / name).read_bytes())
    sync(dataclasses.replace(location, storage=remote))
    _, children = runs(store)
    assert len(children) == len(StudyRecord.load(folder.study_url, "a", metric="val_accuracy").trials())


def test_the_runs_have_the_searchs_own_times_and_origin(
    make_search: MakeSearch, location: SearchLocation, store: str
) -> None:
    """A server that was away for the whole search gets its runs days later."""
    folder = make_search("a", reports=4)
    record = StudyRecord.load(folder.study_url, "a", metric="val_accuracy")
    info = describe(DatasetConfig(name="digits"), data_root=location.data_root)
    record_run(record, {"digits": info}, None)
    record_images(record, {"digits": "c0ffee"})
    record_provenance(record, {"mlflow.source.git.commit": "1a2b3c", "tune_rescon.device": "2 CPU"})
    sync(location)
    parent, children = runs(store)
    trials = record.trials()
    starts = [int(trial.started.timestamp() * 1000) for trial in trials if trial.started]
    ends = [
        int(trial.ended.timestamp() * 1000) if trial.ended else max(start, *trial.times_ms, start)
        for trial, start in zip(trials, starts, strict=True)
    ]
    assert any(trial.epochs and trial.ended is None for trial in trials), "one was interrupted"
    assert [children[n].info.start_time for n in range(len(trials))] == starts
    assert [children[n].info.end_time for n in range(len(trials))] == ends
    assert (parent.info.start_time, parent.info.end_time) == (min(starts), max(ends))
    assert parent.data.tags["mlflow.source.git.commit"] == "1a2b3c"
    assert parent.data.tags["tune_rescon.device"] == "2 CPU"
    assert parent.inputs is not None
    (images,) = parent.inputs.dataset_inputs
    assert (images.dataset.name, images.dataset.digest) == ("digits", "c0ffee")


def test_the_files_are_those_of_the_study_as_it_is(
    make_search: MakeSearch, location: SearchLocation, store: str
) -> None:
    """A search that was finished, then resumed and killed, has the tables and pages of its first run."""
    folder = make_search("a", reports=4)
    for file in (folder.trials_csv, folder.best_yaml, folder.report_html):
        file.write_text("of an earlier run", encoding="utf-8")
    sync(location, in_process=False)
    parent, _ = runs(store)
    artifacts = Path(urlsplit(parent.info.artifact_uri).path)
    result = read_search(location, "a")
    assert result.best is not None
    table = (artifacts / "trials.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + len(result.trials)
    assert f"trial: {result.best.number}\n" in (artifacts / "best.yaml").read_text(encoding="utf-8")
    assert (artifacts / "report.html").read_text(encoding="utf-8") == f"{len(result.trials)} trials"


def test_a_trial_that_is_interrupted_again_has_its_newest_end(
    make_search: MakeSearch, location: SearchLocation, store: str
) -> None:
    """The server was away while the trial ran for the second time."""
    folder = make_search("a", reports=4)
    record = StudyRecord.load(folder.study_url, "a", metric="val_accuracy")
    number = next(trial.number for trial in record.trials() if not trial.state.is_final)
    for _ in range(2):
        record.reopen(number)
        record.report(number, record.trial(number).epochs + 1, {"val_accuracy": 0.999}, CONTINUE)
        record.interrupt(number)
        sync(location)
        parent, children = runs(store)
        assert children[number].data.tags["tune_rescon.state"] == "interrupted"
        assert parent.info.end_time == children[number].info.end_time == record.trial(number).times_ms[-1]


def test_a_commit_that_the_last_run_does_not_know_is_not_shown(
    make_search: MakeSearch, location: SearchLocation, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search began in a checkout, and a wheel of another version resumed it."""
    folder = make_search("a", reports=4)
    record = StudyRecord.load(folder.study_url, "a", metric="val_accuracy")
    record_provenance(record, {"mlflow.source.git.commit": "1a2b3c"})
    sync(location)
    assert runs(store)[0].data.tags["mlflow.source.git.commit"] == "1a2b3c"
    monkeypatch.setattr(study_attributes, "commit_tags", lambda _: {})
    record_provenance(record, provenance({}))
    sync(location)
    assert not runs(store)[0].data.tags["mlflow.source.git.commit"]


def test_sync_does_not_count_as_time_of_the_search(
    make_search: MakeSearch, location: SearchLocation, store: str
) -> None:
    """Otherwise a sync would use up the `budget.hours` of the search."""
    del store
    folder = make_search("a", reports=4)
    lease = StudyLeaseStore.open(folder.study_url, "a")
    with hold_lease(lease, name="a"):
        pass
    before = lease.read()
    assert before is not None
    sync(location)
    after = lease.read()
    assert after is not None
    assert after["driven"] == before["driven"]


def test_another_search_of_that_name_in_a_shared_database_is_not_sent(
    make_search: MakeSearch, location: SearchLocation, store: str
) -> None:
    folder = make_search("a", reports=4)
    record = StudyRecord.load(folder.study_url, "a", metric="val_accuracy")
    record.set_attribute("id", "2b" * 16)
    write_id(folder.space_yaml, "1a" * 16)
    with pytest.raises(StorageError, match="that of another search"):
        sync(dataclasses.replace(location, study_url=folder.study_url))
    assert read_id(folder.space_yaml) == "1a" * 16
    assert mlflow.MlflowClient(store).search_runs(["0"]) == []


def test_a_running_search_is_refused(make_search: MakeSearch, location: SearchLocation) -> None:
    folder = make_search("a", reports=4)
    lease = StudyLeaseStore.open(folder.study_url, "a")
    with hold_lease(lease, name="a", seconds=20), pytest.raises(LeaseError, match="one driver"):
        sync(location)


def test_an_unreachable_server_is_reported(
    make_search: MakeSearch, location: SearchLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LAST_CALL", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = make_search("a")
    with reserved_port() as port:
        address = f"http://127.0.0.1:{port}"
        record_run(StudyRecord.load(folder.study_url, "a", metric="val_accuracy"), {}, address)
        summary = sync(location, timeout=0.3, in_process=False)
    assert summary.uri == address
    assert summary.pending_updates > 6
    assert summary.last_error
