from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.averaging import AveragedNetwork, ema_decay_at, reestimate_batch_norm
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.module import StepExecution, TrialModule


def _norm_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )


def _batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(count)]


def test_the_average_follows_the_ema_recursion() -> None:
    trained = nn.Linear(2, 1)
    averaged = AveragedNetwork(trained, decay=0.9)
    expected = trained.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            trained.weight.add_(step + 1.0)
        averaged.update(trained, step)
        decay = ema_decay_at(step, 0.9)
        expected = decay * expected + (1 - decay) * trained.weight.detach()
    assert isinstance(averaged.network, nn.Linear)
    torch.testing.assert_close(averaged.network.weight, expected)


def test_statistics_are_averaged_and_counters_copied() -> None:
    trained = nn.BatchNorm1d(2)
    averaged = AveragedNetwork(trained, decay=0.5)
    trained(torch.randn(4, 2))
    averaged.update(trained, step=100)
    assert isinstance(averaged.network, nn.BatchNorm1d)
    torch.testing.assert_close(
        averaged.network.get_buffer("running_var"), (1 + trained.get_buffer("running_var")) / 2
    )
    assert averaged.network.num_batches_tracked == trained.num_batches_tracked == 1


def test_a_mask_of_infinities_is_copied() -> None:
    trained = nn.Linear(2, 1)
    trained.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    averaged = AveragedNetwork(trained, decay=0.9)
    averaged.update(trained, step=0)
    assert averaged.network.get_buffer("mask").tolist() == [0.0, -torch.inf]


def test_the_average_shares_no_memory_and_takes_no_gradient() -> None:
    trained = nn.Linear(2, 1)
    averaged = AveragedNetwork(trained, decay=0.9)
    assert not any(parameter.requires_grad for parameter in averaged.parameters())
    assert averaged.network.get_parameter("weight").data_ptr() != trained.weight.data_ptr()


def test_reestimated_statistics_equal_those_of_torchs_update_bn() -> None:
    actual, torchs = _norm_net(), _norm_net()
    torchs.load_state_dict(actual.state_dict())
    update_bn(_batches(5), torchs)
    reestimate_batch_norm(actual, _batches(5))
    torch.testing.assert_close(dict(actual.state_dict()), dict(torchs.state_dict()))
    assert [module.momentum for module in actual.modules() if isinstance(module, nn.BatchNorm2d)] == [
        0.1,
        0.1,
    ]
    assert not any(module.training for module in actual.modules())


def test_reestimating_without_batches_changes_nothing() -> None:
    network = _norm_net()
    network(_batches(1)[0])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reestimate_batch_norm(network, [])
    torch.testing.assert_close(dict(network.state_dict()), before)


def test_frozen_norms_keep_the_statistics_with_which_training_normalises() -> None:
    network = _norm_net()
    network[1].eval()
    execution = StepExecution(placement=DeviceConfig(device=torch.device("cpu"), precision="fp32"))
    module = TrialModule(network, TrialConfig(), execution, classes=2, epochs=1, steps_per_epoch=1)
    module.eval()  # as Lightning does before a validation
    module.reestimate_batch_norm(_batches(2))
    assert network[1].get_buffer("running_mean").tolist() == [0.0] * 4
    assert network[4].get_buffer("running_mean").tolist() != [0.0] * 2


def test_a_failing_batch_restores_the_momentum() -> None:
    network = _norm_net()
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(network, [torch.zeros(2, 99, 8, 8)])
    assert network[1].momentum == 0.1
    assert not network[1].training


@pytest.mark.torch
def test_reestimating_with_drop_path_draws_no_random_number() -> None:
    config = TrialConfig(width=0.25, image_size=16, drop_path=0.5)
    network = build_from_spec(resolve_network(config, classes=3, in_channels=3))
    before = torch.get_rng_state()
    reestimate_batch_norm(network, [torch.ones(2, 3, 16, 16)])
    assert torch.equal(torch.get_rng_state(), before)
