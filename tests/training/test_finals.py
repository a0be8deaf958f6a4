"""A training that is evaluated once, on the test images, after its last epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.training.conftest import PLAIN_CONFIG
from tune_rescon.config import DatasetConfig
from tune_rescon.data import ImageDataModule, ImageDataset, open_dataset
from tune_rescon.metric_names import METRICS, TEST_METRICS
from tune_rescon.training import EpochReport, Objective, TrialProcess, load_trained, train_trial
from tune_rescon.training.metrics import FINAL_METRICS, EpochMetrics

pytestmark = pytest.mark.torch

TIMES = {"images_per_second", "epoch_seconds", "test_images_per_second"}


@pytest.fixture(scope="module")
def full_digits(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root = tmp_path_factory.mktemp("whole")
    config = DatasetConfig(name="digits", limit=80, hold_out=False)
    return open_dataset(config, data_root=root, cache_root=root)


def trained(
    dataset: ImageDataset,
    folder: Path,
    *,
    callback: Callable[[EpochReport], object] = lambda _: None,
    epochs: int = 3,
) -> list[EpochReport]:
    reports: list[EpochReport] = []

    def on_epoch(report: EpochReport) -> None:
        reports.append(report)
        callback(report)

    train_trial(
        PLAIN_CONFIG,
        dataset,
        epochs=epochs,
        seed=0,
        checkpoint_dir=folder,
        on_epoch=on_epoch,
        process=TrialProcess(device="cpu", threads=1),
        objective=Objective(metric="test_accuracy"),
    )
    return reports


def accuracy_and_loss(network: nn.Module, dataset: ImageDataset) -> tuple[float, float]:
    """Accuracy and loss on the test images, computed directly."""
    data = ImageDataModule(dataset, PLAIN_CONFIG, image_size=16, seed=0, eval_split="test")
    right, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for raw in data.val_dataloader():
            images_BCHW, labels_B = data.prepare(raw)
            logits_BK = network(images_BCHW)
            right += int((logits_BK.argmax(1) == labels_B).sum())
            loss += float(F.cross_entropy(logits_BK, labels_B, reduction="sum"))
            count += len(labels_B)
    assert count == len(dataset.test)
    return right / count, loss / count


def test_only_the_last_network_is_tested_and_kept(full_digits: ImageDataset, tmp_path: Path) -> None:
    reports = trained(full_digits, tmp_path)
    training = {name for name in METRICS if not name.startswith("val_")}
    assert [set(report.metrics) for report in reports[:2]] == [training, training]
    assert [report.best_checkpoint for report in reports[:2]] == [None, None]
    final_report = reports[-1].metrics
    by_class = {f"test_accuracy/{name}" for name in full_digits.class_names}
    assert set(final_report) == training | set(TEST_METRICS) | by_class
    network, about = load_trained(tmp_path / "best.ckpt")
    assert about.epoch == 3
    accuracy, loss = accuracy_and_loss(network, full_digits)
    assert final_report["test_accuracy"] == pytest.approx(accuracy)
    assert final_report["test_loss"] == pytest.approx(loss, rel=1e-5)
    counts = torch.bincount(torch.from_numpy(full_digits.test.labels_N), minlength=10)
    mean = sum(final_report[f"test_accuracy/{name}"] * int(n) for name, n in enumerate(counts)) / int(
        counts.sum()
    )
    assert mean == pytest.approx(accuracy)


def test_a_resumed_training_has_the_same_test_metrics(full_digits: ImageDataset, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(report: EpochReport) -> None:
        if report.epoch == 2:
            raise StopError

    uninterrupted = trained(full_digits, tmp_path / "a")
    with pytest.raises(StopError):
        trained(full_digits, tmp_path / "b", callback=stop)
    (final_report,) = trained(full_digits, tmp_path / "b")
    expected = uninterrupted[-1].metrics
    assert {name: value for name, value in final_report.metrics.items() if name not in TIMES} == {
        name: value for name, value in expected.items() if name not in TIMES
    }


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    metrics = EpochMetrics(2, extra=FINAL_METRICS, class_names=["cat", "dog"])
    assert set(metrics.compute()) == {"loss", "accuracy", "calibration_error"}
    # Three of four are correct, with a confidence of 0.9 each.
    logits_BK = torch.tensor([0.9, 0.1]).log().expand(4, 2)
    labels_B = torch.tensor([0, 0, 0, 1])
    metrics.update(F.cross_entropy(logits_BK, labels_B), logits_BK, labels_B)
    results = metrics.compute()
    assert results["calibration_error"] == pytest.approx(0.15)
    assert (results["accuracy/cat"], results["accuracy/dog"]) == (1.0, 0.0)
    metrics.reset()
    assert math.isnan(metrics.compute()["loss"])


def test_a_class_without_images_has_no_accuracy() -> None:
    metrics = EpochMetrics(3, extra=FINAL_METRICS, class_names=["ant", "bee", "cat"])
    logits_BK, labels_B = torch.eye(3), torch.tensor([0, 1, 1])
    metrics.update(F.cross_entropy(logits_BK, labels_B), logits_BK, labels_B)
    results = metrics.compute()
    assert {name: value for name, value in results.items() if "/" in name} == {
        "accuracy/ant": 1.0,
        "accuracy/bee": 0.5,
    }
