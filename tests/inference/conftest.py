"""Images to classify, and a network that is quick to export and to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.one_module import one_module_spec
from tune_rescon.models import build_from_spec
from tune_rescon.training import load_trained
from tune_rescon.training.weights import trained_values


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine torch's threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of five images of several sizes and formats, one of them in a subfolder."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    Image.fromarray(random.integers(0, 256, (40, 16), dtype=np.uint8)).save(folder / "more" / "grey.jpg")
    return folder


@pytest.fixture(scope="session")
def one_module_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``best.ckpt`` of a network with every kind of layer and one attention module."""
    _, about = load_trained(checkpoint)
    config = dataclasses.replace(about.config, width=0.25)
    spec = one_module_spec(config, classes=3)
    torch.manual_seed(0)
    network = build_from_spec(spec)
    with torch.no_grad():
        # As for the fixture `checkpoint`: batch norm statistics of images.
        for _ in range(40):
            network((torch.rand(32, 3, 16, 16) - 0.5) / 0.3)
    path = tmp_path_factory.mktemp("one_module") / "best.ckpt"
    torch.save(trained_values(network, dataclasses.replace(about, config=config, spec=spec)), path)
    return path
