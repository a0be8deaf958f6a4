from __future__ import annotations

import pytest
import torch
from torch.optim import SGD, AdamW

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_network
from tune_rescon.training.optim import decay_groups, make_optimizer

CPU = torch.device("cpu")


def test_convolutions_and_the_classifier_decay_and_nothing_else() -> None:
    network = build_network("cifar_attention56", num_classes=10)
    decayed, free = decay_groups(network, 0.1)
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
    ],
)
def test_the_configuration_chooses(
    config: TrialConfig, kind: type[torch.optim.Optimizer], expected: dict[str, object]
) -> None:
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config, device=CPU)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {name: group[name] for name in expected} == expected


def test_fused_sgd_takes_the_papers_step() -> None:
    network = torch.nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    config = TrialConfig(learning_rate=0.5, momentum=0.9, nesterov=True, weight_decay=0.1)
    optimizer = make_optimizer(network, config, device=CPU)
    network.weight.grad = torch.ones_like(before)
    optimizer.step()
    gradient = 1 + 0.1 * before
    torch.testing.assert_close(network.weight.detach(), before - 0.5 * (gradient + 0.9 * gradient))
