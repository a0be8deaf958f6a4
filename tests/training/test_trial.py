from __future__ import annotations

import dataclasses
import gc
import logging
import math
import signal
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.conftest import PLAIN_CONFIG, Train
from tests.training.resuming import metrics_of_all
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset, batch_sources
from tune_rescon.errors import ConfigError, NetworkError, ResourceError, StorageError
from tune_rescon.metric_names import METRICS
from tune_rescon.training import EpochReport, TrialProcess, epochs_in_checkpoint, load_trained, train_trial
from tune_rescon.training.checkpoint import write_durably
from tune_rescon.training.module import TrialModule

pytestmark = pytest.mark.torch


def test_each_epoch_is_reported_once_with_every_metric(train: Train) -> None:
    reports = train(epochs=3)
    assert [report.epoch for report in reports] == [1, 2, 3]
    for report in reports:
        assert set(report.metrics) == set(METRICS)
        assert all(type(value) is float and math.isfinite(value) for value in report.metrics.values())
        assert (report.checkpoint, report.best_checkpoint) == (None, None)


def test_balanced_weights_change_the_training_loss_but_not_the_validation_loss(
    train: Train, digits: ImageDataset
) -> None:
    """With one image of each of the last five digits and a tiny learning rate."""
    labels_N = digits.train.labels_N
    first_indices = [np.flatnonzero(labels_N == digit)[: 1 if digit >= 5 else None] for digit in range(10)]
    chosen = np.sort(np.concatenate(first_indices))
    few_images = dataclasses.replace(
        digits.train, rows_N=digits.train.rows_N[chosen], labels_N=labels_N[chosen]
    )
    rare = dataclasses.replace(digits, train=few_images)
    config = dataclasses.replace(PLAIN_CONFIG, learning_rate=1e-12)
    unweighted, weighted = (
        train(dataclasses.replace(config, class_weights=class_weights), dataset=rare, epochs=1)[0].metrics
        for class_weights in ("none", "balanced")
    )
    assert weighted["val_loss"] == pytest.approx(unweighted["val_loss"], rel=1e-6)
    assert weighted["train_accuracy"] == unweighted["train_accuracy"]
    assert abs(weighted["train_loss"] / unweighted["train_loss"] - 1) > 0.01


def test_the_learning_rate_reported_is_the_last_steps(train: Train, digits: ImageDataset) -> None:
    config = TrialConfig(
        width=0.25,
        image_size=16,
        batch_size=32,
        schedule="multistep",
        step_fractions=(50,),
        learning_rate=0.1,
    )
    steps = len(digits.train) // 32
    assert steps > 1
    assert [report.metrics["learning_rate"] for report in train(config)] == pytest.approx([0.1, 0.01])


def test_a_trial_depends_on_its_seed_alone(train: Train) -> None:
    torch.manual_seed(1)
    first = metrics_of_all(train(seed=0))
    torch.manual_seed(2)
    assert metrics_of_all(train(seed=0)) == first
    assert metrics_of_all(train(seed=1)) != first


def test_the_callers_random_state_and_threads_are_unchanged(train: Train) -> None:
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_random_numbers_drawn_by_on_epoch_change_nothing(train: Train) -> None:
    expected = metrics_of_all(train())
    reports: list[EpochReport] = []

    def draw(report: EpochReport) -> None:
        torch.rand(3)
        reports.append(report)

    train(on_epoch=draw)
    assert metrics_of_all(reports) == expected


def test_precise_batch_norm_changes_validation_and_not_training(train: Train, small: TrialConfig) -> None:
    plain = train(TrialConfig.from_dict(small.to_dict() | {"precise_bn_batches": 0, "ema_decay": 0.0}))
    precise = train(TrialConfig.from_dict(small.to_dict() | {"precise_bn_batches": 3, "ema_decay": 0.0}))
    for name, same in (("train_loss", True), ("val_loss", False)):
        assert (
            [report.metrics[name] for report in plain] == [report.metrics[name] for report in precise]
        ) is same


def test_averaging_changes_validation_and_not_training(train: Train, small: TrialConfig) -> None:
    plain = train(TrialConfig.from_dict(small.to_dict() | {"ema_decay": 0.0}))
    averaged = train(small)
    for name, same in (("train_loss", True), ("val_loss", False)):
        assert (
            [report.metrics[name] for report in plain] == [report.metrics[name] for report in averaged]
        ) is same


