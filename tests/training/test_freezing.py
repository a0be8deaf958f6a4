"""A trunk that is frozen for some epochs: it does not change before it is unfrozen, and trains afterwards."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from tests.models.one_module import one_module_spec
from tests.training.resuming import metrics_of
from tests.training.test_graphs import CpuGraphCapture
from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training import EpochReport, fit
from tune_rescon.training.checkpoint import read_checkpoint
from tune_rescon.training.cuda_graphs import GraphCapture
from tune_rescon.training.device import DeviceConfig, Precision, seed_epoch
from tune_rescon.training.layers import Trunk, layer_names
from tune_rescon.training.module import StepExecution, TrialModule
from tune_rescon.training.optim import parameter_groups

if TYPE_CHECKING:
    from tests.training.conftest import Train

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def weights_after_each_epoch(
    train: Train, config: TrialConfig, folder: Path, epochs: int
) -> list[dict[str, Tensor]]:
    """The network's state before the first epoch and after each; asserts that the averages agree with it."""
    seed_epoch(0, 0)
    states = [build_from_spec(resolve_network(config, classes=10, in_channels=1)).state_dict()]

    def record_state(report: EpochReport) -> None:
        del report
        state = read_checkpoint(folder / "last.ckpt")["state_dict"]
        averaged, live = (
            {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            for prefix in ("averaged.network.", "network.")
        )
        if len(states) <= config.freeze_epochs:
            assert changed_names(averaged, live) <= CLASSIFIER
        states.append(live)

    train(config, folder=folder, epochs=epochs, on_epoch=record_state)
    return states


def changed_names(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_trunk_is_unchanged_while_frozen_and_trains_afterwards(
    train: Train, small_attention: TrialConfig, tmp_path: Path
) -> None:
    """Also with averaging, precise batch norm and drop path."""
    config = dataclasses.replace(small_attention, freeze_epochs=2)
    assert config.precise_bn_batches * config.ema_decay * config.drop_path > 0
    states = weights_after_each_epoch(train, config, tmp_path, 3)
    for before, after in itertools.pairwise(states[:3]):
        assert changed_names(before, after) == CLASSIFIER
    changed_after_unfreezing = changed_names(states[2], states[3])
    assert changed_after_unfreezing == states[0].keys()


def test_a_frozen_network_keeps_its_statistics_in_validation(train: Train, small: TrialConfig) -> None:
    """Its batch norm statistics are not estimated on training batches."""
    frozen = dataclasses.replace(small, freeze_epochs=1)
    with_statistics, without = (
        train(dataclasses.replace(frozen, precise_bn_batches=batches), epochs=1) for batches in (4, 0)
    )
    assert metrics_of(with_statistics[0]) == metrics_of(without[0])


def test_the_step_is_captured_again_when_the_trunk_is_unfrozen(
    train: Train, small: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(small, freeze_epochs=1)
    expected = [metrics_of(report) for report in train(config)]
    graph_capture = CpuGraphCapture()
    monkeypatch.setattr(fit, "choose_graph_capture", lambda *_, **__: graph_capture)
    assert [metrics_of(report) for report in train(config)] == expected
    assert graph_capture.captures == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # bf16 casts all weights at once
def test_a_captured_step_computes_no_gradients_of_frozen_weights(precision: Precision) -> None:
    graph_capture = CpuGraphCapture()
    captured, launched = (_two_phases(precision, kind) for kind in (graph_capture, None))
    assert graph_capture.captures == 2
    for phase, without in zip(captured, launched, strict=True):
        assert phase.keys() == without.keys()
        assert changed_names(phase, without) == set()
    frozen, trained = captured
    assert frozen.keys() == CLASSIFIER
    assert len(trained) > 100


def _two_phases(precision: Precision, graph_capture: GraphCapture | None) -> list[dict[str, Tensor]]:
    """The gradients of a step with a frozen trunk and of a step after it."""
    config = TrialConfig(layout="cifar", width=0.0625, image_size=16, batch_size=8)
    torch.manual_seed(0)
    module = TrialModule(
        build_from_spec(one_module_spec(config, classes=4)),
        config,
        StepExecution(placement=DeviceConfig(device=CPU, precision=precision), graph_capture=graph_capture),
        classes=4,
        epochs=1,
        steps_per_epoch=4,
    )
    trunk = Trunk(module.network)
    batch = (torch.randn(8, 3, 16, 16), torch.randint(4, (8,)))
    phases = []
    for frozen in (True, False):
        trunk.freeze(frozen)
        module.network.zero_grad()
        module.backward(module.training_step(batch))
        gradients = {name: weight.grad for name, weight in module.network.named_parameters()}
        phases.append({name: grad.clone() for name, grad in gradients.items() if grad is not None})
    return phases


class ExternalNetwork(nn.Module):
    """An external network with a nested classifier and a weight that is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))
        self.fixed = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.blocks = nn.Sequential(nn.Dropout(), nn.Linear(4, 5))


def test_the_trunk_of_an_external_network_is_all_but_its_last_layer() -> None:
    network = ExternalNetwork()
    trunk = Trunk(network)
    trunk.freeze(True)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {"blocks.1.weight", "blocks.1.bias"}
    modes = {name: part.training for name, part in network.named_modules()}
    assert {name for name, training in modes.items() if training} == {"", "blocks", "blocks.1"}
    trunk.freeze(False)
    assert not network.fixed.requires_grad
    assert all(part.training for part in network.modules())


def test_a_norm_that_was_frozen_before_stays_frozen() -> None:
    network = ExternalNetwork()
    network.body[1].eval()
    trunk = Trunk(network)
    trunk.freeze(True)
    trunk.freeze(False)
    assert {name for name, part in network.named_modules() if not part.training} == {"body.1"}


class Wrapper(nn.Module):
    """A user's network that wraps another one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = nn.ModuleDict({"inner": network})


def test_the_classifier_of_a_wrapper_is_that_of_the_wrapped_network() -> None:
    network = Wrapper(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)))
    config = TrialConfig(learning_rate=0.2, classifier_lr_mult=10.0, freeze_epochs=1)
    names = {id(weight): name for name, weight in network.named_parameters()}
    rates = {
        names[id(weight)]: group["lr"]
        for group in parameter_groups(network, config)
        for weight in group["params"]
    }
    classifier = {"network.inner.2.weight", "network.inner.2.bias"}
    assert {name for name, rate in rates.items() if rate == 2.0} == classifier
    Trunk(network).freeze(True)
    assert {name for name, weight in network.named_parameters() if weight.requires_grad} == classifier
    assert {name for name, part in network.named_modules() if not part.training} == {
        "network.inner.0",
        "network.inner.1",
    }


def test_a_head_on_an_already_frozen_trunk_trains_as_a_whole() -> None:
    """It is not unwrapped like a network that only wraps another one."""
    network = nn.ModuleDict(
        {"body": nn.Linear(3, 4), "head": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5))}
    )
    network["body"].requires_grad_(False)
    Trunk(network).freeze(True)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}


