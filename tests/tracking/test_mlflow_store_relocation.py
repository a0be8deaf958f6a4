"""A storage that was moved or copied uses its own MLflow artifacts and does not change the original's."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tune_rescon.storage import sqlite_url
from tune_rescon.tracking.worker import follow_artifacts
from tune_rescon.tracking.worker_client import CallError, RetryPolicy

pytestmark = pytest.mark.timeout(60)  # an MLflow store is created once


class StoreWithRuns:
    """An MLflow store with a run in a search's experiment and a run in a user's experiment."""

    def __init__(self, storage: Path) -> None:
        self.file = storage / "mlflow.db"
        self.artifacts = storage / "mlartifacts"
        self.client = MlflowClient(sqlite_url(self.file))

    def fill(self, elsewhere: Path, artifact: Path) -> tuple[str, str]:
        search_experiment = self.client.create_experiment("digits", self.artifacts.as_uri())
        self.client.set_experiment_tag(
            search_experiment, "mlflow.experiment.primaryMetric.name", "best_val_accuracy"
        )
        user_experiment = self.client.create_experiment("mine", elsewhere.as_uri())
        runs = [
            self.client.create_run(experiment).info.run_id
            for experiment in (search_experiment, user_experiment)
        ]
        # Copied without MLflow, which caches the artifact repository of a run in this process.
        folder = self.artifacts / runs[0] / "artifacts"
        folder.mkdir(parents=True)
        shutil.copy(artifact, folder)
        return runs[0], runs[1]

    def artifact_uri(self, run: str) -> str:
        return str(self.client.get_run(run).info.artifact_uri)


def test_a_copy_has_its_own_artifacts(empty_store: Path, tmp_path: Path) -> None:
    original = tmp_path / "runs"
    original.mkdir()
    shutil.copyfile(empty_store, original / "mlflow.db")
    artifact = tmp_path / "space.yaml"
    artifact.write_text("version: 1")
    store = StoreWithRuns(original)
    search_run, user_run = store.fill(tmp_path / "elsewhere" / "mlartifacts", artifact)
    store.client.create_registered_model("digits")
    store.client.create_model_version("digits", f"{store.artifact_uri(search_run)}/model", search_run)
    follow_artifacts(store.file, store.artifacts)
    assert store.artifact_uri(search_run).startswith(original.as_uri()), "the store was not moved"

    shutil.copytree(original, tmp_path / "copy")
    copy = StoreWithRuns(tmp_path / "copy")
    follow_artifacts(copy.file, copy.artifacts)
    assert copy.artifact_uri(search_run).startswith(f"{copy.artifacts.as_uri()}/")
    assert copy.artifact_uri(user_run) == store.artifact_uri(user_run)
    assert copy.client.get_model_version_download_uri("digits", "1").startswith(copy.artifacts.as_uri())
    assert [artifact_file.path for artifact_file in copy.client.list_artifacts(search_run)] == ["space.yaml"]
    artifact.write_text("version: 2")
    copy.client.log_artifact(search_run, str(artifact))
    (original_file,) = original.rglob("space.yaml")
    assert original_file.read_text() == "version: 1"


def test_a_store_that_cannot_be_read_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    follow_artifacts(tmp_path / "mlflow.db", tmp_path / "mlartifacts")
    follow_artifacts(tmp_path / "none.db", tmp_path / "mlartifacts")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"no database"]


def test_a_locked_store_is_retried(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the update the search would write artifacts to the old location."""
    monkeypatch.setattr("tune_rescon.tracking.worker._BUSY_SECONDS", 0.0)
    file = Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CallError, match="locked") as error:
            follow_artifacts(file, tmp_path / "mlartifacts")
    assert error.value.policy is RetryPolicy.RETRY
