"""A record that cannot be written while a search runs: a full disk, a deleted file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.errors import RecordError
from tune_rescon.tuning import Decision, SearchFolder, StudyRecord
from tune_rescon.tuning.stopping.rule import Verdict
from tune_rescon.tuning.study_writer import SqlStudyWriter
from tune_rescon.tuning.trial import Proposal

CONTINUE = Verdict(decision=Decision.CONTINUE)

pytestmark = pytest.mark.timeout(20)  # SQLite on a busy disk


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    search_folder = SearchFolder(storage=tmp_path, name="s")
    search_folder.create()
    return search_folder


@pytest.fixture
def record(folder: SearchFolder) -> StudyRecord:
    study_record = StudyRecord.create(folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
    study_record.open(Proposal(params={}, distributions={}))
    study_record.report(0, 1, {"val_accuracy": 0.5}, CONTINUE)
    return study_record


def fill_disk(record: StudyRecord) -> None:
    """Limit the database's pages, so that SQLite reports a full disk."""
    writer = record._writer
    assert isinstance(writer, SqlStudyWriter)
    with writer._engine.begin() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")


def write_until_full(record: StudyRecord) -> None:
    for epoch in range(2, 1000):
        record.report(0, epoch, {"val_accuracy": 0.5, "x" * 1000: 1.0}, CONTINUE)


def test_a_full_disk_is_reported_and_earlier_epochs_are_recorded(
    record: StudyRecord, folder: SearchFolder
) -> None:
    fill_disk(record)
    with pytest.raises(RecordError) as caught:
        write_until_full(record)
    message = str(caught.value)
    assert f"but got {folder.study_db}: database or disk is full." in message
    assert "Every earlier epoch is recorded" in message
    reloaded = StudyRecord.load(folder.study_url, "s", metric="val_accuracy")
    assert reloaded.trial(0).epochs == record.trial(0).epochs


def test_an_epoch_of_a_trial_that_a_restored_copy_lacks_is_refused(
    record: StudyRecord, folder: SearchFolder
) -> None:
    """The copy replaces the file while the search runs."""
    before = folder.study_db.read_bytes()
    trial = record.open(Proposal(params={}, distributions={}))
    with folder.study_db.open("r+b") as file:
        file.write(before)
        file.truncate()
    with pytest.raises(RecordError, match=r"study\.db, which lacks one\. It was replaced by another copy"):
        record.report(trial.number, 1, {"val_accuracy": 0.5}, CONTINUE)


@pytest.mark.parametrize("closed", [True, False])
def test_a_deleted_record_is_reported_and_not_created_again(
    closed: bool, record: StudyRecord, folder: SearchFolder
) -> None:
    writer = record._writer
    assert isinstance(writer, SqlStudyWriter)
    if closed:
        writer._engine.dispose()
    folder.study_db.unlink()
    with pytest.raises(RecordError, match=r"study\.db, which is gone \(.*\)\. Put the file back"):
        record.report(0, 2, {"val_accuracy": 0.5}, CONTINUE)
    with pytest.raises(RecordError, match=r"study\.db, which is gone"):
        record.set_attribute("outcome", None)
    assert not folder.study_db.exists()
