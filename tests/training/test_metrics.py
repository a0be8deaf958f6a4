from __future__ import annotations

import math

import pytest
import torch

from tune_rescon.training.metrics import FINAL_METRICS, EpochMetrics


def test_means_are_over_images_not_batches() -> None:
    metrics = EpochMetrics(10, top5=True)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(size, 10, generator=generator), torch.randint(10, (size,), generator=generator))
        for size in (7, 2)
    ]
    for loss, (logits_BK, labels_B) in zip((1.0, 4.0), batches, strict=True):
        metrics.update(torch.tensor(loss), logits_BK, labels_B)
    logits_BK, labels_B = (torch.cat(parts) for parts in zip(*batches, strict=True))
    top = logits_BK.topk(5).indices == labels_B[:, None]
    assert metrics.compute() == pytest.approx(
        {
            "loss": (7 * 1.0 + 2 * 4.0) / 9,
            "accuracy": top[:, 0].float().mean().item(),
            "top5": top.any(dim=1).float().mean().item(),
        }
    )


def test_metrics_are_nan_after_a_reset() -> None:
    metrics = EpochMetrics(3, top5=True)
    metrics.update(torch.tensor(1.0), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    metrics.reset()
    values = metrics.compute()
    assert set(values) == {"loss", "accuracy", "top5"}
    assert all(math.isnan(value) for value in values.values())


def test_top5_of_three_classes_is_always_a_hit() -> None:
    metrics = EpochMetrics(3, top5=True)
    metrics.update(torch.tensor(1.0), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert metrics.compute()["top5"] == 1.0


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_persists_for_the_rest_of_the_epoch(broken: float) -> None:
    metrics = EpochMetrics(3)
    for loss in (1.0, broken, 1.0, 1.0):
        metrics.update(torch.tensor(loss), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    assert not math.isfinite(metrics.mean_loss)


@pytest.mark.parametrize("extra", [(), FINAL_METRICS])
def test_nan_outputs_give_nan_metrics(extra: tuple[str, ...]) -> None:
    """The accuracy is not the share of the first class, which may be large."""
    metrics = EpochMetrics(3, top5=True, extra=extra, class_names=["a", "b", "c"])
    labels_B = torch.tensor([0, 0, 0, 1])
    for scores in (0.0, math.nan):
        logits_BK = torch.full((4, 3), scores)
        metrics.update(torch.nn.functional.cross_entropy(logits_BK, labels_B), logits_BK, labels_B)
    values = metrics.compute()
    assert {"loss", "accuracy", "top5"} <= values.keys()
    assert all(math.isnan(value) for value in values.values())