def test_the_best_network_is_kept_and_reproduces_its_accuracy(
    train: Train, digits: ImageDataset, small: TrialConfig, tmp_path: Path
) -> None:
    from tune_rescon.data import ImageDataModule

    reports = train(folder=tmp_path, epochs=3, metric="val_loss", mode="min")
    best = min(reports, key=lambda report: report.metrics["val_loss"])
    assert best.best_checkpoint == tmp_path / "best.ckpt"
    network, about = load_trained(tmp_path / "best.ckpt")
    assert (about.epoch, about.config, about.class_names) == (best.epoch, small, digits.class_names)
    assert metrics_of_all([best])[0].items() <= dict(about.metrics).items()
    data = ImageDataModule(digits, about.config, image_size=about.spec.image_size, seed=0)
    with torch.no_grad():
        hits = [
            (network(images_BCHW).argmax(1) == labels_B).float()
            for images_BCHW, labels_B in data.val_batches()
        ]
    assert torch.cat(hits).mean().item() == pytest.approx(best.metrics["val_accuracy"])


def test_the_last_network_is_kept_if_at_is_last(train: Train, tmp_path: Path) -> None:
    # The training loss falls: if it is maximized, the first epoch is the best.
    options: dict[str, Any] = {"epochs": 3, "metric": "train_loss", "mode": "max"}
    for at, epoch in (("best", 1), ("last", 3)):
        folder = tmp_path / at
        losses = [report.metrics["train_loss"] for report in train(folder=folder, at=at, **options)]
        assert losses[0] == max(losses)
        assert load_trained(folder / "best.ckpt")[1].epoch == epoch


