"""Batches that do not fit into memory: the trial continues in micro-batches, with a message."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from tests.training.conftest import Train
from tests.training.resuming import metrics_of_all
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.training import EpochReport
from tune_rescon.training.checkpoint import read_checkpoint
from tune_rescon.training.module import TrialModule, make_trainer

pytestmark = pytest.mark.torch
TWO_MICRO_BATCHES = "ran out of memory at 32 images; continuing in 2 micro-batches of 16"
FOUR_MICRO_BATCHES = "ran out of memory at 16 images; continuing in 4 micro-batches of 8"
KNOWN_OOM = "batches of 32 images are too large for the memory, as was found before; 4 micro-batches of 8"


@pytest.fixture(scope="module")
def small(small: TrialConfig) -> TrialConfig:
    """The small trial with batches of 32: no micro-batch has fewer than eight images."""
    return dataclasses.replace(small, batch_size=32)


@pytest.fixture(scope="module")
def train(train: Train, small: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Train:
    root = tmp_path_factory.mktemp("digits")
    digits = open_dataset(DatasetConfig(name="digits", limit=80), data_root=root, cache_root=root)

    def run(config: TrialConfig = small, *folder: Path, **options: Any) -> list[EpochReport]:
        return train(config, *folder, **{"dataset": digits, **options})

    return run


@contextmanager
def limited_memory(
    images: int,
    *,
    during: Callable[[], bool] = lambda: True,
    error: RuntimeError | None = None,
) -> Iterator[list[int]]:
    """A device whose memory fits ``images`` images; yields the tried batch sizes."""
    sizes: list[int] = []
    original = TrialModule.logits

    def logits(self: TrialModule, network: nn.Module, images_BCHW: Tensor) -> Tensor:
        sizes.append(len(images_BCHW))
        if len(images_BCHW) > images and during():
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, network, images_BCHW)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialModule, "logits", logits)
        yield sizes


def test_batches_are_halved_until_they_fit(train: Train) -> None:
    messages: list[str] = []
    with limited_memory(8) as sizes:
        reports = train(on_message=messages.append)
    assert messages == [TWO_MICRO_BATCHES, FOUR_MICRO_BATCHES]
    assert [report.epoch for report in reports] == [1, 2]
    assert all(math.isfinite(value) for report in reports for value in report.metrics.values())
    assert sizes[:3] == [32, 16, 8]
    assert max(sizes[2:]) == 8


def test_activation_checkpointing_is_tried_before_micro_batches(
    train: Train, small_attention: TrialConfig, tmp_path: Path
) -> None:
    """The results are unchanged bit for bit."""
    config = dataclasses.replace(small_attention, batch_size=32, checkpoint_activations="auto")
    messages: list[str] = []
    with limited_memory(16, during=lambda: not messages):
        reports = train(
            config, tmp_path / "trial", oom_records=tmp_path / "found", on_message=messages.append
        )
        assert messages == ["ran out of memory at 32 images; continuing with activation checkpointing"]
    assert metrics_of_all(reports) == metrics_of_all(train(config))
    record = read_checkpoint(tmp_path / "trial" / "last.ckpt")["trial"]
    assert (record["micro_batches"], record["recomputes"]) == (1, True)
    train(config, oom_records=tmp_path / "found", on_message=messages.append, epochs=1)
    [known_note] = messages[1:]
    assert known_note.endswith("as was found before; activation checkpointing is on")


def test_a_batch_too_large_when_checkpointed_is_split(
    train: Train, small_attention: TrialConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(small_attention, batch_size=32, checkpoint_activations="auto")
    messages: list[str] = []
    with limited_memory(16):
        for _ in range(2):
            train(config, oom_records=tmp_path / "found", on_message=messages.append, epochs=1)
    assert messages == [
        "ran out of memory at 32 images; continuing with activation checkpointing",
        TWO_MICRO_BATCHES,
        "batches of 32 images are too large for the memory, as was found before; 2 micro-batches of 16",
    ]


def test_the_next_trial_of_the_shape_starts_with_fitting_micro_batches(train: Train, tmp_path: Path) -> None:
    messages: list[str] = []
    records = tmp_path / "node" / "out_of_memory.json"
    with limited_memory(8) as sizes:
        train(on_message=messages.append, oom_records=records, epochs=1)
        sizes.clear()
        expected = train(on_message=messages.append, oom_records=records, folder=tmp_path / "trial", seed=1)
    assert messages == [TWO_MICRO_BATCHES, FOUR_MICRO_BATCHES, KNOWN_OOM]
    assert max(sizes) == 8
    assert read_checkpoint(tmp_path / "trial" / "last.ckpt")["trial"]["micro_batches"] == 4
    with limited_memory(8):
        records.unlink()
        assert metrics_of_all(train(oom_records=records, seed=1)) == metrics_of_all(expected)


@pytest.mark.parametrize(
    "change", [{"image_size": 20}, {"network": None, "layout": "cifar", "width": 0.25}, {"batch_size": 8}]
)
def test_another_shape_or_a_batch_that_fits_starts_whole(
    train: Train, small: TrialConfig, tmp_path: Path, change: dict[str, Any]
) -> None:
    messages: list[str] = []
    with limited_memory(8):
        train(oom_records=tmp_path / "found", epochs=1)
    other_config = TrialConfig.from_dict(small.to_dict() | change)
    train(other_config, on_message=messages.append, oom_records=tmp_path / "found", epochs=1)
    assert messages == []


def test_a_trial_started_with_whole_batches_resumes_with_them(train: Train, tmp_path: Path) -> None:
    messages: list[str] = []
    uninterrupted = train(epochs=2)
    with limited_memory(8):
        train(oom_records=tmp_path / "found", epochs=1)

    class Killed(BaseException):
        pass

    def stop(_: EpochReport) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(folder=tmp_path / "cut", epochs=2, on_epoch=stop)
    resumed = train(
        folder=tmp_path / "cut", epochs=2, oom_records=tmp_path / "found", on_message=messages.append
    )
    assert messages == []
    assert metrics_of_all(resumed) == metrics_of_all(uninterrupted)[1:]


def test_whole_batches_are_tried_with_more_memory_than_failed_before(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    for available in (1000, 2000):
        monkeypatch.setattr("tune_rescon.training.memory.available_memory", lambda _, a=available: a)
        with limited_memory(16 * available // 1000):
            train(on_message=messages.append, oom_records=tmp_path / "found", epochs=1)
    assert messages == [TWO_MICRO_BATCHES]


def test_the_dataset_is_moved_off_the_device_before_a_trial_fails(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[torch.device] = []

    def release(device: torch.device) -> bool:
        released.append(device)
        return len(released) == 1

    monkeypatch.setattr("tune_rescon.training.fit.release", release)
    messages: list[str] = []
    with limited_memory(7, during=lambda: not released):
        assert len(train(on_message=messages.append, epochs=1)) == 1
    last = "ran out of memory at 8 images; continuing with the dataset no longer on the device"
    assert messages == [TWO_MICRO_BATCHES, FOUR_MICRO_BATCHES, last]
    with limited_memory(7), pytest.raises(torch.OutOfMemoryError, match="in 4 micro-batches"):
        train(epochs=1)
    assert released == [torch.device("cpu")] * 2


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_out_of_memory_errors_of_libraries_are_recognised(train: Train, message: str) -> None:
    messages: list[str] = []
    with limited_memory(16, error=RuntimeError(message)):
        train(on_message=messages.append, epochs=1)
    assert messages == [TWO_MICRO_BATCHES]


@pytest.mark.parametrize(
    ("batch_size", "messages", "tried"),
    [
        (32, [TWO_MICRO_BATCHES, FOUR_MICRO_BATCHES], "a batch of 32 images in 4 micro-batches"),
        (12, [], "a batch of 12 images"),
    ],
)
def test_below_the_smallest_micro_batch_the_error_is_raised(
    train: Train, small: TrialConfig, batch_size: int, messages: list[str], tried: str
) -> None:
    reported_notes: list[str] = []
    config = dataclasses.replace(small, batch_size=batch_size)
    with (
        limited_memory(7),
        pytest.raises(torch.OutOfMemoryError, match=f"too small for {tried}: CUDA out of memory"),
    ):
        train(config, on_message=reported_notes.append)
    assert reported_notes == messages


def test_another_error_is_not_treated_as_out_of_memory(train: Train) -> None:
    messages: list[str] = []
    with (
        limited_memory(16, error=RuntimeError("illegal memory access")),
        pytest.raises(RuntimeError, match="illegal"),
    ):
        train(on_message=messages.append)
    assert messages == []


def test_out_of_memory_in_on_epoch_is_raised(train: Train) -> None:
    epochs: list[int] = []

    def fail(report: EpochReport) -> None:
        epochs.append(report.epoch)
        raise torch.OutOfMemoryError("in the callback")

    with pytest.raises(torch.OutOfMemoryError, match="in the callback"):
        train(on_epoch=fail)
    assert epochs == [1]


@pytest.mark.parametrize("has_folder", [True, False], ids=["folder", "no_folder"])
def test_a_retry_resumes_from_the_checkpoint_and_reports_no_epoch_twice(
    train: Train, tmp_path: Path, has_folder: bool
) -> None:
    reports: list[EpochReport] = []
    messages: list[str] = []
    with limited_memory(16, during=lambda: len(reports) == 2) as sizes:
        train(
            folder=tmp_path if has_folder else None,
            epochs=3,
            on_epoch=reports.append,
            on_message=messages.append,
        )
    assert [report.epoch for report in reports] == [1, 2, 3]
    assert messages == [TWO_MICRO_BATCHES]
    failed = len(sizes) - 1 - sizes[::-1].index(32)
    per_epoch = len([size for size in sizes[:failed] if size == 32]) // 2
    trained_again = len([size for size in sizes[failed + 1 :] if size == 16]) // (2 * per_epoch)
    assert trained_again == (1 if has_folder else 3)


def test_only_validation_is_split_if_only_validation_does_not_fit(train: Train) -> None:
    expected_values = metrics_of_all(train())
    messages: list[str] = []
    with limited_memory(5, during=lambda: not torch.is_grad_enabled()) as sizes:
        reports = train(on_message=messages.append)
    assert messages == []
    validation_sizes = [size for size in sizes if size != 32]
    assert validation_sizes == [10, 5, 5, 5, 5], (
        "10 validation images, in two epochs: the fitting size is remembered"
    )
    for metrics, expected in zip(metrics_of_all(reports), expected_values, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-5)


def test_validation_raises_if_a_single_image_does_not_fit(train: Train) -> None:
    with (
        limited_memory(0, during=lambda: not torch.is_grad_enabled()) as sizes,
        pytest.raises(torch.OutOfMemoryError, match="in 4 micro-batches"),
    ):
        train()
    assert 1 in sizes


def test_batch_norm_statistics_that_do_not_fit_are_split(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    original = TrialModule.reestimate_batch_norm

    def reestimate(self: TrialModule, batches_BCHW: Any) -> None:
        handle = self.eval_network.register_forward_pre_hook(raise_out_of_memory)
        original(self, batches_BCHW)
        handle.remove()

    def raise_out_of_memory(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrialModule, "reestimate_batch_norm", reestimate)
    assert len(train(on_message=messages.append, epochs=1)) == 1
    assert messages == [TWO_MICRO_BATCHES]


def test_the_failed_attempt_is_freed_before_the_next(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[list[weakref.ref[Any]]] = []
    alive: list[list[str]] = []
    init = TrialModule.__init__
    configure = TrialModule.optimizer_and_scheduler

    def track_network(self: TrialModule, network: nn.Module, *args: Any, **kwargs: Any) -> None:
        alive.append([type(ref()).__name__ for refs in attempts for ref in refs if ref() is not None])
        attempts.append([weakref.ref(network), weakref.ref(self)])
        init(self, network, *args, **kwargs)

    def track_trainer(**options: Any) -> pl.Trainer:
        trainer = make_trainer(**options)
        attempts[-1].append(weakref.ref(trainer))
        return trainer

    def track_optimizer(self: TrialModule) -> Any:
        optimizer, scheduler = configure(self)
        attempts[-1].append(weakref.ref(optimizer))
        return optimizer, scheduler

    monkeypatch.setattr(TrialModule, "__init__", track_network)
    monkeypatch.setattr(TrialModule, "optimizer_and_scheduler", track_optimizer)
    monkeypatch.setattr("tune_rescon.training.fit.make_trainer", track_trainer)
    gc.disable()
    try:
        with limited_memory(8):
            train(epochs=1)
    finally:
        gc.enable()
    assert [len(refs) for refs in attempts] == [4, 4, 4]
    assert alive == [[], [], []]


def test_a_trial_in_micro_batches_resumes_in_them_bit_for_bit(train: Train, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stop(report: EpochReport) -> None:
        first.append(report)
        if report.epoch == 2:
            raise Killed

    first: list[EpochReport] = []
    messages: list[str] = []
    with limited_memory(16) as sizes:
        uninterrupted = train(folder=tmp_path / "whole", epochs=4)
        with pytest.raises(Killed):
            train(folder=tmp_path / "cut", epochs=4, on_epoch=stop)
        sizes.clear()
        resumed = train(folder=tmp_path / "cut", epochs=4, on_message=messages.append)
    assert messages == []
    assert max(sizes) == 16
    assert metrics_of_all(first + resumed) == metrics_of_all(uninterrupted)
    assert read_checkpoint(tmp_path / "cut" / "last.ckpt")["trial"]["micro_batches"] == 2


def _without_batch_norm(_: object, *, pretrained: bool) -> nn.Module:
    assert not pretrained
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_batch_norm_micro_batches_train_like_whole_batches(
    train: Train, small: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr("tune_rescon.training.fit.build_described", _without_batch_norm)
    changes = {"optimizer": optimizer, "learning_rate": 0.02, "cutmix": 0.5, "gradient_clip": 0.05}
    config = TrialConfig.from_dict(small.to_dict() | changes)
    messages: list[str] = []
    in_whole_batches = train(config, folder=tmp_path / "whole", epochs=4)
    with limited_memory(8):
        in_micro_batches = train(config, folder=tmp_path / "cut", epochs=4, on_message=messages.append)
    assert messages == [TWO_MICRO_BATCHES, FOUR_MICRO_BATCHES]
    unclipped = train(dataclasses.replace(config, gradient_clip=0.0), epochs=4)
    assert metrics_of_all(unclipped) != metrics_of_all(in_whole_batches)
    for actual, expected in zip(
        metrics_of_all(in_micro_batches), metrics_of_all(in_whole_batches), strict=True
    ):
        assert actual == pytest.approx(expected, rel=1e-3)
    actual, expected = (read_checkpoint(tmp_path / name / "last.ckpt") for name in ("cut", "whole"))
    assert actual["global_step"] == expected["global_step"]
    torch.testing.assert_close(actual["state_dict"], expected["state_dict"], rtol=1e-3, atol=1e-4)
