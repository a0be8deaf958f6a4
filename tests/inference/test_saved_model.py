"""TensorFlow's SavedModel: every kind of network gives PyTorch's probabilities, also on real images."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tune_rescon.config import TrialConfig
from tune_rescon.export import main as export
from tune_rescon.inference import export_model
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training import TrainedNetwork, load_trained
from tune_rescon.training.weights import Classifier

tf: Any = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: pip install 'tune_rescon[tensorflow]'"
)

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def classify(folder: Path, pixels_BCHW: torch.Tensor) -> np.ndarray[Any, Any]:
    """Classify with TensorFlow alone."""
    loaded = tf.saved_model.load(str(folder))
    pixels_BHWC = tf.constant(pixels_BCHW.permute(0, 2, 3, 1).numpy())
    answer: np.ndarray[Any, Any] = loaded.classify(pixels_BHWC)["probabilities"].numpy()
    return answer


def make_network(config: TrialConfig, template: TrainedNetwork) -> tuple[torch.nn.Module, TrainedNetwork]:
    """Return a network of ``config`` with batch statistics of random images, and its description."""
    torch.manual_seed(0)
    spec = resolve_network(config, classes=3, in_channels=3)
    network, side = build_from_spec(spec), spec.image_size
    with torch.no_grad():
        for _ in range(4):
            network((torch.rand(8, 3, side, side) - 0.5) / 0.3)
    values = {**template.to_dict(), "spec": spec.to_dict(), "config": config.to_dict()}
    return network.eval(), TrainedNetwork.from_dict(values)


@pytest.mark.parametrize(
    "config",
    [
        TrialConfig(width=0.25, image_size=20),
        TrialConfig(layout="cifar", depth=56, width=0.125, image_size=18),
        TrialConfig(width=0.25, image_size=17, attention="channel", attention_learning="nal"),
        TrialConfig(width=0.25, image_size=16, attention="spatial", mask="local", normalize=False),
        TrialConfig(preset="rescon_attention92_32", width=0.25, drop_path=0.1),
        TrialConfig(preset="attentionnext56", width=0.25, image_size=64),
    ],
    ids=["mixed", "narrow", "channel", "spatial", "rescon", "attentionnext"],
)
def test_every_network_kind_matches_pytorch(config: TrialConfig, checkpoint: Path, tmp_path: Path) -> None:
    network, about = make_network(config, load_trained(checkpoint)[1])
    assert export_model(network, about, form="tensorflow", output=tmp_path / "a") < 1e-4
    pixels_BCHW = torch.rand(3, 3, about.spec.image_size, about.spec.image_size)
    with torch.inference_mode():
        expected_BK = Classifier(network, about).eval()(pixels_BCHW).numpy()
    np.testing.assert_allclose(classify(tmp_path / "a", pixels_BCHW), expected_BK, rtol=1e-4)


def test_the_command_writes_the_model_folder_with_its_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "winner"
    for _ in range(2):
        code = export([str(checkpoint), "--format", "tensorflow", "--output", str(output)])
        captured = capsys.readouterr()
        if code:
            break
    assert "--output: must be a folder that can be made, or an empty one" in captured.err, (
        "an existing folder must not be replaced"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["winner"]
    facts = json.loads((output / "assets.extra" / "tune_rescon.json").read_text())
    assert json.loads(facts["class_names"]) == ["ant", "bee", "cat"]


@pytest.mark.shared
def test_probabilities_match_on_real_images(checkpoint: Path, tmp_path: Path, shared: Path) -> None:
    """256 images of CIFAR-10, scaled to the network's 16 pixels."""
    network, about = load_trained(checkpoint)
    with zipfile.ZipFile(shared / "data" / "cifar10-jpeg.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith((".jpg", ".jpeg"))][::200][:256]
        pictures = [Image.open(archive.open(name)).convert("RGB").resize((16, 16)) for name in names]
    pixels_BCHW = (
        torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255
    )
    assert pixels_BCHW.shape == (256, 3, 16, 16)
    export_model(network, about, form="tensorflow", output=tmp_path / "a")
    with torch.inference_mode():
        expected_BK = Classifier(network, about).eval()(pixels_BCHW).numpy()
    np.testing.assert_allclose(classify(tmp_path / "a", pixels_BCHW), expected_BK, rtol=1e-4)
