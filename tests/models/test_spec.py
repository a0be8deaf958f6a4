"""A network's spec matches the layers of the network and of the authors' files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.shapes import shapes_only
from tests.models.shipped import preset_parameters
from tune_rescon.config import TrialConfig
from tune_rescon.models import Layer, build_from_spec, count_params_and_macs, iter_layers, resolve_network

KINDS = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.Linear: "linear"}

CONFIGS: list[dict[str, Any]] = [
    {"preset": "attention56", "image_size": 97},
    {"preset": "attentionnext56", "image_size": 75, "width": 0.5},
    {"preset": "port_attention_448", "image_size": 131},
    {"preset": "rescon_attention92_32", "image_size": 19},
    {"depth": 92, "image_size": 21},
    {"layout": "rescon", "depth": 56, "width": 0.3, "image_size": 45},
    {"mask": "local", "image_size": 23},
    {"mask": "local", "preset": "attentionnext56", "image_size": 33},
    {"attention": "spatial", "attention_learning": "nal", "added_reference": True, "image_size": 17},
    {"attention": "channel", "drop_path": 0.2, "width": 0.6},
]


def executed_layers(network: nn.Module, images_BCHW: Tensor) -> list[Layer]:
    """Return the layers of a network in the order of its forward pass."""
    layers: list[Layer] = []

    def add_hook(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda module, _, output: layers.append(layer(name, module, output)))

    for name, module in network.named_modules():
        if any(isinstance(module, module_type) for module_type in KINDS):
            add_hook(name, module)
    network(images_BCHW)
    return layers


def layer(name: str, module: nn.Module, output: Tensor) -> Layer:
    (kind,) = (kind for module_type, kind in KINDS.items() if isinstance(module, module_type))
    side = output.shape[-1] if output.ndim == 4 else 1
    if isinstance(module, nn.Conv2d):
        assert module.bias is None
        return Layer(
            name=name,
            kind=kind,
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            side=side,
            kernel=module.kernel_size[0],
            stride=module.stride[0],
            groups=module.groups,
        )
    if isinstance(module, nn.Linear):
        return Layer(
            name=name,
            kind=kind,
            in_channels=module.in_features,
            out_channels=module.out_features,
            side=side,
        )
    assert isinstance(module, nn.BatchNorm2d)
    channels = module.num_features
    return Layer(name=name, kind=kind, in_channels=channels, out_channels=channels, side=side)


@pytest.mark.torch
@pytest.mark.parametrize("preset", preset_parameters())
def test_the_spec_of_a_preset_lists_the_layers_that_run(preset: str) -> None:
    assert_spec_matches_network({"preset": preset})


@pytest.mark.torch
@pytest.mark.parametrize("values", CONFIGS, ids=lambda values: "-".join(map(str, values.values())))
def test_the_spec_lists_the_layers_that_run(values: dict[str, Any]) -> None:
    assert_spec_matches_network(values)


def assert_spec_matches_network(values: dict[str, Any]) -> None:
    spec = resolve_network(TrialConfig(**values), classes=7, in_channels=2)
    with torch.device("meta"):
        network = build_from_spec(spec)
    images_BCHW = torch.empty(2, 2, spec.image_size, spec.image_size, device="meta")
    with shapes_only():
        assert list(iter_layers(spec)) == executed_layers(network, images_BCHW)
    assert count_params_and_macs(spec).parameters == sum(
        parameter.numel() for parameter in network.parameters()
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.shared
@pytest.mark.parametrize("preset", ["attention56", "attention92", "attentionnext56"])
def test_every_convolution_matches_the_authors_file(preset: str, shared: Path) -> None:
    spec = resolve_network(TrialConfig(preset=preset), classes=1000, in_channels=3)
    ours = [
        (x.in_channels, x.out_channels, x.kernel, x.stride, x.groups, x.side, x.side, x.parameters, x.macs)
        for x in iter_layers(spec)
        if x.kind == "conv"
    ]
    columns = ("cin", "cout", "kernel", "stride", "group", "h_out", "w_out", "params", "macs")
    theirs = [
        tuple(int(row[column]) for column in columns)
        for row in rows(shared / "facts" / f"{preset}_convs.csv")
    ]
    assert ours == theirs


@pytest.mark.shared
@pytest.mark.parametrize("preset", ["attention56", "attention92", "attentionnext56"])
def test_every_batch_norm_matches_the_authors_file(preset: str, shared: Path) -> None:
    spec = resolve_network(TrialConfig(preset=preset), classes=1000, in_channels=3)
    ours = [layer.out_channels for layer in iter_layers(spec) if layer.kind == "norm"]
    assert ours == [int(row["channels"]) for row in rows(shared / "facts" / f"{preset}_bns.csv")]
