"""The networks in timm's registry: by name, with its methods and metadata, and our weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.shapes import shapes_only
from tests.models.shipped import preset_parameters
from tune_rescon.errors import ConfigError
from tune_rescon.inference import export_model
from tune_rescon.models import build_network, list_presets, resolve_network
from tune_rescon.timm_models import TimmNetwork
from tune_rescon.training.weights import TrainedNetwork

pytestmark = pytest.mark.torch

# timm's types lack the attributes of its networks.
timm: Any = importlib.import_module("timm")


def test_every_preset_is_registered() -> None:
    names = timm.list_models("tune_rescon_*")
    assert set(names) == {"tune_rescon_network", *(f"tune_rescon_{preset}" for preset in list_presets())}
    assert sorted(timm.list_models(module="timm_models")) == sorted(names)


@pytest.mark.parametrize("preset", preset_parameters())
def test_metadata_and_methods_match_the_output_shapes(preset: str) -> None:
    """On the meta device, because only shapes are needed."""
    with torch.device("meta"):
        network = timm.create_model(f"tune_rescon_{preset}", num_classes=7, in_chans=2).eval()
    about = network.default_cfg
    _, side, _ = about["input_size"]
    images_BCHW = torch.empty(2, 2, side, side, device="meta")
    with shapes_only():
        maps_BCHW = network.forward_features(images_BCHW)
        assert maps_BCHW.shape == (2, network.num_features, *about["pool_size"])
        assert network(images_BCHW).shape == network.forward_head(maps_BCHW).shape == (2, 7)
        assert network.forward_head(maps_BCHW, pre_logits=True).shape == (2, network.head_hidden_size)
    with torch.device("meta"), shapes_only():
        network.reset_classifier(5)
        assert network.forward_head(maps_BCHW).shape == (2, 5)
        network.reset_classifier(0)
        assert network.forward_head(maps_BCHW).shape == (2, network.num_features)
        network.reset_classifier(0, "")
        assert network.forward_head(maps_BCHW).shape == maps_BCHW.shape
    modules = dict(network.named_modules())
    assert modules[about["first_conv"]].in_channels == 2
    assert modules[about["classifier"]] is network.get_classifier()
    assert set(about) >= {"num_classes", "input_size", "pool_size", "interpolation", "mean", "std"}
    assert about["architecture"] == f"tune_rescon_{preset}"


def test_output_shape_follows_reset_classifier() -> None:
    """The whole network is called here; above only the head, because a deep one takes seconds."""
    with torch.device("meta"):
        network = timm.create_model("tune_rescon_cifar_attention56", num_classes=7).eval()
    images_BCHW = torch.empty(2, 3, 32, 32, device="meta")
    with torch.device("meta"), shapes_only():
        network.reset_classifier(5)
        assert network(images_BCHW).shape == (2, 5)
        network.reset_classifier(0)
        assert network(images_BCHW).shape == (2, network.num_features)
        network.reset_classifier(0, "")
        assert network(images_BCHW).shape == network.forward_features(images_BCHW).shape


def test_num_classes_defaults_to_the_metadata() -> None:
    with torch.device("meta"):
        for name, classes in (("tune_rescon_attention56", 1000), ("tune_rescon_cifar_attention56", 10)):
            network = timm.create_model(name)
            assert network.num_classes == network.default_cfg["num_classes"] == classes
        assert timm.create_model("tune_rescon_cifar_attention56", num_classes=0).num_classes == 0


def test_an_unsupported_pooling_is_refused() -> None:
    with torch.device("meta"):
        network = timm.create_model("tune_rescon_cifar_attention56")
    with pytest.raises(ConfigError, match='global_pool must be "avg", or "" with num_classes=0'):
        network.reset_classifier(3, "max")
    with pytest.raises(ConfigError, match="with num_classes=3"):
        network.reset_classifier(3, "")


def test_an_exported_file_loads_as_a_timm_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    from tune_rescon.training import load_trained

    about = load_trained(checkpoint)[1]
    our_network = build_network("cifar_attention56", num_classes=3).eval()
    config = type(about.config)(preset="cifar_attention56")
    spec = resolve_network(config, classes=3, in_channels=3)
    values = {**about.to_dict(), "spec": spec.to_dict(), "config": config.to_dict()}
    export_model(
        our_network, TrainedNetwork.from_dict(values), form="safetensors", output=tmp_path / "a.safetensors"
    )
    timm_network = timm.create_model(
        "tune_rescon_cifar_attention56", num_classes=3, checkpoint_path=str(tmp_path / "a.safetensors")
    ).eval()
    images_BCHW = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(timm_network(images_BCHW), our_network(images_BCHW), rtol=0, atol=0)


def test_drop_path_rate_and_drop_rate_are_passed_to_the_network() -> None:
    with torch.device("meta"):
        network = timm.create_model("tune_rescon_cifar_attention56", drop_path_rate=0.1, drop_rate=0.5)
    assert (network.spec.drop_path, network.drop_rate) == (0.1, 0.5)
    spec = network.spec.to_dict()
    for options, expected in (({}, 0.1), ({"drop_path_rate": 0.3}, 0.3), ({"drop_path_rate": 0.0}, 0.0)):
        with torch.device("meta"):
            exported = timm.create_model("tune_rescon_network", spec=spec, num_classes=10, **options)
        assert exported.spec.drop_path == expected
    assert TimmNetwork in type(network).__mro__
