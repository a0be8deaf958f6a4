"""Micro-batches: how a batch is split, and that a step in micro-batches equals the whole step."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.microbatches import SMALLEST_MICRO_BATCH, next_micro_batches, split_batch
from tune_rescon.training.module import StepExecution, TrialModule

CLASSES = 4
IMAGES_BCHW = torch.randn(13, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS_B = torch.arange(13) % CLASSES
SOFT_BK = 0.7 * F.one_hot(LABELS_B, CLASSES).float() + 0.3 * F.one_hot(LABELS_B.flip(0), CLASSES).float()


@given(images=st.integers(1, 300), count=st.integers(1, 64))
def test_micro_batches_are_even_non_empty_and_cover_the_batch(images: int, count: int) -> None:
    batch_BCHW, labels_B = torch.arange(images * 3.0).view(images, 3, 1, 1), torch.arange(images)
    pieces = split_batch(batch_BCHW, labels_B, count)
    sizes = [len(piece.images_BCHW) for piece in pieces]
    assert len(sizes) == min(count, images)
    assert max(sizes) - min(sizes) <= 1
    assert [piece.share for piece in pieces] == [size / images for size in sizes]
    assert torch.equal(torch.cat([piece.images_BCHW for piece in pieces]), batch_BCHW)
    assert torch.equal(torch.cat([piece.targets for piece in pieces]), labels_B)


def test_micro_batches_are_views_in_the_batchs_memory_format() -> None:
    batch_BCHW = IMAGES_BCHW.to(memory_format=torch.channels_last)
    for piece in split_batch(batch_BCHW, LABELS_B, 4):
        assert piece.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert piece.images_BCHW.untyped_storage().data_ptr() == batch_BCHW.untyped_storage().data_ptr()


@given(images=st.integers(1, 5000))
def test_halving_ends_before_a_micro_batch_is_too_small(images: int) -> None:
    count: int | None = 1
    counts_tried = []
    while count is not None:
        counts_tried.append(count)
        count = next_micro_batches(count, images=images)
    assert counts_tried == [2**power for power in range(len(counts_tried))]
    assert all(images // count >= SMALLEST_MICRO_BATCH for count in counts_tried[1:])
    assert images // (2 * counts_tried[-1]) < SMALLEST_MICRO_BATCH


def _module(
    network: nn.Module, *, micro_batches: int, weights: tuple[float, ...] | None = None, **fields: object
) -> TrialModule:
    return TrialModule(
        network,
        TrialConfig.from_dict(fields),
        StepExecution(
            placement=DeviceConfig(device=torch.device("cpu"), precision="fp32"),
            micro_batches=micro_batches,
            class_weights=weights,
        ),
        classes=CLASSES,
        epochs=1,
        steps_per_epoch=1,
    )


def _network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )


def _step(module: TrialModule, targets: Tensor) -> list[Tensor]:
    module.backward(module.training_step((IMAGES_BCHW, targets)))
    gradients = [parameter.grad for parameter in module.network.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("micro_batches", [2, 4, 5])
@pytest.mark.parametrize("targets", [LABELS_B, SOFT_BK], ids=["labels", "soft"])
@pytest.mark.parametrize("weights", [None, (0.1, 3.0, 0.5, 9.0)], ids=["alike", "weighted"])
def test_without_batch_norm_micro_batches_match_the_whole_batch(
    micro_batches: int, targets: Tensor, weights: tuple[float, ...] | None
) -> None:
    options: dict[str, Any] = {"weights": weights, "label_smoothing": 0.2}
    whole_batch = _module(_network(nn.GroupNorm(2, 8)), micro_batches=1, **options)
    in_micro_batches = _module(_network(nn.GroupNorm(2, 8)), micro_batches=micro_batches, **options)
    torch.testing.assert_close(_step(in_micro_batches, targets), _step(whole_batch, targets))
    assert in_micro_batches.train_metrics.compute() == pytest.approx(whole_batch.train_metrics.compute())


def test_a_step_of_one_micro_batch_equals_the_plain_step_bit_for_bit() -> None:
    module, plain = _module(_network(nn.BatchNorm2d(8)), micro_batches=1), _network(nn.BatchNorm2d(8))
    gradients = _step(module, LABELS_B)
    loss = F.cross_entropy(plain.to(memory_format=torch.channels_last)(IMAGES_BCHW), LABELS_B)
    for actual, expected in zip(gradients, torch.autograd.grad(loss, list(plain.parameters())), strict=True):
        assert torch.equal(actual, expected)


def test_batch_norm_uses_the_statistics_of_each_micro_batch() -> None:
    norm = nn.BatchNorm2d(3, momentum=None)  # the plain average
    module = _module(nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * 36, CLASSES)), micro_batches=2)
    _step(module, LABELS_B)
    means = [piece_BCHW.mean(dim=(0, 2, 3)) for piece_BCHW in (IMAGES_BCHW[:7], IMAGES_BCHW[7:])]
    torch.testing.assert_close(norm.get_buffer("running_mean"), torch.stack(means).mean(0))
    assert norm.num_batches_tracked == 2


@dataclass(eq=False)
class _Saved:
    """An activation that is saved for the backward pass."""

    tensor: Tensor


def _most_saved(micro_batches: int) -> int:
    module = _module(_network(nn.GroupNorm(2, 8)), micro_batches=micro_batches)
    living: weakref.WeakSet[_Saved] = weakref.WeakSet()
    counts = []

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        living.add(saved)
        counts.append(len(living))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        _step(module, LABELS_B)
    return max(counts)


def test_activations_of_only_one_micro_batch_are_kept_at_a_time() -> None:
    assert _most_saved(4) == _most_saved(1) > 0


def test_validation_and_batch_norm_statistics_use_micro_batches() -> None:
    sizes: list[int] = []
    network = _network(nn.BatchNorm2d(8))
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    module = _module(network, micro_batches=4)
    module.eval()
    with torch.no_grad():
        module.validation_step((IMAGES_BCHW, LABELS_B))
        module.validation_step((IMAGES_BCHW[:3], LABELS_B[:3]))  # an epoch's last batch may be short
    assert sizes == [4, 3, 3, 3, 1, 1, 1]
    labels_B = torch.cat((LABELS_B, LABELS_B[:3]))
    loss = F.cross_entropy(network(torch.cat((IMAGES_BCHW, IMAGES_BCHW[:3]))), labels_B)
    assert module.val_metrics.compute()["loss"] == pytest.approx(loss.item())
    sizes.clear()
    module.reestimate_batch_norm([IMAGES_BCHW])
    assert sizes == [4, 3, 3, 3]