@pytest.mark.parametrize("free", [2**40, 0], ids=["on_the_device", "copied_ahead"])
def test_the_source_of_the_images_does_not_change_the_results(
    train: Train, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    expected = train(epochs=3)
    monkeypatch.setattr(batch_sources, "has_own_memory", lambda _: True)
    monkeypatch.setattr(batch_sources, "free_memory", lambda _: free)
    monkeypatch.setattr(batch_sources, "_held", {})
    assert metrics_of_all(train(epochs=3)) == metrics_of_all(expected)
    (held,) = batch_sources._held.values()
    assert set(held.splits) == ({"train", "val"} if free else set())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_trial_stopped_within_an_epoch_leaves_no_loader_thread(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        thread_names.extend(thread.name for thread in threading.enumerate())
        raise StopError

    thread_names: list[str] = []
    monkeypatch.setattr(batch_sources, "has_own_memory", lambda _: True)
    monkeypatch.setattr(batch_sources, "free_memory", lambda _: 0)
    monkeypatch.setattr(batch_sources, "_held", {})
    monkeypatch.setattr(TrialModule, "training_step", stop)
    with pytest.raises(StopError):
        train()
    assert any(name.startswith("batches") for name in thread_names)
    gc.collect()  # reference cycles of Lightning hold its loader
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_finished_trial_reports_nothing_and_keeps_its_epochs(train: Train, tmp_path: Path) -> None:
    reports = train(folder=tmp_path)
    assert train(folder=tmp_path) == []
    recorded = list(epochs_in_checkpoint(tmp_path))
    assert metrics_of_all(recorded) == metrics_of_all(reports)
    assert recorded[-1].best_checkpoint == tmp_path / "best.ckpt"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "last.previous.ckpt",
    ]


def test_a_metric_that_an_earlier_version_did_not_measure_is_nan_in_its_checkpoints(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed an assertion, and the trial could not be resumed."""
    (report,) = train(folder=tmp_path, epochs=1)
    monkeypatch.setitem(METRICS, "val_new", "max")
    (recorded,) = epochs_in_checkpoint(tmp_path)
    (before,), (now,) = metrics_of_all([report]), metrics_of_all([recorded])
    assert math.isnan(now.pop("val_new"))
    assert now == before


def test_an_empty_folder_has_no_recorded_epochs(tmp_path: Path) -> None:
    assert epochs_in_checkpoint(tmp_path) == ()


class _Stop(BaseException):
    pass


@pytest.mark.parametrize("kind", [_Stop, SystemExit, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("in_thread", [False, True], ids=["main", "thread"])
def test_an_exception_in_on_epoch_is_raised_and_everything_released(
    train: Train, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], in_thread: bool
) -> None:
    networks: list[weakref.ref[nn.Module]] = []
    original = TrialModule.__init__

    def track_network(self: TrialModule, network: nn.Module, *args: Any, **kwargs: Any) -> None:
        networks.append(weakref.ref(network))
        original(self, network, *args, **kwargs)

    monkeypatch.setattr(TrialModule, "__init__", track_network)
    handler = signal.getsignal(signal.SIGINT)
    caught: list[BaseException] = []

    def stop(_: EpochReport) -> None:
        raise kind("stop")

    def run() -> None:
        try:
            train(on_epoch=stop)
        except BaseException as error:
            caught.append(error)

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    assert [(type(error), error.args) for error in caught] == [(kind, ("stop",))]
    assert signal.getsignal(signal.SIGINT) is handler
    caught.clear()
    gc.collect()
    assert [network() for network in networks] == [None]


def test_an_interrupt_within_an_epoch_raises_keyboard_interrupt(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    original = TrialModule.training_step

    def interrupt(self: TrialModule, batch: Any) -> torch.Tensor:
        if epochs_in_checkpoint(tmp_path):
            signal.raise_signal(signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(TrialModule, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(epochs_in_checkpoint(tmp_path)) == 1


def test_a_trial_runs_in_any_thread(train: Train) -> None:
    outcome: list[list[dict[str, float]]] = []
    thread = threading.Thread(target=lambda: outcome.append(metrics_of_all(train())))
    thread.start()
    thread.join()
    assert outcome == [metrics_of_all(train())]


@pytest.mark.parametrize("learning_rate", [1e30, 1e10])
def test_a_loss_that_is_not_finite_ends_the_trial_after_one_report(
    train: Train, tmp_path: Path, small: TrialConfig, learning_rate: float
) -> None:
    config = TrialConfig.from_dict(
        small.to_dict() | {"learning_rate": learning_rate, "gradient_clip": 0.0, "warmup_epochs": 0.0}
    )
    reports = train(config, folder=tmp_path, epochs=3)
    assert 1 <= len(reports) <= 3
    last = reports[-1].metrics
    assert all(math.isnan(last[name]) for name in ("train_loss", "val_loss", "val_accuracy", "val_top5"))
    assert math.isfinite(last["learning_rate"])
    assert all(math.isfinite(report.metrics["train_loss"]) for report in reports[:-1])
    assert len(epochs_in_checkpoint(tmp_path)) == len(reports) - 1


def test_a_trial_is_silent_and_writes_nothing_unasked(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        warnings.simplefilter("error")
        train(epochs=1)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
    assert list(tmp_path.iterdir()) == []


def test_slurm_variables_of_the_job_are_ignored(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "JOB_ID": "1",
        "JOB_NAME": "ray",
        "NTASKS": "4",
        "PROCID": "3",
        "LOCALID": "3",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert len(train(epochs=1)) == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metric": "val_acc"}, ConfigError, "unknown metric 'val_acc'"),
        ({"metric": "learning_rate"}, ConfigError, "unknown metric 'learning_rate'"),
        ({"mode": "best"}, ConfigError, "must be max or min"),
        ({"config": TrialConfig(preset="attention57")}, NetworkError, "unknown preset"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    train: Train, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    folder = tmp_path / "trial"
    with pytest.raises(error, match=words):
        train(folder=folder, **options)
    assert not folder.exists()


def test_an_unknown_device_is_refused(digits: ImageDataset, small: TrialConfig) -> None:
    with pytest.raises(ResourceError, match="unknown device 'gpu'"):
        train_trial(
            small,
            digits,
            epochs=1,
            seed=0,
            checkpoint_dir=None,
            on_epoch=lambda _: None,
            process=TrialProcess(device="gpu"),
        )


def test_a_checkpoint_of_another_program_is_refused(train: Train, tmp_path: Path) -> None:
    write_durably({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(StorageError, match="must be one that a trial wrote"):
        train(folder=tmp_path)


def test_another_trials_folder_is_refused(train: Train, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    with pytest.raises(StorageError, match="another epochs"):
        train(folder=tmp_path, epochs=2)


def test_the_progress_of_each_epoch_is_passed_on(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_rescon.training.callbacks.PROGRESS_SECONDS", 0.0)
    shares: list[float] = []
    train(epochs=2, on_progress=shares.append)
    middle = len(shares) // 2
    assert shares[:middle] == shares[middle:] == sorted(shares[:middle])
    assert shares[-1] == 1
