"""timm's tools on these networks: features, checkpointing, groups of parameters, tracing."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.one_module import one_module_spec
from tests.models.shapes import shapes_only
from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, NetworkError

# timm's types lack the attributes of its networks.
timm: Any = importlib.import_module("timm")
optim: Any = importlib.import_module("timm.optim")
# Registers the networks in timm.
importlib.import_module("tune_rescon.timm_models")

pytestmark = pytest.mark.torch

#: With and without a norm and a pooling in the stem, and final units.
NAMES = ("tune_rescon_cifar_attention56", "tune_rescon_attention56")
CHANNELS = ([16, 64, 128, 256], [64, 256, 512, 1024, 2048])
REDUCTIONS = ([1, 1, 2, 4], [2, 4, 8, 16, 32])
MODULES = (
    ["stem.conv", "stages.0", "stages.1", "stages.2"],
    ["stem.relu", "stages.0", "stages.1", "stages.2", "final.2"],
)
IMAGES_BCHW = torch.rand(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))

names = pytest.mark.parametrize("name", NAMES)


def create(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "channels", "reductions", "modules"),
    list(zip(NAMES, CHANNELS, REDUCTIONS, MODULES, strict=True)),
    ids=NAMES,
)
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "fx", "getter"])
def test_feature_info_matches_the_feature_maps(
    name: str, channels: list[int], reductions: list[int], modules: list[str], kind: str
) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True, feature_cls=kind).eval()
    with shapes_only():
        features = network(torch.empty(2, 3, 65, 65, device="meta"))
    about = network.feature_info
    assert (about.channels(), about.reduction(), about.module_name()) == (channels, reductions, modules)
    shapes = [
        tuple(feature_map.shape[1:3])
        for feature_map in (features.values() if isinstance(features, dict) else features)
    ]
    assert shapes == [(c, -(-65 // r)) for c, r in zip(channels, reductions, strict=True)]


@pytest.mark.parametrize("kind", ["list", "hook", "fx", "getter"])
def test_features_match_forward_intermediates(kind: str) -> None:
    features = create(NAMES[0], features_only=True, feature_cls=kind).eval()
    network = create(NAMES[0]).eval()
    with torch.no_grad():
        expected = network.forward_intermediates(IMAGES_BCHW, intermediates_only=True)
        torch.testing.assert_close(features(IMAGES_BCHW), expected, rtol=0, atol=0)


@names
def test_out_indices_select_the_features(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True, out_indices=(1, -2)).eval()
    with shapes_only():
        shapes = [feature_map.shape[1] for feature_map in network(torch.empty(2, 3, 33, 33, device="meta"))]
    assert shapes == network.feature_info.channels() == [network.feature_info[1]["num_chs"], shapes[1]]


@names
def test_forward_intermediates_follows_timms_conventions(name: str) -> None:
    network = create(name).eval()
    with torch.no_grad():
        last, intermediates = network.forward_intermediates(IMAGES_BCHW)
        assert torch.equal(last, network.forward_features(IMAGES_BCHW))
        (normalised,) = network.forward_intermediates(IMAGES_BCHW, [-1], norm=True, intermediates_only=True)
        assert torch.equal(normalised, last)
        early, two = network.forward_intermediates(IMAGES_BCHW, [0, 1], stop_early=True)
    torch.testing.assert_close([early, *two], [intermediates[1], *intermediates[:2]], rtol=0, atol=0)
    for invalid in (0, 9, [7], [-7], []):
        with pytest.raises(ConfigError, match="indices: must be a number from 1 to"):
            network.forward_intermediates(IMAGES_BCHW, invalid)
    with pytest.raises(ConfigError, match="output_fmt must be \"NCHW\", but got 'NLC'"):
        network.forward_intermediates(IMAGES_BCHW, output_fmt="NLC")
    with pytest.raises(NetworkError, match="at least 16 pixels"):
        network.forward_intermediates(IMAGES_BCHW[..., :9])


def test_a_pruned_network_ends_at_the_requested_layer() -> None:
    network = create(NAMES[0]).eval()
    with torch.no_grad():
        intermediates = network.forward_intermediates(IMAGES_BCHW, intermediates_only=True)
        for index, expected in enumerate(intermediates):
            pruned = copy.deepcopy(network)
            assert pruned.prune_intermediate_layers([index], prune_norm=True) == [index]
            assert torch.equal(pruned(IMAGES_BCHW), expected)
            assert pruned.num_features == expected.shape[1]
            (selected,) = pruned.forward_intermediates(IMAGES_BCHW, [index], intermediates_only=True)
            assert torch.equal(selected, expected)
        with_head = copy.deepcopy(network)
        assert with_head.prune_intermediate_layers(1, prune_head=False) == [len(intermediates) - 1]
        assert torch.equal(with_head(IMAGES_BCHW), network(IMAGES_BCHW))


def test_pruning_removes_every_layer_after_the_stem() -> None:
    with torch.device("meta"):
        network = timm.create_model(NAMES[1]).eval()
    network.prune_intermediate_layers([0])
    with shapes_only():
        assert network(torch.empty(2, 3, 33, 33, device="meta")).shape == (2, 64, 17, 17)
    assert {name.partition(".")[0] for name, _ in network.named_parameters()} == {"stem"}


def _saved_bytes_and_gradients(network: Any) -> tuple[int, list[Tensor]]:
    """Return the bytes saved for the backward pass, weights included, and the gradients."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(IMAGES_BCHW).square().sum()
    return sum(saved.values()), list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("training", [True, False])
