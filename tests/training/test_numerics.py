"""A training step equals that of plain torch: fp32, NCHW, eager, torch's SGD.

Batch norm over few values makes these networks multiply a rounding error by a hundred thousand within a few
steps. So a single step is compared in fp32, and several steps in fp64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from tests.models.one_module import one_module_spec
from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec
from tune_rescon.training.device import resolve_device
from tune_rescon.training.module import StepExecution, TrialModule
from tune_rescon.training.optim import parameter_groups

pytestmark = pytest.mark.torch

STEPS = 5
IMAGES_BCHW = torch.randn(16, 3, 17, 17, generator=torch.Generator().manual_seed(0))
LABELS_B = torch.arange(16) % 4

#: Both kinds of unit; every kind of attention, mask and attention learning.
NETWORKS: list[dict[str, Any]] = [
    {"layout": "cifar", "depth": 56},
    {"layout": "rescon", "depth": 92, "added_reference": True},
    {"preset": "attentionnext56"},
    {"layout": "cifar", "depth": 56, "attention": "spatial", "attention_learning": "nal"},
    {"layout": "cifar", "depth": 56, "attention": "channel", "mask": "local"},
]

networks = pytest.mark.parametrize("fields", NETWORKS, ids=lambda fields: "-".join(map(str, fields.values())))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def _config(fields: dict[str, Any]) -> TrialConfig:
    defaults: dict[str, Any] = {
        "width": 0.25,
        "image_size": 17,
        "learning_rate": 0.001,
        "schedule": "constant",
    }
    return TrialConfig(**(defaults | fields))


def _network(config: TrialConfig, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return build_from_spec(one_module_spec(config, classes=4)).to(dtype)


def _train_plainly(network: nn.Module, config: TrialConfig, steps: int) -> Tensor:
    groups = parameter_groups(network, config)
    optimizer = SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=True, foreach=False)
    images_BCHW = IMAGES_BCHW.to(next(network.parameters()).dtype)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        # TrialModule computes the loss of fp32 scores too.
        loss = F.cross_entropy(network(images_BCHW).float(), LABELS_B)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def _train(network: nn.Module, config: TrialConfig, steps: int) -> Tensor:
    placement = resolve_device("cpu", precision="auto")
    images_BCHW = IMAGES_BCHW.to(next(network.parameters()).dtype)
    module = TrialModule(
        network, config, StepExecution(placement=placement), classes=4, epochs=1, steps_per_epoch=steps
    )
    optimizer, scheduler = module.optimizer_and_scheduler()
    losses = []
    with placement.active():
        for _ in range(steps):
            optimizer.zero_grad()
            loss = module.training_step((images_BCHW, LABELS_B))
            module.backward(loss)
            optimizer.step()
            scheduler.step()
            losses.append(loss.detach())
    return torch.stack(losses)


def _gradient(network: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in network.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


@networks
def test_a_step_in_fp32_matches_plain_torch(fields: dict[str, Any]) -> None:
    config = _config(fields)
    plain, trained = (_network(config, torch.float32) for _ in range(2))
    expected = _train_plainly(plain, config, 1)
    torch.testing.assert_close(_train(trained, config, 1), expected, rtol=1e-4, atol=1e-4)
    difference = _gradient(trained) - _gradient(plain)
    # Measured: 0.05. An activation close to 0 passes its gradient in only one of the two networks.
    assert difference.norm() < 0.15 * _gradient(plain).norm()


@networks
def test_a_training_in_fp64_matches_plain_torch(fields: dict[str, Any]) -> None:
    config = _config(fields)
    plain, trained = (_network(config, torch.float64) for _ in range(2))
    expected = _train_plainly(plain, config, STEPS)
    torch.testing.assert_close(_train(trained, config, STEPS), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trained.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    assert expected.diff().abs().min() > 1e-4, "each step must have changed something"
