"""ResCon's and the port's checkpoints: reference logits, wrapped state dicts, and errors."""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError
from tune_rescon.models import build_network, load_rescon, resolve_network
from tune_rescon.models.rescon import RESCON_PRESETS, rescon_names

StateDict = dict[str, Tensor]


def fixture_value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weight with which the reference logits were computed, from its key and shape."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        return generator.uniform(0.5, 1.5, shape)
    if len(shape) == 1:
        return 0.1 * generator.standard_normal(shape)
    return generator.standard_normal(shape) * math.sqrt(1 / math.prod(shape[1:]))


def reference_checkpoint(path: Path) -> StateDict:
    weights: StateDict = {}
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            shape = tuple(int(side) for side in row["shape"].split("x") if side)
            weights[row["key"]] = torch.from_numpy(fixture_value(row["key"], shape).astype("float32"))
    return weights


@pytest.mark.torch
@pytest.mark.shared
@pytest.mark.parametrize(("name", "batch", "size"), [("rescon_92_32", 2, 32), ("rescon_56_224", 1, 224)])
def test_logits_match_rescon(name: str, batch: int, size: int, shared: Path) -> None:
    network = load_rescon(reference_checkpoint(shared / "fixtures" / f"{name}_keys.csv"))
    generator = np.random.Generator(np.random.PCG64(7))
    images_BCHW = generator.standard_normal((batch, 3, size, size)).astype("float32")
    with torch.no_grad():
        logits_BK = network(torch.from_numpy(images_BCHW)).numpy()
    np.testing.assert_allclose(logits_BK, np.load(shared / "fixtures" / f"{name}_logits.npy"), rtol=1e-4)


@pytest.fixture(scope="module")
def checkpoint() -> StateDict:
    """Attention-92 for 32x32 with ResCon's names, including unused weights; 7 classes, 2 channels."""
    return rescon_checkpoint("rescon_attention92_32")


def rescon_checkpoint(preset: str) -> StateDict:
    spec = resolve_network(TrialConfig(preset=preset), classes=7, in_channels=2)
    torch.manual_seed(3)
    state = build_network(preset, num_classes=7, in_channels=2).state_dict()
    weights = {theirs: state[ours] for theirs, ours in rescon_names(spec).items()}
    dead = {key.replace("conv3", "conv4") for key in weights if key.endswith(".conv3.weight")}
    return weights | {key: torch.ones(1) for key in dead - weights.keys()}


@pytest.mark.torch
@pytest.mark.parametrize("preset", RESCON_PRESETS)
def test_the_preset_is_recognised_from_a_checkpoint(preset: str) -> None:
    weights = rescon_checkpoint(preset)
    network = load_rescon(weights)
    assert network.spec == resolve_network(TrialConfig(preset=preset), classes=7, in_channels=2)
    assert network.spec.added_reference
    assert not network.training
    state = network.state_dict()
    names = rescon_names(network.spec)
    assert names.keys() < weights.keys()
    assert sorted(names.values()) == sorted(state)
    assert all(torch.equal(state[ours], weights[theirs]) for theirs, ours in names.items())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("residual_block0.conv4.weight", "stages.0.opening.0.projection.weight"),
        ("attention_module0.softmax3_blocks.bn1.bias", "stages.0.attention.0.mask.down.2.0.norm1.bias"),
        (
            "attention_module0.softmax4_blocks.1.conv2.weight",
            "stages.0.attention.0.mask.middle.1.conv2.weight",
        ),
        ("attention_module0.softmax5_blocks.conv1.weight", "stages.0.attention.0.mask.up.2.0.conv1.weight"),
        ("attention_module0.softmax7_blocks.conv1.weight", "stages.0.attention.0.mask.up.0.0.conv1.weight"),
        ("attention_module0.softmax8_blocks.5.weight", "stages.0.attention.0.mask.head.conv2.weight"),
        ("attention_module3_3.last_blocks.bn3.weight", "stages.3.attention.2.post.0.norm3.weight"),
        ("residual_block6.conv1.weight", "final.2.conv1.weight"),
        ("mpool2.0.running_var", "norm.running_var"),
    ],
)
def test_parameter_names_of_the_ports_largest_network_are_mapped(theirs: str, ours: str) -> None:
    spec = resolve_network(TrialConfig(preset="port_attention_448"), classes=10, in_channels=3)
    assert rescon_names(spec)[theirs] == ours


WRAPPINGS: dict[str, Callable[[StateDict], dict[str, Any]]] = {
    "module": lambda weights: {f"module.{key}": value for key, value in weights.items()},
    "lightning": lambda weights: {
        "epoch": 9,
        "state_dict": {
            **{f"model.{key}": value for key, value in weights.items()},
            "criterion.weight": torch.ones(7),
        },
    },
    "no counters": lambda weights: {
        k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")
    },
    "no unused weights": lambda weights: {
        key: value
        for key, value in weights.items()
        if not (key.endswith("conv4.weight") and value.numel() == 1)
    },
}


