"""The forward and backward pass at any size, initialisation, parameter names, drop path, convolutions."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from tests.models.shapes import shapes_only
from tests.models.shipped import preset_parameters
from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError
from tune_rescon.models import (
    ResidualAttentionNetwork,
    build_from_spec,
    build_network,
    resolve_network,
)
from tune_rescon.models.network import DropPath, conv
from tune_rescon.models.presets import LAYOUTS, PRESETS


def build(in_channels: int = 3, **values: Any) -> ResidualAttentionNetwork:
    torch.manual_seed(0)
    return build_from_spec(resolve_network(TrialConfig(**values), classes=5, in_channels=in_channels))


def images(side: int, width: int | None = None, *, in_channels: int = 3, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, in_channels, side, width or side, generator=generator)


@pytest.mark.torch
@pytest.mark.parametrize("preset", preset_parameters())
def test_every_preset_runs_from_16_pixels(preset: str) -> None:
    with torch.device("meta"):
        network = build_network(preset, num_classes=5)
    with shapes_only():
        assert network(torch.empty(2, 3, 16, 31, device="meta")).shape == (2, 5)


@pytest.mark.torch
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_runs_at_any_size(layout: str) -> None:
    preset = next(name for name, preset in PRESETS.items() if preset.layout == layout)
    with torch.device("meta"):
        network = build_network(preset, num_classes=5)
    with shapes_only():
        for height, width in ((16, 16), (17, 17), (33, 23), (64, 65), (130, 97)):
            assert network(torch.empty(2, 3, height, width, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(("height", "width"), [(15, 32), (32, 15), (1, 1)])
def test_images_below_16_pixels_are_refused(height: int, width: int) -> None:
    with torch.device("meta"):
        network = build()
        with pytest.raises(NetworkError, match=f"at least 16 pixels a side, but got {height}x{width}"):
            network(torch.empty(2, 3, height, width))


# One configuration for each branch of the code, narrow to be fast.
GRADIENTS: list[dict[str, Any]] = [
    {},
    {"attention": "channel"},
    {"attention": "spatial"},
    {"attention_learning": "nal"},
    {"mask": "local"},
    {"added_reference": True},
    {"attention": "spatial", "attention_learning": "nal", "mask": "local"},
    {"layout": "rescon", "depth": 92, "width": 0.125, "added_reference": True},
    {"layout": "imagenet", "width": 0.125, "image_size": 65},
    {"layout": "port448", "depth": 107, "width": 0.125, "image_size": 66},
    {"preset": "attentionnext56", "width": 0.25, "image_size": 64},
    {"preset": "cifar_attention452", "width": 0.25},
]


@pytest.mark.torch
@pytest.mark.parametrize("values", GRADIENTS, ids=lambda values: "-".join(map(str, values.values())))
def test_every_parameter_gets_a_gradient(values: dict[str, Any]) -> None:
    network = build(**values)
    logits_BK = network(images(network.spec.image_size, batch=3))
    assert torch.isfinite(logits_BK).all()
    torch.autograd.backward(nn.functional.cross_entropy(logits_BK, torch.tensor([0, 1, 2])))
    without_gradient = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any() or not torch.isfinite(parameter.grad).all()
    ]
    assert without_gradient == []


@pytest.mark.torch
@pytest.mark.parametrize("attention", ["mixed", "channel", "spatial"])
@pytest.mark.parametrize("layout", ["imagenet", "cifar", "rescon"])
def test_feature_maps_of_one_pixel_can_be_trained(layout: str, attention: str) -> None:
    depth, width = 56, 0.25
    network = build(layout=layout, depth=depth, width=width, attention=attention, image_size=17)
    logits_BK = network(images(16))
    torch.autograd.backward(logits_BK.sum())
    assert torch.isfinite(logits_BK).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.torch
@pytest.mark.parametrize("in_channels", [1, 2, 5])
def test_any_number_of_input_channels_is_accepted(in_channels: int) -> None:
    network = build(in_channels=in_channels, width=0.25)
    assert network(images(16, in_channels=in_channels)).shape == (2, 5)


@pytest.mark.torch
def test_weights_have_he_initialisation() -> None:
    network = build(layout="rescon", depth=56)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4096:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05), name
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
    assert network.classifier.bias.eq(0).all()


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = build(width=0.25).state_dict(), build(width=0.25).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_state_dict_names_are_readable() -> None:
    with torch.device("meta"):
        keys = build_network("attention92", num_classes=10).state_dict().keys()
    assert {
        "stem.conv.weight",
        "stages.0.opening.0.projection.weight",
        "stages.0.attention.0.mask.down.1.0.conv2.weight",
        "stages.0.attention.0.mask.skip.1.norm1.running_mean",
        "stages.1.attention.1.trunk.0.conv1.weight",
        "stages.2.attention.2.mask.head.conv2.weight",
        "final.2.conv3.weight",
        "norm.weight",
        "classifier.bias",
    } <= keys


def test_weights_trained_at_224_load_at_320() -> None:
    with torch.device("meta"):
        small, large = build(preset="attention56"), build(preset="attention56", image_size=320)
    assert small.state_dict().keys() == large.state_dict().keys()
    assert [v.shape for v in small.state_dict().values()] == [v.shape for v in large.state_dict().values()]


@pytest.mark.torch
def test_drop_path_changes_training_only() -> None:
    plain, dropping = build(width=0.5), build(width=0.5, drop_path=0.9)
    dropping.load_state_dict(plain.state_dict())
    images_BCHW = images(16, batch=4)
    plain.eval(), dropping.eval()
    assert torch.equal(plain(images_BCHW), dropping(images_BCHW))
    plain.train(), dropping.train()
    assert not torch.allclose(plain(images_BCHW), dropping(images_BCHW))


def test_drop_path_grows_along_the_trunk_and_excludes_the_masks() -> None:
    with torch.device("meta"):
        network = build(preset="attention56", drop_path=0.3)
    drops = {name: m.probability for name, m in network.named_modules() if isinstance(m, DropPath)}
    assert tuple(drops.values()) == network.spec.drop_path_rates
    assert not [name for name in drops if "mask" in name]
    assert len(drops) == (network.spec.depth - 2) // 3
    steps = torch.tensor(list(drops.values())).diff()
    assert torch.allclose(steps, torch.full_like(steps, 0.3 / len(drops)))
    assert max(drops.values()) == pytest.approx(0.3)


@pytest.mark.torch
def test_channels_last_is_kept_and_does_not_change_the_output() -> None:
    network = build(width=0.5).eval()
    images_BCHW = images(17)
    expected_BK = network(images_BCHW)
    network = network.to(memory_format=torch.channels_last)
    inner: list[Tensor] = []
    network.stages.register_forward_hook(lambda _, __, output: inner.append(output))
    logits_BK = network(images_BCHW.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits_BK, expected_BK, rtol=1e-4, atol=1e-5)
    assert inner[0].is_contiguous(memory_format=torch.channels_last)


def test_drop_path_matches_torchvision() -> None:
    branch = torch.randn(64, 3, 2, 2)
    drop = DropPath(0.3)
    torch.manual_seed(0)
    ours = drop(branch)
    torch.manual_seed(0)
    assert torch.equal(ours, stochastic_depth(branch, 0.3, "row"))
    assert torch.equal(drop.eval()(branch), branch)


#: Strided projections with few channels, for which oneDNN's kernel writes out of bounds. They run in a
#: subprocess, because it may crash.
STRIDED_BACKWARD = """
import torch
from tune_rescon.models.network import conv
torch.set_num_threads(1)
for channels, side, batch in (4, 48, 64), (8, 48, 64), (12, 96, 64):
    print(channels, side, batch, flush=True)
    layer = conv(channels, 2 * channels, 1, 2).to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(3):
        layer(x).square().sum().backward()
"""


@pytest.mark.torch
@pytest.mark.parametrize("channels", [4, 8, 12, 24, 32])
@pytest.mark.parametrize(("side", "stride"), [(8, 2), (9, 2), (7, 3)])
def test_a_strided_projection_matches_torch(channels: int, side: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = conv(channels, 2 * channels, 1, stride)
    theirs = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x_BCHW = torch.randn(2, channels, side, side, requires_grad=True)
    (expected,) = torch.autograd.grad(theirs(x_BCHW).square().sum(), x_BCHW)
    (found,) = torch.autograd.grad(ours(x_BCHW).square().sum(), x_BCHW)
    torch.testing.assert_close(ours(x_BCHW), theirs(x_BCHW))
    torch.testing.assert_close(found, expected)


@pytest.mark.torch
def test_a_backward_pass_does_not_crash_the_process() -> None:
    command = [sys.executable, "-c", STRIDED_BACKWARD]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, ""), f"after {process.stdout}"


@pytest.mark.torch
def test_most_projections_are_plain_conv2d() -> None:
    assert type(conv(64, 128, 1, 2)) is nn.Conv2d
    assert type(conv(8, 16)) is nn.Conv2d
