from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_network
from tune_rescon.training.layers import layer_names
from tune_rescon.training.optim import Lion, Muon, make_optimizer, parameter_groups

CPU = torch.device("cpu")


def test_weight_decay_applies_only_to_convolutions_and_the_classifier() -> None:
    network = build_network("cifar_attention56", num_classes=10)
    decayed, free = parameter_groups(network, TrialConfig(weight_decay=0.1))
    modules = {id(module.weight): module for module in network.modules() if hasattr(module, "weight")}
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    kinds = {type(modules[id(parameter)]).__name__ for parameter in decayed["params"]}
    assert kinds == {"Conv2d", "Linear"}
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("config", "kind", "expected"),
    [
        (TrialConfig(), SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (TrialConfig(nesterov=False), SGD, {"nesterov": False}),
        (TrialConfig(momentum=0.0), SGD, {"momentum": 0.0, "nesterov": False}),
        (TrialConfig(optimizer="adamw", momentum=0.8), AdamW, {"betas": (0.8, 0.999)}),
        (TrialConfig(optimizer="rmsprop", momentum=0.8), RMSprop, {"momentum": 0.8, "lr": 0.1}),
        (TrialConfig(optimizer="lion", momentum=0.8), Lion, {"betas": (0.8, 0.99), "lr": 0.1}),
        (TrialConfig(optimizer="muon", momentum=0.8, nesterov=False), Muon, {"nesterov": False}),
    ],
)
def test_the_config_selects_the_optimizer_and_its_settings(
    config: TrialConfig, kind: type[torch.optim.Optimizer], expected: dict[str, object]
) -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config, device=CPU)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {name: group[name] for name in expected} == expected


def test_fused_sgd_takes_a_nesterov_step_with_weight_decay() -> None:
    network = torch.nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    config = TrialConfig(learning_rate=0.5, momentum=0.9, nesterov=True, weight_decay=0.1)
    optimizer = make_optimizer(network, config, device=CPU)
    network.weight.grad = torch.ones_like(before)
    optimizer.step()
    gradient = 1 + 0.1 * before
    torch.testing.assert_close(network.weight.detach(), before - 0.5 * (gradient + 0.9 * gradient))


def _steps(optimizer: Optimizer, weights: list[Tensor], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()


def _gradients(weights: list[Tensor], steps: int = 4) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(weight.shape, generator=generator) for weight in weights] for _ in range(steps)]


def test_lion_is_algorithm_2_of_its_paper() -> None:
    weights = [nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    expected = [weight.detach().clone() for weight in weights]
    gradients = _gradients(list(weights))
    optimizer = Lion([{"params": weights, "weight_decay": 0.1}], lr=0.02, betas=(0.9, 0.99))
    _steps(optimizer, list(weights), gradients)
    for number, theta in enumerate(expected):
        m = torch.zeros_like(theta)
        for step in gradients:
            g = step[number]
            c = 0.9 * m + (1 - 0.9) * g
            theta = theta - 0.02 * (c.sign() + 0.1 * theta)
            m = 0.99 * m + (1 - 0.99) * g
        torch.testing.assert_close(weights[number].detach(), theta)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torchs_muon_on_matrices(nesterov: bool) -> None:
    shapes = [(5, 8), (8, 5), (1, 4)]
    weights, torch_weights = (
        [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0))) for shape in shapes]
        for _ in range(2)
    )
    groups = [{"params": weights, "weight_decay": 0.1, "matrix": True}]
    reference = torch.optim.Muon(
        torch_weights,
        lr=0.02,
        weight_decay=0.1,
        momentum=0.9,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
    gradients = _gradients(list(weights))
    _steps(Muon(groups, lr=0.02, betas=(0.9, 0.999), nesterov=nesterov), list(weights), gradients)
    _steps(reference, list(torch_weights), gradients)
    torch.testing.assert_close(weights, torch_weights)


def test_muon_equals_adamw_on_other_parameters() -> None:
    weights, torch_weights = ([nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(2, 3))] for _ in range(2))
    groups = [{"params": weights, "weight_decay": 0.1, "matrix": False}]
    gradients = _gradients(list(weights))
    _steps(Muon(groups, lr=0.02, betas=(0.9, 0.999)), list(weights), gradients)
    _steps(
        AdamW(torch_weights, lr=0.02, betas=(0.9, 0.999), weight_decay=0.1),
        list(torch_weights),
        gradients,
    )
    torch.testing.assert_close(weights, torch_weights)


def test_muon_takes_a_convolution_as_one_row_for_each_output_channel() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(6, 4, 3, 3)
    as_matrix, as_kernel = (
        nn.Parameter(kernel.flatten(1).clone()),
        nn.Parameter(kernel.clone(memory_format=torch.channels_last)),
    )
    gradient = torch.randn(6, 4, 3, 3)
    for weight in (as_matrix, as_kernel):
        optimizer = Muon(
            [{"params": [weight], "weight_decay": 0.0, "matrix": True}], lr=0.1, betas=(0.95, 0.999)
        )
        weight.grad = gradient.view(weight.shape).clone()
        optimizer.step()
    torch.testing.assert_close(as_kernel.detach().flatten(1), as_matrix.detach())
    assert not torch.equal(as_kernel.detach(), kernel)


def test_muon_trains_all_matrices_but_the_classifier() -> None:
    network = build_network("cifar_attention56", num_classes=10, width=0.25)
    groups = parameter_groups(network, TrialConfig(optimizer="muon"))
    names = {id(weight): name for name, weight in network.named_parameters()}
    kinds = {names[id(weight)]: group["matrix"] for group in groups for weight in group["params"]}
    assert set(kinds) == set(names.values())
    assert not kinds["classifier.weight"]
    assert all(
        kinds[name] == (weight.ndim > 1) for name, weight in network.named_parameters() if "class" not in name
    )


