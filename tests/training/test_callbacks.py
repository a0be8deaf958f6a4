"""The callbacks' arithmetic, with a clock and a Trainer that are handed in."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from tune_rescon.config import TrialConfig
from tune_rescon.models import resolve_network
from tune_rescon.training import EpochReport
from tune_rescon.training.callbacks import Diverged, EpochProgress, FiniteLoss, PreciseBatchNorm, SeedEpochs
from tune_rescon.training.device import DeviceConfig, isolate_rng
from tune_rescon.training.epoch_reporter import EpochReporter
from tune_rescon.training.messages import ignore
from tune_rescon.training.module import StepExecution, TrialModule
from tune_rescon.training.trial_files import CheckpointMetadata, CheckpointWriter

CONFIG = TrialConfig(image_size=16)
LABELS_B = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def module() -> TrialModule:
    placement = DeviceConfig(device=torch.device("cpu"), precision="fp32")
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    return TrialModule(
        network, CONFIG, StepExecution(placement=placement), classes=3, epochs=1, steps_per_epoch=5
    )


def _trainer(**fields: Any) -> Any:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.3}])
    return SimpleNamespace(
        optimizers=[optimizer],
        should_stop=False,
        num_training_batches=5,
        current_epoch=0,
        max_epochs=1,
        **fields,
    )


def _loss(module: TrialModule, value: float) -> None:
    module.train_metrics.update(torch.tensor(value), torch.zeros(4, 3), LABELS_B)


def _metadata() -> CheckpointMetadata:
    spec = resolve_network(CONFIG, classes=3, in_channels=1)
    return CheckpointMetadata(config=CONFIG, spec=spec, dataset="digest", seed=0, epochs=1)


def _reporter(reports: list[EpochReport], seconds: Iterator[float]) -> EpochReporter:
    return EpochReporter(_metadata(), reports.append, ignore, writer=None, clock=lambda: next(seconds))


def test_speed_counts_training_only_and_epoch_seconds_everything(module: TrialModule) -> None:
    reports: list[EpochReport] = []
    # created, epoch start, after batch 1, after batch 2, after validation, at the report
    reporter = _reporter(reports, iter([0.0, 10.0, 11.0, 12.0, 20.0, 25.0]))
    trainer, batch = _trainer(), (torch.zeros(4, 1, 2, 2), LABELS_B)
    reporter.on_train_epoch_start(trainer, module)
    for index in range(2):
        reporter.on_train_batch_start(trainer, module, batch, index)
        _loss(module, 1.0)
        reporter.on_train_batch_end(trainer, module, None, batch, index)
    module.validation_step(batch)
    reporter.on_train_epoch_end(trainer, module)
    metrics = reports[0].metrics
    assert metrics["images_per_second"] == 8 / 2.0
    assert metrics["epoch_seconds"] == 15.0
    assert metrics["learning_rate"] == 0.3
    assert metrics["train_loss"] == 1.0
    assert reporter.metadata.history[0]["epoch_seconds"] == 10.0


def test_the_speed_of_a_resumed_epoch_counts_the_training_of_both_processes(module: TrialModule) -> None:
    reports: list[EpochReport] = []
    trainer, batch = _trainer(), (torch.zeros(4, 1, 2, 2), LABELS_B)
    # created, epoch start, after batch 1, in the checkpoint: 5 seconds after a report that was due
    preempted = _reporter(reports, iter([0.0, 10.0, 11.0, 16.0]))
    preempted.on_train_epoch_start(trainer, module)
    preempted.on_train_batch_start(trainer, module, batch, 0)
    _loss(module, 1.0)
    preempted.on_train_batch_end(trainer, module, None, batch, 0)
    checkpoint: dict[str, Any] = {}
    preempted.on_save_checkpoint(trainer, module, checkpoint)
    # created, resumed, after batch 2, after validation, at the report
    resumed = _reporter(reports, iter([99.0, 100.0, 101.0, 103.0, 104.0]))
    resumed.on_load_checkpoint(trainer, module, checkpoint)
    resumed.on_train_batch_start(trainer, module, batch, 1)
    _loss(module, 1.0)
    resumed.on_train_batch_end(trainer, module, None, batch, 1)
    module.validation_step(batch)
    resumed.on_train_epoch_end(trainer, module)
    assert reports[0].metrics["images_per_second"] == 8 / 2.0
    assert reports[0].metrics["epoch_seconds"] == 10.0


def test_waiting_for_the_files_of_the_previous_epoch_is_no_validation(module: TrialModule) -> None:
    reports: list[EpochReport] = []
    now = 0.0

    class SlowWriter:
        background, is_written = True, False
        checkpoint = best_checkpoint = None

        def save(self, *_: object, **__: object) -> None:
            """Let a thread write the files."""

        def wait(self) -> tuple[str, ...]:
            nonlocal now
            now += 30.0
            return ()

    reporter = EpochReporter(
        dataclasses.replace(_metadata(), epochs=2),
        reports.append,
        ignore,
        writer=cast("CheckpointWriter", SlowWriter()),
        utilisation=lambda: 0.5,
        clock=lambda: now,
    )
    trainer, batch = _trainer(), (torch.zeros(4, 1, 2, 2), LABELS_B)
    trainer.max_epochs = 2
    for trainer.current_epoch in range(2):
        module.on_train_epoch_start()
        reporter.on_train_epoch_start(trainer, module)
        reporter.on_train_batch_start(trainer, module, batch, 0)
        _loss(module, 1.0)
        now += 1.0
        reporter.on_train_batch_end(trainer, module, None, batch, 0)
        module.validation_step(batch)
        now += 2.0
        reporter.on_train_epoch_end(trainer, module)
    assert [report.metrics["validation_seconds"] for report in reports] == [2.0, 2.0]
    assert reports[1].metrics["checkpoint_seconds"] == 30.0
    assert reports[1].metrics["epoch_seconds"] == 33.0


def test_a_diverged_epoch_reports_nan_where_nothing_was_measured(module: TrialModule) -> None:
    reports: list[EpochReport] = []
    reporter = _reporter(reports, iter([0.0, 1.0, 2.0, 3.0]))
    reporter.on_train_epoch_start(_trainer(), module)
    _loss(module, math.inf)
    reporter.report_diverged(module)
    metrics = reports[0].metrics
    unknown = (
        *("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"),
        *("images_per_second", "learning_rate"),
    )
    assert {name for name, value in metrics.items() if math.isnan(value)} == set(unknown)


def test_each_rank_that_resumes_an_epoch_draws_numbers_of_its_own(module: TrialModule) -> None:
    trainer, checkpoint = _trainer(), dict[str, Any]()
    with isolate_rng(module.device):
        SeedEpochs(0).on_train_epoch_start(trainer, module)
        torch.rand(5)
        SeedEpochs(0).on_save_checkpoint(trainer, module, checkpoint)
        expected, drawn = torch.rand(5), []
        for rank in range(3):
            callback = SeedEpochs(0, rank)
            callback.on_load_checkpoint(trainer, module, checkpoint)
            callback.on_train_start(trainer, module)
            drawn.append(torch.rand(5))
    assert torch.equal(drawn[0], expected)
    assert not any(torch.equal(one, two) for one, two in itertools.combinations(drawn, 2))


@pytest.mark.parametrize(("batch_idx", "checked"), [(0, False), (1, True), (2, False), (3, True), (4, True)])
def test_the_loss_is_checked_every_n_batches_and_at_the_end(
    module: TrialModule, batch_idx: int, checked: bool
) -> None:
    _loss(module, math.nan)
    watch = FiniteLoss(every=2)
    if checked:
        with pytest.raises(Diverged):
            watch.on_train_batch_end(_trainer(), module, None, None, batch_idx)
    else:
        watch.on_train_batch_end(_trainer(), module, None, None, batch_idx)


def test_a_large_finite_loss_does_not_stop_training(module: TrialModule) -> None:
    _loss(module, 1e30)
    FiniteLoss(every=1).on_train_batch_end(_trainer(), module, None, None, 0)


@pytest.mark.parametrize(("batches", "used_images"), [(0, []), (2, [3, 4]), (9, [0, 1, 2, 3, 4])])
def test_the_last_batches_of_an_epoch_are_used_once(
    module: TrialModule, monkeypatch: pytest.MonkeyPatch, batches: int, used_images: list[int]
) -> None:
    images_of_calls: list[list[int]] = []
    monkeypatch.setattr(
        module,
        "reestimate_batch_norm",
        lambda last_batches: images_of_calls.append([int(images.sum()) for images in last_batches]),
    )
    precise = PreciseBatchNorm(batches)
    for index in range(5):
        batch = (torch.tensor([float(index)]), LABELS_B)
        precise.on_train_batch_end(_trainer(), module, None, batch, index)
    precise.on_validation_start(_trainer(), module)
    precise.on_validation_start(_trainer(), module)
    assert images_of_calls == [used_images, []]


def test_progress_is_reported_only_in_long_epochs(module: TrialModule) -> None:
    # The clock is read when the callback is created, when an epoch starts and after each batch.
    times = iter((0.0, 0.0, 5.0, 14.9, 15.0, 20.0, 31.0, 32.0, 40.0))
    shares: list[float] = []
    callback = EpochProgress(shares.append, clock=lambda: next(times))
    callback.on_train_epoch_start(_trainer(), module)
    for index in range(5):
        callback.on_train_batch_end(_trainer(), module, None, None, index)
    assert shares == [3 / 5, 5 / 5]
    callback.on_train_epoch_start(_trainer(), module)
    callback.on_train_batch_end(_trainer(), module, None, None, 0)
    assert len(shares) == 2, "the count restarts in each epoch"