def test_gradient_checkpointing_saves_memory_and_changes_no_result(training: bool) -> None:
    plain = create(NAMES[0], drop_path_rate=0.3).train(training)
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing(True)
    (all_bytes, expected), (our_bytes, gradients) = (
        _saved_bytes_and_gradients(plain),
        _saved_bytes_and_gradients(checkpointed),
    )
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert our_bytes < 0.6 * all_bytes
    checkpointed.set_grad_checkpointing(False)
    assert _saved_bytes_and_gradients(checkpointed)[0] == all_bytes


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
def test_scripted_and_traced_networks_match_the_original() -> None:
    spec = one_module_spec(TrialConfig(layout="cifar"), classes=3).to_dict()
    network = create("tune_rescon_network", spec=spec, num_classes=3).eval()
    features = create("tune_rescon_network", spec=spec, features_only=True).eval()
    with torch.no_grad():
        expected = network(IMAGES_BCHW)
        torch.testing.assert_close(torch.fx.symbolic_trace(network)(IMAGES_BCHW), expected)
        network.set_grad_checkpointing()
        torch.testing.assert_close(torch.jit.script(network)(IMAGES_BCHW), expected)
        torch.testing.assert_close(torch.jit.script(features)(IMAGES_BCHW), features(IMAGES_BCHW))


@names
def test_layer_decay_groups_follow_the_order_of_layers(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    fine, coarse = (
        timm.models.group_parameters(network, network.group_matcher(coarse=coarse), reverse=True)
        for coarse in (False, True)
    )
    for layers in (fine, coarse):
        order = [layers[name] for name, _ in network.named_parameters()]
        assert order == sorted(order)
        assert layers["norm.weight"] < layers["classifier.weight"]
        assert layers["stem.conv.weight"] == 0
    assert fine["stages.1.opening.0.conv1.weight"] < fine["stages.1.attention.0.pre.0.conv1.weight"]
    assert coarse["stages.1.opening.0.conv1.weight"] == coarse["stages.1.attention.0.pre.0.conv1.weight"]
    groups = optim.create_optimizer_v2(network, "adamw", layer_decay=0.5).param_groups
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == [0.5**power for power in reversed(range(max(fine.values()) + 1))]


def test_img_size_sets_the_image_size() -> None:
    with torch.device("meta"):
        assert create(NAMES[0], img_size=64).spec.image_size == 64
        network = create(NAMES[0], img_size=(48, 64), num_classes=2)
        assert network.state_dict().keys() == create(NAMES[0]).state_dict().keys()
    with shapes_only():
        assert network(torch.empty(2, 3, 48, 64, device="meta")).shape == (2, 2)
    with pytest.raises(ConfigError, match="image_size: must be in"):
        timm.create_model(NAMES[0], img_size=8)
    assert network.get_classifier(name_only=True) == "classifier"
