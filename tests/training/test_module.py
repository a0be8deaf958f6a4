from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.module import StepExecution, TrialModule


class _Linear(nn.Module):
    """A linear classifier of the mean colour, which can be checked by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.layer(images_BCHW.mean(dim=(2, 3)))
        return logits_BK


IMAGES_BCHW = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
LABELS_B = torch.tensor([0, 1, 2, 3, 0, 1])


def _module(class_weights: tuple[float, ...] | None = None, **fields: object) -> TrialModule:
    placement = DeviceConfig(device=torch.device("cpu"), precision="fp32")
    execution = StepExecution(placement=placement, class_weights=class_weights)
    config = TrialConfig.from_dict(fields)
    return TrialModule(_Linear(), config, execution, classes=4, epochs=2, steps_per_epoch=5)


def test_the_training_loss_is_smoothed_cross_entropy() -> None:
    module = _module(label_smoothing=0.2)
    loss = module.training_step((IMAGES_BCHW, LABELS_B))
    expected = F.cross_entropy(module.network(IMAGES_BCHW), LABELS_B, label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad


def test_soft_targets_give_the_loss_and_their_argmax_the_accuracy() -> None:
    module = _module()
    targets_BK = 0.7 * F.one_hot(LABELS_B, 4).float() + 0.3 * F.one_hot(LABELS_B.flip(0), 4).float()
    loss = module.training_step((IMAGES_BCHW, targets_BK))
    log_p_BK = module.network(IMAGES_BCHW).log_softmax(dim=1)
    torch.testing.assert_close(loss, -(targets_BK * log_p_BK).sum(dim=1).mean())
    correct = (log_p_BK.argmax(dim=1) == LABELS_B).float().mean().item()
    assert module.train_metrics.compute()["accuracy"] == pytest.approx(correct)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
def test_class_weights_apply_to_labels_and_to_soft_targets(soft: bool, smoothing: float) -> None:
    weights_K = torch.tensor([0.5, 2.0, 1.0, 4.0])
    module = _module(tuple(weights_K.tolist()), label_smoothing=smoothing)
    targets_BK = F.one_hot(LABELS_B, 4).float()
    if soft:
        targets_BK = 0.7 * targets_BK + 0.3 * F.one_hot(LABELS_B.flip(0), 4).float()
    loss = module.training_step((IMAGES_BCHW, targets_BK if soft else LABELS_B))
    log_p_BK = module.network(IMAGES_BCHW).log_softmax(dim=1)
    aims_BK = (1 - smoothing) * targets_BK + smoothing / 4
    torch.testing.assert_close(loss, -(weights_K * aims_BK * log_p_BK).sum(dim=1).mean())


def test_validation_does_not_weigh_the_classes() -> None:
    module = _module((0.5, 2.0, 1.0, 4.0))
    module.validation_step((IMAGES_BCHW, LABELS_B))
    expected = F.cross_entropy(module.network(IMAGES_BCHW), LABELS_B).item()
    assert module.val_metrics.compute()["loss"] == pytest.approx(expected)


def test_validation_is_plain_cross_entropy_of_the_averaged_network() -> None:
    module = _module(label_smoothing=0.5, ema_decay=0.9)
    averaged = module.eval_network
    assert averaged is not module.network
    with torch.no_grad():
        module.network.get_parameter("layer.weight").add_(1.0)
    module.validation_step((IMAGES_BCHW, LABELS_B))
    expected = F.cross_entropy(averaged(IMAGES_BCHW), LABELS_B).item()
    assert module.val_metrics.compute()["loss"] == pytest.approx(expected)


def test_without_an_average_the_trained_network_is_evaluated() -> None:
    module = _module()
    assert module.eval_network is module.network
    assert module.averaged is None


def test_the_optimizer_trains_the_network_and_not_its_average() -> None:
    module = _module(ema_decay=0.9)
    optimizer, scheduler = module.optimizer_and_scheduler()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in module.network.parameters()}
    assert scheduler.get_last_lr() == [0.1, 0.1]


def test_a_new_epoch_resets_the_training_metrics() -> None:
    module = _module()
    module.training_step((IMAGES_BCHW, LABELS_B))
    module.on_train_epoch_start()
    assert module.train_metrics.mean_loss != module.train_metrics.mean_loss  # nan
