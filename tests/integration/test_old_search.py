"""A storage of an earlier version that was moved to another folder can be resumed, reported and exported.

tests/fixtures/README.md describes its origin. Its study names /old/storage, which does not exist.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.integration.conftest import extract_old_search
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

EPOCHS = 4


@pytest.fixture
def old_search(tmp_path: Path) -> SearchFolder:
    """The search in a folder other than the one in which it ran."""
    return extract_old_search(tmp_path / "moved")


def checkpoint_files(folder: SearchFolder) -> dict[int, list[str]]:
    """Return the checkpoint files of each trial."""
    found = sorted((folder.path / "checkpoints").glob("*"))
    return {int(one.name[-4:]): sorted(path.name for path in one.iterdir()) for one in found}


def load_record(folder: SearchFolder) -> StudyRecord:
    return StudyRecord.load(folder.study_url, folder.name, metric="val_accuracy")


def expected_checkpoints(folder: SearchFolder) -> dict[int, list[str]]:
    """Return the checkpoint files that the five best trials must have at the end."""
    ranked = sorted(load_record(folder).trials(), key=TrialRecord.rank_key)
    return {trial.number: ["best.ckpt"] for trial in sorted(ranked[:5], key=lambda trial: trial.number)}


def test_the_best_trials_keep_checkpoints_when_paused_trials_end(old_search: SearchFolder) -> None:
    assert {number for number, files in checkpoint_files(old_search).items() if "best.ckpt" in files} == set(
        range(6)
    )
    space, record = load_space(str(old_search.space_yaml)), load_record(old_search)
    resumed = Coordinator(
        SearchPlan(total=6),
        record,
        make_stopping_rule(space),
        SearchSampler(space, existing_trials=record.trials()),
        prune=lambda number, keep: old_search.prune_checkpoints(number, keep=keep),
    ).start()
    while (trial := resumed.next_trial()) is not None:
        for epoch in range(trial.epochs + 1, EPOCHS + 1):
            metrics = {**dict.fromkeys(METRICS, 0.5), "val_accuracy": 0.1 + trial.number / 100}
            path = str(old_search.checkpoints(trial.number) / "best.ckpt")
            if resumed.epoch_done(trial.number, epoch, metrics, path) is not Decision.CONTINUE:
                break
    assert {trial.state for trial in record.trials()} == {TrialState.FINISHED, TrialState.STOPPED}
    assert checkpoint_files(old_search) == expected_checkpoints(old_search)


def test_a_moved_search_can_be_reported(old_search: SearchFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["old", "--storage", str(old_search.storage), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "interrupted"
    assert document["best"]["trial"] == 1
    checkpoints = {trial["trial"]: trial["checkpoint"] for trial in document["trials"]}
    assert checkpoints == {number: str(old_search.checkpoints(number) / "best.ckpt") for number in range(6)}


@pytest.mark.torch
def test_a_moved_search_can_be_exported(old_search: SearchFolder, tmp_path: Path) -> None:
    output = tmp_path / "winner.safetensors"
    command = [
        "old",
        "--storage",
        str(old_search.storage),
        "--format",
        "safetensors",
        "--output",
        str(output),
    ]
    assert export(command) == 0
    assert output.is_file()


def test_a_missing_checkpoint_of_the_winner_is_reported(
    old_search: SearchFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = old_search.checkpoints(1) / "best.ckpt"
    missing.rename(tmp_path / "left_behind.ckpt")
    command = ["old", "--storage", str(old_search.storage), "--format", "safetensors"]
    assert export([*command, "--output", str(tmp_path / "a")]) == 2
    assert f"{missing} is missing. Copy the folder's `checkpoints`" in capsys.readouterr().err
    assert report(["old", "--storage", str(old_search.storage), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["checkpoint"] is None


@pytest.mark.torch
@pytest.mark.usefixtures("without_ray", "without_export")
def test_a_moved_search_can_be_resumed(
    old_search: SearchFolder,
    cache_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(cache_root))
    before = {trial.number: trial.values for trial in load_record(old_search).trials()}
    assert search(["--resume", "old", "--storage", str(old_search.storage), "--plain"]) == 0
    stdout = capsys.readouterr().out
    trials = load_record(old_search).trials()
    assert {trial.state for trial in trials} == {TrialState.FINISHED, TrialState.STOPPED}
    assert all(trial.values[: len(before[trial.number])] == before[trial.number] for trial in trials)
    assert checkpoint_files(old_search) == expected_checkpoints(old_search)
    best = YAML(typ="safe").load(old_search.best_yaml)
    assert (old_search.path / best["checkpoint"]).is_file()
    assert f"registering the model of trial_{best['trial']:04d} in MLflow" in stdout
    # On a busy machine MLflow may not register the model within a minute, which is then printed.
    with closing(sqlite3.connect(old_search.storage / "mlflow.db")) as database:
        (registered,) = database.execute("SELECT COUNT(*) FROM model_versions").fetchone()
    assert registered == (0 if "MLflow did not take" in stdout else 1)
    assert "/old/storage" not in old_search.trials_csv.read_text() + old_search.best_yaml.read_text()
