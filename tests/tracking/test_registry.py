"""The winner as a registered model: its predictions equal the network's."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from tests.tracking.conftest import destination
from tune_rescon.errors import StorageError
from tune_rescon.tracking import Champion, SearchRunState, TrialRunState
from tune_rescon.tracking.mlflow_runs import MlflowRunSync
from tune_rescon.tracking.registry import registered_checkpoint
from tune_rescon.training.weights import Classifier, TrainedNetwork, load_trained

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def registered(checkpoint: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store to which two drivers have sent a search and its winner, each of them twice."""
    folder = tmp_path_factory.mktemp("registered")
    store = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
    finished = SearchRunState(
        id="1a",
        state="finished",
        champion=Champion(number=0, epoch=3, checkpoint=str(checkpoint)),
    )
    for _ in range(2):
        sync = MlflowRunSync(destination(store, "s", folder / "artifacts"))
        sync.connect()
        for run_state in (
            SearchRunState(id="1a"),
            TrialRunState(number=0, state="finished", started_ms=1),
            finished,
            finished,
        ):
            sync.send(run_state)
    return folder


def test_the_model_is_registered_once_and_predicts_as_the_network_does(
    checkpoint: Path, registered: Path
) -> None:
    store = f"sqlite:///{registered / 'mlflow.db'}"
    client = mlflow.MlflowClient(store, store)
    (version,) = client.search_model_versions("name = 's'")
    assert client.get_model_version_by_alias("s", "champion").version == version.version
    (child,) = [run for run in _runs(client) if "tune_rescon.trial" in run.data.tags]
    assert version.run_id == child.info.run_id

    mlflow.set_tracking_uri(store)
    model = mlflow.pyfunc.load_model("models:/s@champion")
    images_BCHW = np.random.default_rng(1).random((5, 3, 16, 16), dtype=np.float32)
    network, about = load_trained(checkpoint)
    with torch.no_grad():
        mean_C11, std_C11 = (torch.tensor(values).view(3, 1, 1) for values in (about.mean, about.std))
        expected_BK = network((torch.from_numpy(images_BCHW) - mean_C11) / std_C11).softmax(1)
    np.testing.assert_allclose(model.predict(images_BCHW), expected_BK, rtol=1e-4, atol=1e-6)
    assert model.metadata.metadata["class_names"] == ["ant", "bee", "cat"]
    assert model.metadata.metadata["preprocessing"]["mean"] == list(about.mean)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3, 16, 16)


def test_exporter_is_preloaded_before_the_search_ends(
    make_sync: Callable[[], MlflowRunSync], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, module = make_sync(), "mlflow.pytorch"
    monkeypatch.delitem(sys.modules, module, raising=False)
    sync.send(SearchRunState(id="1a"))
    assert module not in sys.modules
    sync.send(SearchRunState(id="1a", preload_exporter=True))
    assert module in sys.modules


def test_the_model_contains_no_code(registered: Path) -> None:
    (description,) = registered.rglob("MLmodel")
    files = [path for path in description.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pt2" for path in files)
    assert not [path for path in files if path.suffix in (".py", ".pkl", ".pth")]


def test_pixels_are_normalised_only_if_they_were_in_training(checkpoint: Path) -> None:
    network, about = load_trained(checkpoint)
    images_BCHW = torch.rand(2, 3, 16, 16)
    raw = TrainedNetwork.from_dict(
        {**about.to_dict(), "config": {**about.config.to_dict(), "normalize": False}}
    )
    with torch.no_grad():
        expected_BK = network(images_BCHW).softmax(1)
        torch.testing.assert_close(Classifier(network, raw)(images_BCHW), expected_BK)
        assert not torch.allclose(Classifier(network, about)(images_BCHW), expected_BK)


def test_a_failed_download_is_reported_and_errors_in_the_block_are_raised(
    store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(store, store)
    client.create_registered_model("s")
    client.create_model_version("s", tmp_path.as_uri())

    def raise_no_credentials(*_args: object, **_options: object) -> str:
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", raise_no_credentials)
    with (
        pytest.raises(StorageError, match=r"models:/s/1 \(Unable to locate credentials\)"),
        registered_checkpoint("models:/s/1", tracking_uri=store),
    ):
        pass
    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda *_args, **_options: str(tmp_path))
    with pytest.raises(OSError, match="no space"), registered_checkpoint("models:/s/1", tracking_uri=store):
        raise OSError("no space")


def _runs(client: mlflow.MlflowClient) -> list[mlflow.entities.Run]:
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))
