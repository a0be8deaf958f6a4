"""Memory that is too small for a batch: the trial continues in micro-batches, with a message."""

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

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.training import EpochReport
from tune_rescon.training.checkpoint import read_checkpoint
from tune_rescon.training.module import TrialModule, make_trainer

pytestmark = pytest.mark.torch

Run = Callable[..., list[EpochReport]]
TIMES = ("images_per_second", "epoch_seconds")
TWO = "ran out of memory at 32 images; continuing in 2 micro-batches of 16"
FOUR = "ran out of memory at 16 images; continuing in 4 micro-batches of 8"
KNOWN = "batches of 32 images are too large for the memory, as was found before; 4 micro-batches of 8"


@pytest.fixture(scope="module")
def small(small: TrialConfig) -> TrialConfig:
    """The small trial with batches of 32: no micro-batch has fewer than eight images."""
    return dataclasses.replace(small, batch_size=32)


@pytest.fixture(scope="module")
def train(train: Run, small: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("digits")
    digits = open_dataset(DatasetConfig(name="digits", limit=80), data_root=root, cache_root=root)

    def run(config: TrialConfig = small, *folder: Path, **options: Any) -> list[EpochReport]:
        return train(config, *folder, **{"dataset": digits, **options})

    return run


def values(reports: list[EpochReport]) -> list[dict[str, float]]:
    return [{k: v for k, v in report.metrics.items() if k not in TIMES} for report in reports]


@contextmanager
def memory(
    images: int,
    *,
    during: Callable[[], bool] = lambda: True,
    error: RuntimeError | None = None,
) -> Iterator[list[int]]:
    """A device on which no network takes more than ``images``; gives the sizes that were tried."""
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


def test_batches_are_halved_until_they_fit(train: Run) -> None:
    notes: list[str] = []
    with memory(8) as sizes:
        reports = train(on_message=notes.append)
    assert notes == [TWO, FOUR]
    assert [report.epoch for report in reports] == [1, 2]
    assert all(math.isfinite(value) for report in reports for value in report.metrics.values())
    assert sizes[:3] == [32, 16, 8]
    assert max(sizes[2:]) == 8


def test_activation_checkpointing_is_tried_before_micro_batches(
    train: Run, small: TrialConfig, tmp_path: Path
) -> None:
    """And is to the last bit what it would have been."""
    config = dataclasses.replace(small, checkpoint_activations="auto")
    notes: list[str] = []
    with memory(16, during=lambda: not notes):
        reports = train(config, tmp_path / "trial", overruns=tmp_path / "found", on_message=notes.append)
        assert notes == ["ran out of memory at 32 images; continuing with activation checkpointing"]
    assert values(reports) == values(train(config))
    record = read_checkpoint(tmp_path / "trial" / "last.ckpt")["trial"]
    assert (record["micro_batches"], record["recomputes"]) == (1, True)
    train(config, overruns=tmp_path / "found", on_message=notes.append, epochs=1)
    [known] = notes[1:]
    assert known.endswith("as was found before; activation checkpointing is on")


def test_a_batch_too_large_when_checkpointed_is_split(train: Run, small: TrialConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(small, checkpoint_activations="auto")
    notes: list[str] = []
    with memory(16):
        for _ in range(2):
            train(config, overruns=tmp_path / "found", on_message=notes.append, epochs=1)
    assert notes == [
        "ran out of memory at 32 images; continuing with activation checkpointing",
        TWO,
        "batches of 32 images are too large for the memory, as was found before; 2 micro-batches of 16",
    ]


def test_the_next_trial_of_the_shape_starts_with_fitting_micro_batches(train: Run, tmp_path: Path) -> None:
    notes: list[str] = []
    found = tmp_path / "node" / "out_of_memory.json"
    with memory(8) as sizes:
        train(on_message=notes.append, overruns=found, epochs=1)
        sizes.clear()
        whole = train(on_message=notes.append, overruns=found, folder=tmp_path / "trial", seed=1)
    assert notes == [TWO, FOUR, KNOWN]
    assert max(sizes) == 8
    assert read_checkpoint(tmp_path / "trial" / "last.ckpt")["trial"]["micro_batches"] == 4
    with memory(8):
        found.unlink()
        assert values(train(overruns=found, seed=1)) == values(whole)


@pytest.mark.parametrize("change", [{"image_size": 20}, {"width": 0.5}, {"batch_size": 8}])
def test_another_shape_or_a_batch_that_fits_starts_whole(
    train: Run, small: TrialConfig, tmp_path: Path, change: dict[str, Any]
) -> None:
    notes: list[str] = []
    with memory(8):
        train(overruns=tmp_path / "found", epochs=1)
    other = TrialConfig.from_dict(small.to_dict() | change)
    train(other, on_message=notes.append, overruns=tmp_path / "found", epochs=1)
    assert notes == []


def test_a_trial_started_with_whole_batches_resumes_with_them(train: Run, tmp_path: Path) -> None:
    notes: list[str] = []
    whole = train(epochs=2)
    with memory(8):
        train(overruns=tmp_path / "found", epochs=1)

    class Killed(BaseException):
        pass

    def stop(_: EpochReport) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(folder=tmp_path / "cut", epochs=2, on_epoch=stop)
    rest = train(folder=tmp_path / "cut", epochs=2, overruns=tmp_path / "found", on_message=notes.append)
    assert notes == []
    assert values(rest) == values(whole)[1:]


def test_whole_batches_are_tried_with_more_memory_than_failed_before(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    for available in (1000, 2000):
        monkeypatch.setattr("tune_rescon.training.memory.available_memory", lambda _, a=available: a)
        with memory(16 * available // 1000):
            train(on_message=notes.append, overruns=tmp_path / "found", epochs=1)
    assert notes == [TWO]


def test_the_dataset_is_moved_off_the_device_before_a_trial_fails(
    train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[torch.device] = []

    def release(device: torch.device) -> bool:
        released.append(device)
        return len(released) == 1

    monkeypatch.setattr("tune_rescon.training.fit.release", release)
    notes: list[str] = []
    with memory(7, during=lambda: not released):
        assert len(train(on_message=notes.append, epochs=1)) == 1
    last = "ran out of memory at 8 images; continuing with the dataset no longer on the device"
    assert notes == [TWO, FOUR, last]
    with memory(7), pytest.raises(torch.OutOfMemoryError, match="in 4 micro-batches"):
        train(epochs=1)
    assert released == [torch.device("cpu")] * 2


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_out_of_memory_errors_of_libraries_are_recognised(train: Run, words: str) -> None:
    notes: list[str] = []
    with memory(16, error=RuntimeError(words)):
        train(on_message=notes.append, epochs=1)
    assert notes == [TWO]


@pytest.mark.parametrize(
    ("batch_size", "notes", "tried"),
    [(32, [TWO, FOUR], "a batch of 32 images in 4 micro-batches"), (12, [], "a batch of 12 images")],
)
def test_below_the_smallest_micro_batch_the_error_is_raised(
    train: Run, small: TrialConfig, batch_size: int, notes: list[str], tried: str
) -> None:
    told: list[str] = []
    config = dataclasses.replace(small, batch_size=batch_size)
    with memory(7), pytest.raises(torch.OutOfMemoryError, match=f"too small for {tried}: CUDA out of memory"):
        train(config, on_message=told.append)
    assert told == notes


def test_another_error_is_not_treated_as_out_of_memory(train: Run) -> None:
    notes: list[str] = []
    with (
        memory(16, error=RuntimeError("illegal memory access")),
        pytest.raises(RuntimeError, match="illegal"),
    ):
        train(on_message=notes.append)
    assert notes == []


def test_out_of_memory_in_on_epoch_is_raised(train: Run) -> None:
    epochs: list[int] = []

    def fail(report: EpochReport) -> None:
        epochs.append(report.epoch)
        raise torch.OutOfMemoryError("in the callback")

    with pytest.raises(torch.OutOfMemoryError, match="in the callback"):
        train(on_epoch=fail)
    assert epochs == [1]


@pytest.mark.parametrize("kept", [True, False], ids=["folder", "no_folder"])
def test_a_retry_resumes_from_the_checkpoint_and_reports_no_epoch_twice(
    train: Run, tmp_path: Path, kept: bool
) -> None:
    reports: list[EpochReport] = []
    notes: list[str] = []
    with memory(16, during=lambda: len(reports) == 2) as sizes:
        train(folder=tmp_path if kept else None, epochs=3, on_epoch=reports.append, on_message=notes.append)
    assert [report.epoch for report in reports] == [1, 2, 3]
    assert notes == [TWO]
    failed = len(sizes) - 1 - sizes[::-1].index(32)
    per_epoch = len([size for size in sizes[:failed] if size == 32]) // 2
    trained_again = len([size for size in sizes[failed + 1 :] if size == 16]) // (2 * per_epoch)
    assert trained_again == (1 if kept else 3)


def test_only_validation_is_split_if_only_validation_does_not_fit(train: Run) -> None:
    plain = values(train())
    notes: list[str] = []
    with memory(5, during=lambda: not torch.is_grad_enabled()) as sizes:
        reports = train(on_message=notes.append)
    assert notes == []
    judged = [size for size in sizes if size != 32]
    assert judged == [10, 5, 5, 5, 5], "10 validation images, in two epochs: what fits is remembered"
    for found, expected in zip(values(reports), plain, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_validation_raises_if_a_single_image_does_not_fit(train: Run) -> None:
    with (
        memory(0, during=lambda: not torch.is_grad_enabled()) as sizes,
        pytest.raises(torch.OutOfMemoryError, match="in 4 micro-batches"),
    ):
        train()
    assert 1 in sizes


def test_batch_norm_statistics_that_do_not_fit_are_split(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    original = TrialModule.reestimate_batch_norm

    def reestimate(self: TrialModule, batches_BCHW: Any) -> None:
        handle = self.eval_network.register_forward_pre_hook(refuse)
        original(self, batches_BCHW)
        handle.remove()

    def refuse(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TrialModule, "reestimate_batch_norm", reestimate)
    assert len(train(on_message=notes.append, epochs=1)) == 1
    assert notes == [TWO]


def test_the_failed_attempt_is_freed_before_the_next(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[list[weakref.ref[Any]]] = []
    alive: list[list[str]] = []
    init = TrialModule.__init__
    configure = TrialModule.optimizer_and_scheduler

    def remember_network(self: TrialModule, network: nn.Module, *args: Any, **kwargs: Any) -> None:
        alive.append([type(ref()).__name__ for refs in attempts for ref in refs if ref() is not None])
        attempts.append([weakref.ref(network), weakref.ref(self)])
        init(self, network, *args, **kwargs)

    def remember_trainer(**options: Any) -> pl.Trainer:
        trainer = make_trainer(**options)
        attempts[-1].append(weakref.ref(trainer))
        return trainer

    def remember_optimizer(self: TrialModule) -> Any:
        optimizer, scheduler = configure(self)
        attempts[-1].append(weakref.ref(optimizer))
        return optimizer, scheduler

    monkeypatch.setattr(TrialModule, "__init__", remember_network)
    monkeypatch.setattr(TrialModule, "optimizer_and_scheduler", remember_optimizer)
    monkeypatch.setattr("tune_rescon.training.fit.make_trainer", remember_trainer)
    gc.disable()
    try:
        with memory(8):
            train(epochs=1)
    finally:
        gc.enable()
    assert [len(refs) for refs in attempts] == [4, 4, 4]
    assert alive == [[], [], []]


def test_a_trial_in_micro_batches_resumes_in_them_bit_for_bit(train: Run, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stop(report: EpochReport) -> None:
        first.append(report)
        if report.epoch == 2:
            raise Killed

    first: list[EpochReport] = []
    notes: list[str] = []
    with memory(16) as sizes:
        whole = train(folder=tmp_path / "whole", epochs=4)
        with pytest.raises(Killed):
            train(folder=tmp_path / "cut", epochs=4, on_epoch=stop)
        sizes.clear()
        rest = train(folder=tmp_path / "cut", epochs=4, on_message=notes.append)
    assert notes == []
    assert max(sizes) == 16
    assert values(first + rest) == values(whole)
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
    train: Run, small: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr("tune_rescon.training.fit.build_described", _without_batch_norm)
    changes = {"optimizer": optimizer, "learning_rate": 0.02, "cutmix": 0.5, "gradient_clip": 0.05}
    config = TrialConfig.from_dict(small.to_dict() | changes)
    notes: list[str] = []
    whole = train(config, folder=tmp_path / "whole", epochs=4)
    with memory(8):
        cut = train(config, folder=tmp_path / "cut", epochs=4, on_message=notes.append)
    assert notes == [TWO, FOUR]
    unclipped = train(dataclasses.replace(config, gradient_clip=0.0), epochs=4)
    assert values(unclipped) != values(whole)
    for mine, theirs in zip(values(cut), values(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    mine, theirs = (read_checkpoint(tmp_path / name / "last.ckpt") for name in ("cut", "whole"))
    assert mine["global_step"] == theirs["global_step"]
    torch.testing.assert_close(mine["state_dict"], theirs["state_dict"], rtol=1e-3, atol=1e-4)