@pytest.mark.torch
@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
def test_a_wrapped_state_dict_is_unwrapped(wrapping: str, checkpoint: StateDict) -> None:
    network = load_rescon(WRAPPINGS[wrapping](checkpoint))
    assert torch.equal(network.classifier.weight, checkpoint["fc.weight"])
    assert network.spec.layout == "rescon"


def module_with_state(weights: StateDict) -> torch.nn.Module:
    """Return a module whose state dict has these weights."""
    root = torch.nn.Module()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, tensor)
    return root


#: Files of training scripts that contain one network.
CONTAINERS: dict[str, Callable[[StateDict], Any]] = {
    "net": lambda weights: {"net": weights, "acc": 91.5, "epoch": 3},
    "model_state_dict": lambda weights: {
        "epoch": 3,
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    },
    "nested": lambda weights: {"trainer": {"model": {"module": weights}}, "loss": {"weight": torch.ones(3)}},
    "other tensors": lambda weights: {"mean": torch.ones(3), "net": weights},
    "a module": module_with_state,
    "a module inside": lambda weights: {"model": module_with_state(weights)},
}


@pytest.mark.torch
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_nested_network_is_found(container: str, checkpoint: StateDict) -> None:
    network = load_rescon(CONTAINERS[container](checkpoint))
    assert torch.equal(network.classifier.weight, checkpoint["fc.weight"])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "state_dict: must be a state dict, or hold one, but got None, without tensors."),
        ([1], "but got a list, without tensors."),
        ({"epoch": 9, "arch": "x"}, "but got a dict of epoch, arch, without tensors."),
        ({"net": None}, "but got a dict of net, without tensors."),
        ({3: torch.ones(1)}, "but got a dict of 3, without tensors."),
        ({"net": {"a.weight": torch.ones(1)}}, "net: must hold the weights of"),
        ({"net": {"a.weight": torch.ones(1)}}, "unexpected a.weight. Tensors were found in net (1)."),
        (torch.nn.Linear(2, 2), "unexpected weight, bias"),
        (torch.nn.ReLU(), "but got a ReLU, without tensors."),
        (np.ones(3), "but got a ndarray, without tensors."),
        ({"fc.weight": np.ones((2, 2))}, "but got a dict of fc.weight, without tensors."),
    ],
)
def test_a_file_without_a_network_is_reported(value: Any, message: str) -> None:
    with pytest.raises(NetworkError) as caught:
        load_rescon(value)
    assert message in str(caught.value)


@pytest.mark.torch
def test_two_networks_in_one_file_are_refused(checkpoint: StateDict) -> None:
    prefixed = {
        f"{prefix}.{key}": one for prefix in ("student", "teacher") for key, one in checkpoint.items()
    }
    for value in ({"student": checkpoint, "teacher": checkpoint}, prefixed):
        with pytest.raises(NetworkError, match="must hold one network, but got 2, in student, teacher"):
            load_rescon(value)
    broken = {key: one for key, one in checkpoint.items() if key != "fc.bias"}
    assert load_rescon({"student": broken, "teacher": checkpoint}).spec.layout == "rescon"
    with pytest.raises(NetworkError, match=r"^b: .*missing fc.bias.* found in a \(1\), b \(\d+\)"):
        load_rescon({"a": {"w": torch.ones(1)}, "b": broken})


def test_missing_and_unexpected_names_are_reported(checkpoint: StateDict) -> None:
    wrong = {**checkpoint, "fc2.weight": torch.ones(1)}
    del wrong["residual_block6.bn1.bias"]
    with pytest.raises(NetworkError) as caught:
        load_rescon(wrong)
    for part in (
        "nearest: rescon_attention92_32",
        "missing residual_block6.bn1.bias",
        "unexpected fc2.weight",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("state_dict", [{}, {"layer1.0.conv1.weight": torch.ones(1)}])
def test_another_networks_checkpoint_is_refused(state_dict: StateDict) -> None:
    with pytest.raises(NetworkError, match=r"missing conv1\.0\.weight, .* and \d+ more"):
        load_rescon(state_dict)


@pytest.mark.torch
def test_a_shape_that_differs_is_named(checkpoint: StateDict) -> None:
    flat = {**checkpoint, "conv1.0.weight": torch.ones(5)}
    with pytest.raises(NetworkError, match=r"conv1\.0\.weight: is 32x1x3x3 .* but got 5"):
        load_rescon(flat)
    older = {**checkpoint, "conv1.0.weight": torch.ones(32, 2, 5, 5)}  # the port's earlier stem
    with pytest.raises(NetworkError, match=r"conv1\.0\.weight: is 32x2x3x3 .* but got 32x2x5x5"):
        load_rescon(older)
