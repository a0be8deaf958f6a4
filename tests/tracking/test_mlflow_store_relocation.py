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

pytestmark = pytest.mark.timeout(60)  # an MLflow store is made once


class Store:
    """The store of a storage, with a run in an experiment of a search's and one in a user's."""

    def __init__(self, storage: Path) -> None:
        self.file = storage / "mlflow.db"
        self.artifacts = storage / "mlartifacts"
        self.client = MlflowClient(sqlite_url(self.file))

    def fill(self, elsewhere: Path, artifact: Path) -> tuple[str, str]:
        ours = self.client.create_experiment("digits", self.artifacts.as_uri())
        self.client.set_experiment_tag(ours, "mlflow.experiment.primaryMetric.name", "best_val_accuracy")
        users = self.client.create_experiment("mine", elsewhere.as_uri())
        runs = [self.client.create_run(experiment).info.run_id for experiment in (ours, users)]
        # By hand: this process's MLflow would keep in mind where a run's artifacts were.
        folder = self.artifacts / runs[0] / "artifacts"
        folder.mkdir(parents=True)
        shutil.copy(artifact, folder)
        return runs[0], runs[1]

    def place(self, run: str) -> str:
        return str(self.client.get_run(run).info.artifact_uri)


def test_a_copy_has_its_own_artifacts(empty_store: Path, tmp_path: Path) -> None:
    original = tmp_path / "runs"
    original.mkdir()
    shutil.copyfile(empty_store, original / "mlflow.db")
    artifact = tmp_path / "space.yaml"
    artifact.write_text("version: 1")
    store = Store(original)
    ours, users = store.fill(tmp_path / "elsewhere" / "mlartifacts", artifact)
    store.client.create_registered_model("digits")
    store.client.create_model_version("digits", f"{store.place(ours)}/model", ours)
    follow_artifacts(store.file, store.artifacts)
    assert store.place(ours).startswith(original.as_uri()), "it is where it was"

    shutil.copytree(original, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    follow_artifacts(copy.file, copy.artifacts)
    assert copy.place(ours).startswith(f"{copy.artifacts.as_uri()}/")
    assert copy.place(users) == store.place(users)
    assert copy.client.get_model_version_download_uri("digits", "1").startswith(copy.artifacts.as_uri())
    assert [one.path for one in copy.client.list_artifacts(ours)] == ["space.yaml"]
    artifact.write_text("version: 2")
    copy.client.log_artifact(ours, str(artifact))
    (kept,) = original.rglob("space.yaml")
    assert kept.read_text() == "version: 1"


def test_a_store_that_cannot_be_read_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    follow_artifacts(tmp_path / "mlflow.db", tmp_path / "mlartifacts")
    follow_artifacts(tmp_path / "none.db", tmp_path / "mlartifacts")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"no database"]


def test_a_locked_store_is_retried(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this step the search would write artifacts to where the storage was before."""
    monkeypatch.setattr("tune_rescon.tracking.worker._BUSY_SECONDS", 0.0)
    file = Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CallError, match="locked") as caught:
            follow_artifacts(file, tmp_path / "mlartifacts")
    assert caught.value.policy is RetryPolicy.RETRY