def test_both_heads_of_a_distilled_network_are_its_classifier() -> None:
    network = nn.ModuleDict(
        {"blocks": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 5)}
        | {"head_dist": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5))}
    )
    Trunk(network).freeze(True)
    trained = {name.partition(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {"head", "head_dist"}
    assert [network[name].training for name in ("blocks", "norm", "head", "head_dist")] == [False] * 2 + [
        True
    ] * 2


def test_all_heads_of_each_timm_network_are_its_classifier() -> None:
    """One network is built for each tuple of heads that timm declares."""
    import timm

    found: dict[tuple[str, ...], str] = {}
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        if config is not None and isinstance(config.classifier, tuple):
            found.setdefault((name[:5], *config.classifier), name)
    assert len(found) >= 12
    for (_, *heads), name in found.items():
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=7)
        Trunk(network).freeze(True)
        trained = [part for part, weight in network.named_parameters() if weight.requires_grad]
        named = {head.partition(".")[0] for head in heads}
        mixing = {part for part in ("weights", "weights_dist") if hasattr(network, part)}
        assert {part.partition(".")[0] for part in trained} == named | mixing
        assert not any(part.partition(".")[0].startswith("norm") for part in trained)
        assert list(layer_names(dict(network.named_parameters())))[-len(trained) :] == trained


class MixedHeads(nn.Module):
    """A network as timm's EfficientViM: a head for each stage, and a weight for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.weights = nn.Parameter(torch.ones(2))
        self.heads = nn.ModuleList([nn.Linear(3, 5), nn.Linear(3, 5)])


def test_the_weights_that_mix_the_heads_belong_to_the_classifier() -> None:
    network = MixedHeads()
    config = TrialConfig(learning_rate=0.2, classifier_lr_mult=10.0, layer_decay=0.5, freeze_epochs=1)
    names = {id(weight): name for name, weight in network.named_parameters()}
    rates = {
        names[id(weight)].removesuffix(".bias").removesuffix(".weight"): group["lr"]
        for group in parameter_groups(network, config)
        for weight in group["params"]
    }
    assert rates == {"weights": 2.0, "heads.0": 2.0, "heads.1": 2.0, "stages.1": 0.1, "stages.0": 0.05}
    Trunk(network).freeze(True)
    trained = {name.partition(".")[0] for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained == {"weights", "heads"}


def test_weights_without_a_list_of_heads_are_a_layer_of_the_trunk() -> None:
    names = ["weights", "stages.0.weight", "head.weight"]
    assert layer_names(names)["weights"] == "weights"
    assert [*layer_names(names)][-1] == "head.weight"


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_classifier_has_its_own_learning_rate(layer_decay: float) -> None:
    network = build_from_spec(resolve_network(TrialConfig(width=0.25), classes=4, in_channels=3))
    config = TrialConfig(learning_rate=0.2, classifier_lr_mult=10.0, layer_decay=layer_decay)
    equal_rates = dataclasses.replace(config, classifier_lr_mult=1.0)
    names = {id(weight): name for name, weight in network.named_parameters()}
    rates, usual = (
        {names[id(weight)]: group.get("lr", 0.2) for group in groups for weight in group["params"]}
        for groups in (parameter_groups(network, config), parameter_groups(network, equal_rates))
    )
    assert rates.keys() == usual.keys() == set(names.values())
    assert {name for name, rate in rates.items() if rate != usual[name]} == CLASSIFIER
    assert {rates[name] for name in CLASSIFIER} == {2.0}


def test_the_reported_rate_excludes_the_classifier_multiplier(
    train: Train, small: TrialConfig, small_attention: TrialConfig
) -> None:
    """The classifier and the later unfrozen trunk share no optimiser state."""
    equal_rates = train(small, epochs=1)
    higher_classifier_rate = train(dataclasses.replace(small, classifier_lr_mult=8.0), epochs=1)
    assert higher_classifier_rate[0].metrics["learning_rate"] == equal_rates[0].metrics["learning_rate"]
    assert higher_classifier_rate[0].metrics["train_loss"] != equal_rates[0].metrics["train_loss"]
    config = dataclasses.replace(small_attention, optimizer="muon", freeze_epochs=1)
    network = build_from_spec(resolve_network(config, classes=4, in_channels=3))
    groups = parameter_groups(network, config)
    names = {id(weight): name for name, weight in network.named_parameters()}
    first = [{names[id(weight)] for weight in group["params"]} for group in groups[:2]]
    assert set().union(*first) == CLASSIFIER
