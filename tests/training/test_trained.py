from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError
from tune_rescon.metric_names import METRICS
from tune_rescon.models import build_described, resolve_network
from tune_rescon.training import TrainedNetwork, load_trained
from tune_rescon.training.checkpoint import CheckpointFolder, write_durably
from tune_rescon.training.trial_files import CheckpointMetadata, find_resume_point
from tune_rescon.training.weights import trained_values

CONFIG = TrialConfig(width=0.25, image_size=16, step_fractions=(30, 70))
ABOUT = TrainedNetwork(
    spec=resolve_network(CONFIG, classes=3, in_channels=1),
    config=CONFIG,
    class_names=("cat", "dog", "ox"),
    mean=(0.5,),
    std=(0.25,),
    dataset="digest",
    seed=0,
    epoch=4,
    metrics=dict.fromkeys(METRICS, 0.5),
)


@pytest.mark.torch
def test_a_loaded_network_is_the_saved_one(tmp_path: Path) -> None:
    network = build_described(ABOUT.spec)
    images_BCHW = torch.randn(4, 1, 16, 16)
    network(images_BCHW)  # updates batch norm's statistics
    torch.save(trained_values(network, ABOUT), tmp_path / "best.ckpt")
    before = torch.get_rng_state()
    loaded, about = load_trained(tmp_path / "best.ckpt")
    assert torch.equal(torch.get_rng_state(), before)
    assert about == ABOUT
    assert not any(module.training for module in loaded.modules())
    torch.testing.assert_close(loaded(images_BCHW), network.eval()(images_BCHW), rtol=0, atol=0)


@pytest.mark.torch
def test_a_file_holds_no_password_of_initial_weights(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, init_from="https://ann:s3cret@host/a.ckpt?X-Amz-Signature=5e1f")
    about = dataclasses.replace(ABOUT, config=config)
    torch.save(trained_values(build_described(ABOUT.spec), about), tmp_path / "best.ckpt")
    data = (tmp_path / "best.ckpt").read_bytes()
    assert b"s3cret" not in data
    assert b"5e1f" not in data
    _, loaded = load_trained(tmp_path / "best.ckpt")
    assert loaded.config.init_from == "https://ann:***@host/a.ckpt?X-Amz-Signature=***"
    assert loaded.config == about.config.without_passwords()
    # The trial that wrote the file resumes beside it, and no other.
    trial = CheckpointMetadata(
        config=config, spec=ABOUT.spec, dataset=ABOUT.dataset, seed=ABOUT.seed, epochs=2
    )
    folder = CheckpointFolder(path=tmp_path)
    assert find_resume_point(trial, folder, print).best == loaded
    with pytest.raises(StorageError, match="one with another config"):
        find_resume_point(dataclasses.replace(trial, config=CONFIG), folder, print)


@pytest.mark.torch
def test_a_damaged_file_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    network = build_described(ABOUT.spec)
    torch.save(trained_values(network, ABOUT), path)
    data = bytearray(path.read_bytes())
    weights = network.state_dict()["classifier.weight"].numpy().tobytes()
    data[data.index(weights) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        load_trained(path)


def test_another_kind_of_checkpoint_is_refused_naming_best_ckpt(tmp_path: Path) -> None:
    write_durably({"epoch": 1, "state_dict": {}, "trial": {}}, tmp_path / "last.ckpt")
    with pytest.raises(StorageError, match=r"best\.ckpt is the file to use"):
        load_trained(tmp_path / "last.ckpt")


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="must be a file"):
        load_trained(str(tmp_path / "none.ckpt"))
