"""A storage that an earlier version wrote, moved to another folder: resumed, reported and exported.

How it was made is in tests/fixtures/README.md. Its record names /old/storage, which does not exist.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tune_rescon.config import TrialState
from tune_rescon.export import main as export
from tune_rescon.metric_names import METRICS
from tune_rescon.report import main as report
from tune_rescon.search import main as search
from tune_rescon.spaces import load_space
from tune_rescon.tuning import (
    Coordinator,
    Decision,
    SearchFolder,
    SearchPlan,
    SearchSampler,
    StudyRecord,
    TrialRecord,
    make_stopping_rule,
)

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "old_search.tar.xz"

EPOCHS = 4


@pytest.fixture
def old(tmp_path: Path) -> SearchFolder:
    """The old search, in a folder that is not the one it ran in."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "moved", filter="data")
    return SearchFolder(storage=tmp_path / "moved", name="old")


def checkpoints(folder: SearchFolder) -> dict[int, list[str]]:
    """The files of each trial's directory."""
    found = sorted((folder.path / "checkpoints").glob("*"))
    return {int(one.name[-4:]): sorted(path.name for path in one.iterdir()) for one in found}


def record_of(folder: SearchFolder) -> StudyRecord:
    return StudyRecord.load(folder.study_url, folder.name, metric="val_accuracy")


def best_five(folder: SearchFolder) -> dict[int, list[str]]:
    """What the folder must hold at the end."""
    ranked = sorted(record_of(folder).trials(), key=TrialRecord.rank_key)
    return {trial.number: ["best.ckpt"] for trial in sorted(ranked[:5], key=lambda trial: trial.number)}


def test_the_best_trials_keep_checkpoints_when_paused_trials_end(old: SearchFolder) -> None:
    assert {number for number, files in checkpoints(old).items() if "best.ckpt" in files} == set(range(6))
    space, record = load_space(str(old.space_yaml)), record_of(old)
    resumed = Coordinator(
        SearchPlan(total=6),
        record,
        make_stopping_rule(space),
        SearchSampler(space, existing_trials=record.trials()),
        prune=lambda number, keep: old.prune_checkpoints(number, keep=keep),
    ).start()
    while (trial := resumed.next_trial()) is not None:
        for epoch in range(trial.epochs + 1, EPOCHS + 1):
            metrics = {**dict.fromkeys(METRICS, 0.5), "val_accuracy": 0.1 + trial.number / 100}
            place = str(old.checkpoints(trial.number) / "best.ckpt")
            if resumed.epoch_done(trial.number, epoch, metrics, place) is not Decision.CONTINUE:
                break
    assert {trial.state for trial in record.trials()} == {TrialState.FINISHED, TrialState.STOPPED}
    assert checkpoints(old) == best_five(old)


def test_a_moved_search_can_be_reported(old: SearchFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["old", "--storage", str(old.storage), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["state"] == "interrupted"
    assert said["best"]["trial"] == 1
    kept = {trial["trial"]: trial["checkpoint"] for trial in said["trials"]}
    assert kept == {number: str(old.checkpoints(number) / "best.ckpt") for number in range(6)}


@pytest.mark.torch
def test_a_moved_search_can_be_exported(old: SearchFolder, tmp_path: Path) -> None:
    output = tmp_path / "winner.safetensors"
    command = ["old", "--storage", str(old.storage), "--format", "safetensors", "--output", str(output)]
    assert export(command) == 0
    assert output.is_file()


def test_a_missing_checkpoint_of_the_winner_is_reported(
    old: SearchFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = old.checkpoints(1) / "best.ckpt"
    lost.rename(tmp_path / "left_behind.ckpt")
    command = ["old", "--storage", str(old.storage), "--format", "safetensors"]
    assert export([*command, "--output", str(tmp_path / "a")]) == 2
    assert f"{lost} is missing. Copy the folder's `checkpoints`" in capsys.readouterr().err
    assert report(["old", "--storage", str(old.storage), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["checkpoint"] is None


@pytest.mark.torch
@pytest.mark.usefixtures("without_ray")
def test_a_moved_search_can_be_resumed(
    old: SearchFolder, cache_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(cache_root))
    before = {trial.number: trial.values for trial in record_of(old).trials()}
    assert search(["--resume", "old", "--storage", str(old.storage), "--plain"]) == 0
    said = capsys.readouterr().out
    trials = record_of(old).trials()
    assert {trial.state for trial in trials} == {TrialState.FINISHED, TrialState.STOPPED}
    assert all(trial.values[: len(before[trial.number])] == before[trial.number] for trial in trials)
    assert checkpoints(old) == best_five(old)
    best = YAML(typ="safe").load(old.best_yaml)
    assert (old.path / best["checkpoint"]).is_file()
    assert f"registering the model of trial_{best['trial']:04d} in MLflow" in said
    # On a machine that is busy MLflow may not take it in a minute; then that is printed.
    with closing(sqlite3.connect(old.storage / "mlflow.db")) as database:
        (registered,) = database.execute("SELECT COUNT(*) FROM model_versions").fetchone()
    assert registered == (0 if "MLflow did not take" in said else 1)
    assert "/old/storage" not in old.trials_csv.read_text() + old.best_yaml.read_text()
