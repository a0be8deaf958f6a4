"""A search's files: its name, atomic writes, and the deletion of checkpoints."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tune_rescon.config import TrialState
from tune_rescon.errors import StorageError
from tune_rescon.tuning import SearchFolder, TrialRecord, resolve_storage, write_atomically
from tune_rescon.tuning.store import SearchStore

TRIAL = TrialRecord(
    number=3,
    state=TrialState.STOPPED,
    parameters={"depth": 56, "step_fractions": "[40, 60]"},
    metric="val_accuracy",
    maximize=True,
    values=(0.1, 0.30000000000000004),
    history={"epoch_seconds": (1.0, 2.5)},
)


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    search_folder = SearchFolder(storage=tmp_path / "runs", name="s")
    search_folder.create()
    return search_folder


@pytest.mark.parametrize(("value", "expected"), [(None, "runs"), ("", "runs"), ("/data/runs", "/data/runs")])
def test_storage_from_environment(value: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNE_RESCON_STORAGE", raising=False)
    if value is not None:
        monkeypatch.setenv("TUNE_RESCON_STORAGE", value)
    assert resolve_storage() == Path(expected)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a'b", "a\n", "é"])
def test_an_invalid_name_is_refused_before_a_folder_is_created(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--name: must be letters, digits"):
        SearchFolder(storage=tmp_path / "runs", name=name).create()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["a", "0", "att92", "a.b_c-d", "A" * 100])
def test_a_valid_name_is_accepted(name: str, tmp_path: Path) -> None:
    SearchFolder(storage=tmp_path / "runs", name=name).create()
    assert (tmp_path / "runs" / name).is_dir()


def test_each_file_is_where_the_documentation_says(folder: SearchFolder) -> None:
    files = {
        folder.space_yaml: "space.yaml",
        folder.study_db: "study.db",
        folder.trials_csv: "trials.csv",
        folder.best_yaml: "best.yaml",
        folder.report_html: "report.html",
        folder.plots: "plots",
        folder.log: "search.log",
        folder.tensorboard: "tensorboard",
        folder.checkpoints(7): "checkpoints/trial_0007",
    }
    assert {path: folder.path / name for path, name in files.items()} == {path: path for path in files}
    assert folder.path == folder.storage / "s"
    assert (folder.mlflow_db, folder.mlflow_artifacts) == (
        folder.storage / "mlflow.db",
        folder.storage / "mlartifacts",
    )


@pytest.mark.parametrize(
    ("storage", "uri"),
    [
        ("/data/runs", "sqlite:////data/runs/mlflow.db"),
        ("/runs?", "sqlite+pysqlite:////runs%3F/mlflow.db"),
    ],
)
def test_a_quoted_storage_path_gives_an_explicit_sqlite_driver(storage: str, uri: str) -> None:
    assert SearchFolder(storage=Path(storage), name="s").mlflow_uri == uri


def test_an_invalid_name_finds_no_search(folder: SearchFolder) -> None:
    (folder.storage.parent / "space.yaml").touch()
    with pytest.raises(StorageError, match="--resume: must be letters, digits"):
        dataclasses.replace(folder, name="..").require()


def test_a_writable_search_is_accepted(folder: SearchFolder) -> None:
    folder.check_writable()
    for path in (folder.study_db, folder.log):
        path.touch()
        folder.check_writable()


def test_a_taken_name_is_refused_with_hints_to_resume_or_rename(folder: SearchFolder) -> None:
    folder.space_yaml.write_text("version: 1\n")
    with pytest.raises(StorageError, match="--resume s, or give another --name"):
        folder.create()


def test_a_folder_that_holds_no_search_is_not_offered_for_resuming(folder: SearchFolder) -> None:
    with pytest.raises(StorageError, match="It contains no search: remove it, or give another --name"):
        folder.create()


def test_trials_csv_omits_deleted_checkpoints(folder: SearchFolder) -> None:
    names = ["checkpoints/kept", "checkpoints/gone"]
    (folder.path / "checkpoints").mkdir()
    (folder.path / names[0]).touch()
    for at_url, named in ((False, [names[0], ""]), (True, names)):
        trials = [dataclasses.replace(TRIAL, checkpoint=name) for name in names]
        folder.write_trials(trials, [], at_url=at_url)
        with folder.trials_csv.open(newline="") as file:
            assert [row["checkpoint"] for row in csv.DictReader(file)] == named


def test_a_missing_search_is_refused_with_the_existing_ones(folder: SearchFolder) -> None:
    nothing = dataclasses.replace(folder, name="t")
    with pytest.raises(StorageError, match="There is no search there yet"):
        nothing.require()
    folder.space_yaml.write_text("version: 1\n")
    folder.require()
    with pytest.raises(StorageError, match=r"no search named 't' .* Searches there: s\."):
        nothing.require()


@pytest.mark.parametrize(("others", "remaining"), [(False, False), (True, True)])
def test_removing_a_search_deletes_its_folder_and_an_empty_storage(
    others: bool, remaining: bool, folder: SearchFolder
) -> None:
    folder.log.write_text("a line")
    if others:
        (folder.storage / "another").mkdir()
    folder.remove(with_storage=True)
    assert not folder.path.exists()
    assert folder.storage.exists() is remaining


def test_removing_a_search_keeps_an_existing_storage(folder: SearchFolder) -> None:
    folder.remove(with_storage=False)
    assert folder.storage.is_dir()


@pytest.mark.parametrize(
    ("keep", "remaining"),
    [
        ("{folder}/checkpoints/trial_0007/best.ckpt", {"best.ckpt"}),
        # Recorded by an earlier version, before the folder was moved.
        ("/old/runs/s/checkpoints/trial_0007/best.ckpt", {"best.ckpt"}),
        ("checkpoints/trial_0007/best.ckpt", {"best.ckpt"}),
        # The winner's file is missing: the other file may be its only checkpoint.
        ("checkpoints/trial_0007/best.partial", {"best.ckpt", "last.ckpt", "last.previous.ckpt"}),
        (None, None),
    ],
)
def test_pruning_leaves_one_file_or_no_directory(
    keep: str | None, remaining: set[str] | None, folder: SearchFolder
) -> None:
    directory = folder.checkpoints(7)
    directory.mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt", "last.previous.ckpt"):
        (directory / name).write_text(name)
    folder.prune_checkpoints(7, keep=keep.format(folder=folder.path) if keep else None)
    assert ({path.name for path in directory.iterdir()} if directory.exists() else None) == remaining
    folder.prune_checkpoints(8, keep=None)


def test_files_that_no_trial_wrote_are_never_pruned(folder: SearchFolder) -> None:
    directory = folder.checkpoints(7)
    (directory / "mine").mkdir(parents=True)
    for name in ("best.ckpt", "mine/best.ckpt", "best.onnx"):
        (directory / name).touch()
    folder.prune_checkpoints(7, keep=None)
    assert {path.name for path in directory.rglob("*") if path.is_file()} == {"best.ckpt", "best.onnx"}
    assert (directory / "mine" / "best.ckpt").is_file()


def test_checkpoints_of_unrecorded_trials_are_moved_aside(folder: SearchFolder) -> None:
    checkpoints = folder.path / "checkpoints"
    for name in ("trial_0000", "trial_0001", "trial_0002", "trial_0001.lost_1", "trial_10000", "trial_1"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "last.ckpt").write_text(name)
    (checkpoints / "trial_0003").mkdir()
    (checkpoints / "trial_0003" / "notes.txt").touch()
    moved = folder.rename_unknown_checkpoints({0, 2})
    assert [path.name for path in moved] == ["trial_0001.lost_2", "trial_10000.lost_1"]
    assert {path.name: (path / "last.ckpt").read_text() for path in moved} == {
        "trial_0001.lost_2": "trial_0001",
        "trial_10000.lost_1": "trial_10000",
    }
    remaining = {"trial_0000", "trial_0002", "trial_0001.lost_1", "trial_1", "trial_0003"}
    assert {path.name for path in checkpoints.iterdir()} == remaining | {path.name for path in moved}
    assert folder.rename_unknown_checkpoints({0, 2}) == []


def test_checkpoints_that_are_moved_aside_are_reported_once(
    folder: SearchFolder, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (0, 1):
        folder.checkpoints(number).mkdir(parents=True)
        (folder.checkpoints(number) / "best.ckpt").touch()
    with caplog.at_level("INFO", logger="tune_rescon.progress"):
        SearchStore(folder).begin([0])
        SearchStore(folder).begin([0])
    (message,) = caplog.messages
    assert message.endswith(f"Moved aside in {folder.path / 'checkpoints'}: trial_0001.lost_1")


def test_trials_csv_reads_back_exactly(folder: SearchFolder) -> None:
    folder.write_trials([TRIAL], ["depth", "drop_path", "step_fractions"])
    with folder.trials_csv.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [float(value) for value in row["values"].split()] == list(TRIAL.values)
    assert (row["trial"], row["state"], row["epochs"], row["seconds"]) == ("3", "stopped", "2", "3.5")
    assert (row["depth"], row["drop_path"], row["step_fractions"]) == ("56", "none", "[40, 60]")
    assert row["checkpoint"] == ""
    assert list(row) == [
        *("trial", "state", "epochs", "value", "best_value", "best_epoch", "seconds", "values", "checkpoint"),
        *("depth", "drop_path", "step_fractions"),
    ]
    assert (row["value"], row["best_value"], row["best_epoch"]) == (*["0.30000000000000004"] * 2, "2")


def test_no_text_in_trials_csv_is_a_formula(folder: SearchFolder) -> None:
    trial = dataclasses.replace(
        TRIAL, parameters={"init_from": "=cmd|' /C calc'!A0", "weight_decay": -1e-05}, values=(-0.5, -0.25)
    )
    folder.write_trials([trial], ["init_from", "weight_decay"])
    with folder.trials_csv.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["init_from"] == "'=cmd|' /C calc'!A0"
    assert (row["weight_decay"], row["values"]) == ("-1e-05", "-0.5 -0.25")


def test_best_yaml_reads_back(folder: SearchFolder) -> None:
    best = {"trial": 3, "value": 0.30000000000000004, "config": {"step_fractions": [40, 60], "preset": None}}
    folder.write_best(best)
    assert YAML(typ="safe").load(folder.best_yaml) == best


def test_a_write_that_fails_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "report.html", "half of it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", [".", "study.db"])
def test_a_search_of_another_user_is_not_resumed(
    closed: str, folder: SearchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.study_db.touch()
    # The result of `os.access` for another user, because root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != folder.path / closed)
    with pytest.raises(StorageError, match=r"--resume: .* cannot be written\. .*copy its folder"):
        folder.check_writable()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half\udc80")
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
