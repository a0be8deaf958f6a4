"""Activation checkpointing: the results of the plain network with less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.models.one_module import one_module_spec
from tests.training.conftest import Train
from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec
from tune_rescon.training.averaging import reestimate_batch_norm
from tune_rescon.training.memory import recompute_activations

pytestmark = pytest.mark.torch

IMAGES_BCHW = torch.randn(8, 3, 17, 17, generator=torch.Generator().manual_seed(0))

#: Both kinds of unit and both kinds of mask, with stochastic depth.
NETWORKS: list[dict[str, Any]] = [
    {"layout": "cifar", "depth": 56, "drop_path": 0.5},
    {"preset": "attentionnext56", "drop_path": 0.5},
    {"layout": "cifar", "depth": 56, "mask": "local"},
]

networks = pytest.mark.parametrize("fields", NETWORKS, ids=lambda fields: "-".join(map(str, fields.values())))


def _network(fields: dict[str, Any], *, recomputes: bool) -> nn.Module:
    torch.manual_seed(0)
    config = TrialConfig(**({"width": 0.25, "image_size": 17} | fields))
    network = build_from_spec(one_module_spec(config, classes=4))
    if recomputes:
        recompute_activations(network)
    return network


def _train_step(network: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Outputs and gradients of a training step with fixed random numbers."""
    torch.manual_seed(1)
    logits_BK = network(IMAGES_BCHW)
    return logits_BK.detach(), list(torch.autograd.grad(logits_BK.square().sum(), list(network.parameters())))


def _saved_activation_bytes(network: nn.Module) -> int:
    """Bytes that the forward pass saves for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(IMAGES_BCHW)
    return sum(t.untyped_storage().nbytes() for pointer, t in saved.items() if pointer not in weights)


@networks
def test_two_steps_match_the_plain_network_bit_for_bit(fields: dict[str, Any]) -> None:
    plain, checkpointed = (_network(fields, recomputes=recomputes) for recomputes in (False, True))
    for _ in range(2):
        torch.testing.assert_close(_train_step(checkpointed), _train_step(plain), rtol=0, atol=0)
        # Running statistics and their counters too: they must have moved once a step.
        torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    norms = [module for module in checkpointed.modules() if isinstance(module, _BatchNorm)]
    assert {int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None} == {2}
    assert {norm.momentum for norm in norms} == {0.1}


@networks
def test_checkpointing_keeps_less_than_half_of_the_activations(fields: dict[str, Any]) -> None:
    plain, checkpointed = (
        _saved_activation_bytes(_network(fields, recomputes=recomputes)) for recomputes in (False, True)
    )
    assert checkpointed < 0.5 * plain


def test_a_copy_uses_its_own_weights_and_batch_norm_statistics_match() -> None:
    network = _network(NETWORKS[0], recomputes=True)
    assert list(network.state_dict()) == list(_network(NETWORKS[0], recomputes=False).state_dict())
    average = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    logits_BK, _ = _train_step(average)
    assert not logits_BK.any(), "the copy's weights, not the network's"
    reestimate_batch_norm(network, [IMAGES_BCHW])
    plain = _network(NETWORKS[0], recomputes=False)
    reestimate_batch_norm(plain, [IMAGES_BCHW])
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_trial_reports_the_same_metrics_with_checkpointing(
    train: Train, small_attention: TrialConfig, tmp_path: Path
) -> None:
    def metrics(*, recomputes: bool) -> list[dict[str, float]]:
        config = TrialConfig.from_dict(
            small_attention.to_dict() | {"checkpoint_activations": "on" if recomputes else "off"}
        )
        reports = train(config, tmp_path / str(recomputes))
        timed = ("epoch_seconds", "images_per_second")
        return [{k: v for k, v in report.metrics.items() if k not in timed} for report in reports]

    assert metrics(recomputes=True) == metrics(recomputes=False)


def test_a_trial_with_checkpointing_is_not_compiled(train: Train, small_attention: TrialConfig) -> None:
    messages: list[str] = []
    config = TrialConfig.from_dict(
        small_attention.to_dict() | {"checkpoint_activations": "on", "compile": "on"}
    )
    train(config, on_message=messages.append, epochs=1)
    assert messages == [
        "torch.compile cannot be used here (it recomputes its activations); training continues without it"
    ]
