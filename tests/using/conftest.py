"""A small network with weights of its own, as a search leaves one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.trained import TrainedNetwork, save_trained


@pytest.fixture(scope="session")
def about() -> TrainedNetwork:
    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=16)
    return TrainedNetwork(
        spec=resolve_network(config, classes=3, in_channels=3),
        config=config,
        class_names=("ant", "bee", "cat"),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        dataset="0123",
        seed=0,
        epoch=3,
        metrics={"val_accuracy": 0.9},
    )


@pytest.fixture(scope="session")
def checkpoint(about: TrainedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("winner") / "best.ckpt"
    save_trained(build_from_spec(about.spec), about, path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five in two folders, of several sizes and kinds."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    Image.fromarray(random.integers(0, 256, (40, 16), dtype=np.uint8)).save(folder / "more" / "grey.jpg")
    return folder