class _WithTokens(nn.Module):
    """A network as timm's distilled vision transformers: tokens, positions, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.bias_tables = nn.ParameterList([nn.Parameter(torch.zeros(9, 2))])
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        self.head_dist = nn.Linear(8, 3)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "bias_tables.*"}


class _WithScales(nn.Module):
    """Layers with a scale of each channel, as in ConvNeXt and NFNets, and a last one with scales of all."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.conv.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.each = nn.Conv2d(4, 4, 1, groups=4)
        self.to_one = nn.Conv2d(4, 1, 1)
        self.from_one = nn.Linear(1, 8)
        self.head = nn.Linear(8, 3)
        self.head.register_parameter("scale", nn.Parameter(torch.ones(())))
        self.head.register_parameter("temperature", nn.Parameter(torch.ones(1, 1, 1)))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_scales_do_not_decay_and_kernels_to_one_channel_do(optimizer: str) -> None:
    network = _WithScales()
    groups = parameter_groups(network, TrialConfig(optimizer=optimizer, weight_decay=0.1))
    names = {id(weight): name for name, weight in network.named_parameters()}
    decayed = {names[id(weight)] for group in groups if group["weight_decay"] for weight in group["params"]}
    kernels = {"conv.parametrizations.weight.original1", "each.weight", "to_one.weight", "from_one.weight"}
    assert decayed == {*kernels, "head.weight"}
    matrices = {names[id(weight)] for group in groups if group.get("matrix") for weight in group["params"]}
    assert matrices == (kernels if optimizer == "muon" else set())


@pytest.mark.parametrize("wrapped", [False, True])
def test_exempted_parameters_do_not_decay_and_muon_trains_no_head(wrapped: bool) -> None:
    network: nn.Module = nn.ModuleDict({"net": _WithTokens()}) if wrapped else _WithTokens()
    groups = parameter_groups(network, TrialConfig(optimizer="muon", weight_decay=0.1))
    names = {id(weight): name.removeprefix("net.") for name, weight in network.named_parameters()}
    found = {names[id(weight)]: group for group in groups for weight in group["params"]}
    assert {name for name, group in found.items() if group["weight_decay"]} == {
        "blocks.0.weight",
        "blocks.1.weight",
        "head.weight",
        "head_dist.weight",
    }
    matrices = {name for name, group in found.items() if group["matrix"]}
    assert matrices == {"blocks.0.weight", "blocks.1.weight"}


def test_muon_trains_the_hidden_layers_of_the_last_part() -> None:
    network = nn.Module()
    network.inputs = nn.BatchNorm2d(3)
    network.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    groups = parameter_groups(network, TrialConfig(optimizer="muon"))
    assert [
        (group["matrix"], tuple(weight.shape[0] for weight in group["params"]))
        for group in groups
        if group["weight_decay"]
    ] == [(False, (2,)), (True, (8, 4))]


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_a_restored_optimizer_continues_bit_for_bit(name: str) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))

    config = TrialConfig(optimizer=name, learning_rate=0.01, layer_decay=0.5)
    uninterrupted, before = network(), network()
    gradients = _gradients(list(uninterrupted.parameters()), steps=6)
    _steps(make_optimizer(uninterrupted, config, device=CPU), list(uninterrupted.parameters()), gradients)
    first = make_optimizer(before, config, device=CPU)
    _steps(first, list(before.parameters()), gradients[:3])
    after = network()
    after.load_state_dict(before.state_dict())
    restored = make_optimizer(after, config, device=CPU)
    restored.load_state_dict(first.state_dict())
    _steps(restored, list(after.parameters()), gradients[3:])
    for actual, expected in zip(after.parameters(), uninterrupted.parameters(), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "rmsprop", "muon"])
def test_each_optimizer_descends(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
    images, aims = torch.randn(32, 1, 4, 4), torch.randn(32, 1)
    config = TrialConfig(optimizer=name, learning_rate=0.01, weight_decay=0.0)
    optimizer = make_optimizer(network, config, device=CPU)

    def closure() -> float:
        optimizer.zero_grad()
        loss: Tensor = (network(images) - aims).square().mean()
        torch.autograd.backward(loss)
        return float(loss.detach())

    losses = [optimizer.step(closure) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_layer_decay_halves_the_rate_from_layer_to_layer() -> None:
    network = build_network("cifar_attention56", num_classes=10, width=0.25)
    config = TrialConfig(layer_decay=0.5, learning_rate=0.2, weight_decay=0.1)
    optimizer = make_optimizer(network, config, device=CPU)
    names = {id(weight): name for name, weight in network.named_parameters()}
    rates: dict[str, Any] = {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            rates[names[id(weight)]] = group["lr"]
            assert group["weight_decay"] == (0.1 if weight.ndim > 1 else 0.0)
    assert set(rates) == set(names.values())
    layers = layer_names(rates_in_order := list(dict(network.named_parameters())))
    order = list(dict.fromkeys(layers.values()))
    assert (order[0], order[-1]) == ("stem", "classifier")
    assert "stages.1.attention.0" in order
    assert layers["norm.weight"] == layers[rates_in_order[-5]]
    for name, rate in rates.items():
        assert rate == pytest.approx(0.2 * 0.5 ** (len(order) - 1 - order.index(layers[name])))
    # A trial reports the classifier's rate.
    scheduler = LambdaLR(optimizer, lambda step: 0.1 if step else 1.0)
    assert optimizer.param_groups[0]["lr"] == 0.2
    _steps(optimizer, [], [[]])
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(0.02 * 0.5 ** (len(order) - 1))
