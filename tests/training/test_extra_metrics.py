"""Additional validation metrics, compared with scikit-learn's, and custom metrics."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    recall_score,
    roc_auc_score,
)
from torch import Tensor

from tests.training.conftest import SMALL_CONFIG, Train
from tune_rescon.data import ImageDataset
from tune_rescon.errors import ConfigError
from tune_rescon.metric_names import BY_CLASS, EXTRA_METRICS, METRICS
from tune_rescon.training import load_trained
from tune_rescon.training.metrics import EpochMetrics

pytestmark = pytest.mark.torch

CLASSES = 4
SHORT = dataclasses.replace(SMALL_CONFIG, precise_bn_batches=1)
NAMES = ("ant", "bee", "cat", "dog")


def images(count: int = 200, *, classes: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Tensor, Tensor]:
    """Class scores that are better than chance, and labels of some of the classes."""
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.tensor(classes)[torch.randint(len(classes), (count,), generator=generator)]
    logits_NK = torch.randn(count, CLASSES, generator=generator)
    logits_NK[torch.arange(count), labels_N] += 1.0
    return logits_NK, labels_N


def compute_metrics(logits_NK: Tensor, labels_N: Tensor, *names: str) -> dict[str, float]:
    metrics = EpochMetrics(CLASSES, extra=names, class_names=NAMES)
    for logits_BK, labels_B in zip(torch.split(logits_NK, 64), torch.split(labels_N, 64), strict=True):
        metrics.update(torch.tensor(1.0), logits_BK, labels_B)
    return metrics.compute()


def test_metrics_match_scikit_learn() -> None:
    logits_NK, labels_N = images()
    values = compute_metrics(logits_NK, labels_N, *EXTRA_METRICS)
    probabilities, labels = logits_NK.softmax(dim=1).numpy(), labels_N.numpy()
    chosen = probabilities.argmax(axis=1)
    one_hot = np.eye(CLASSES)[labels]
    expected = {
        "macro_accuracy": balanced_accuracy_score(labels, chosen),
        "macro_f1": f1_score(labels, chosen, average="macro"),
        "auroc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "average_precision": average_precision_score(one_hot, probabilities, average="macro"),
        "cohen_kappa": cohen_kappa_score(labels, chosen),
        "calibration_error": calibration_error(probabilities, labels),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_the_curves_of_a_confident_network_are_those_of_its_exact_probabilities() -> None:
    logits_NK, labels_N = images()
    logits_NK = 20 * logits_NK
    rounded = logits_NK.softmax(dim=1).amax(dim=1) == 1
    assert rounded.sum() > 70, "fp32 cannot tell these from each other"
    found = compute_metrics(logits_NK, labels_N, *BY_CLASS)
    scores, labels = logits_NK.double().numpy(), labels_N.numpy()
    for k, name in enumerate(NAMES):
        # By log odds images are in the order of the probabilities, none of which is 1.
        odds = scores[:, k] - logsumexp(np.delete(scores, k, axis=1), axis=1)
        assert found[f"auroc/{name}"] == pytest.approx(roc_auc_score(labels == k, odds), abs=1e-6)
        precision = average_precision_score(labels == k, odds)
        assert found[f"average_precision/{name}"] == pytest.approx(precision, abs=1e-6)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al., equation 3, with 15 bins."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    in_bins = [(bins == number) for number in sorted(set(bins))]
    gaps = [abs(right[chosen].mean() - confidence[chosen].mean()) * chosen.sum() for chosen in in_bins]
    return float(sum(gaps) / len(labels))


def test_images_of_which_a_network_is_certain_are_in_the_last_bin_of_the_calibration() -> None:
    # Of four images with a probability of 1 one is wrong; four more have one of 0.95 and are right.
    logits_NK = torch.zeros(8, CLASSES)
    logits_NK[:4, 0] = 100.0
    logits_NK[4:, 0] = math.log(0.95 * (CLASSES - 1) / 0.05)
    labels_N = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
    found = compute_metrics(logits_NK, labels_N, "val_calibration_error")["calibration_error"]
    assert found == pytest.approx((1.0 + 0.95) / 2 - 7 / 8)  # 0.15 in two bins


def test_per_class_metrics_match_scikit_learn() -> None:
    logits_NK, labels_N = images()
    values = compute_metrics(logits_NK, labels_N, *BY_CLASS)
    probabilities, labels = logits_NK.softmax(dim=1).numpy(), labels_N.numpy()
    chosen = probabilities.argmax(axis=1)
    accuracies, f1s = (score(labels, chosen, average=None) for score in (recall_score, f1_score))
    for k, name in enumerate(NAMES):
        expected = {
            f"accuracy/{name}": accuracies[k],
            f"f1/{name}": f1s[k],
            f"auroc/{name}": roc_auc_score(labels == k, probabilities[:, k]),
            f"average_precision/{name}": average_precision_score(labels == k, probabilities[:, k]),
        }
        assert {key: values[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert len([key for key in values if "/" in key]) == 4 * CLASSES


def test_a_class_without_images_has_no_metrics_and_no_part_in_the_mean_accuracy() -> None:
    logits_NK, labels_N = images(classes=(0, 1, 3))
    assert (logits_NK.argmax(dim=1) == 2).any()
    values = compute_metrics(logits_NK, labels_N, *BY_CLASS, "val_macro_accuracy")
    assert {key.partition("/")[2] for key in values if "/" in key} == {"ant", "bee", "dog"}
    accuracies = [values[f"accuracy/{name}"] for name in ("ant", "bee", "dog")]
    assert values["macro_accuracy"] == pytest.approx(np.mean(accuracies))


def test_a_metric_of_one_class_requires_an_existing_class() -> None:
    values = compute_metrics(*images(), "val_f1/bee", "val_accuracy/bee", "val_accuracy/dog")
    assert {key for key in values if "/" in key} == {"f1/bee", "accuracy/bee", "accuracy/dog"}
    with pytest.raises(ConfigError, match=r"unknown class 'bea' \(did you mean 'bee'"):
        compute_metrics(*images(), "val_f1/bea")


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    logits_NK, labels_N = images(classes=(0, 1, 3))
    values = compute_metrics(logits_NK, labels_N, "val_auroc", "val_average_precision")
    other_classes = [(labels_N.numpy() == k, logits_NK.softmax(dim=1).numpy()[:, k]) for k in (0, 1, 3)]
    assert values["auroc"] == pytest.approx(
        np.mean([roc_auc_score(*pair) for pair in other_classes]), abs=1e-5
    )
    precision = np.mean([average_precision_score(*pair) for pair in other_classes])
    assert values["average_precision"] == pytest.approx(precision, abs=1e-5)


def test_auroc_of_a_single_class_is_nan() -> None:
    values = compute_metrics(*images(classes=(2,)), "val_auroc")
    assert math.isnan(values["auroc"])


def test_metrics_are_nan_after_a_reset() -> None:
    metrics = EpochMetrics(CLASSES, extra=["val_macro_f1"])
    metrics.update(torch.tensor(1.0), *images(8))
    metrics.reset()
    assert math.isnan(metrics.compute()["macro_f1"])


def test_a_trial_reports_logged_metrics_and_optimises_a_custom_one(
    train: Train, digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hospital.py").write_text(
        "def hits(scores, labels):\n    return (scores.argmax(1) == labels).sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    reports = train(
        folder=tmp_path / "trial", metric="val_hits", mode="max", log=("hospital:hits", "val_macro_f1")
    )
    for report in reports:
        assert set(report.metrics) == {*METRICS, "val_hits", "val_macro_f1"}
        hits = report.metrics["val_accuracy"] * len(digits.val)
        assert report.metrics["val_hits"] == pytest.approx(hits)
    assert reports[0].best_checkpoint is not None


def test_a_custom_metric_that_changes_its_arguments_changes_no_other_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "careless.py").write_text(
        "def zeroed(scores, labels):\n    return scores.zero_().sum() + labels.zero_().sum()\n"
    )
    monkeypatch.chdir(tmp_path)
    alone = compute_metrics(*images(), "val_auroc", "val_f1_by_class")
    beside = compute_metrics(*images(), "careless:zeroed", "val_auroc", "val_f1_by_class")
    assert beside == {**alone, "zeroed": 0.0}


def test_an_extra_metric_as_objective_need_not_be_logged(train: Train) -> None:
    (report,) = train(metric="val_auroc", mode="max", epochs=1)
    assert 0 < report.metrics["val_auroc"] < 1


def test_a_class_metric_as_objective_decides_the_kept_network(
    train: Train, digits: ImageDataset, tmp_path: Path
) -> None:
    reports = train(folder=tmp_path, metric="val_f1/3", mode="max", log=("val_accuracy_by_class",), epochs=3)
    counts = np.bincount(digits.val.labels_N, minlength=10)
    for report in reports:
        accuracies = [report.metrics[f"val_accuracy/{name}"] for name in digits.class_names]
        assert np.average(accuracies, weights=counts) == pytest.approx(report.metrics["val_accuracy"])
    scores = [report.metrics["val_f1/3"] for report in reports]
    _, about = load_trained(tmp_path / "best.ckpt")
    assert about.epoch == 1 + scores.index(max(scores))


@settings(max_examples=8, derandomize=True, deadline=None)
@given(log=st.lists(st.sampled_from([*EXTRA_METRICS, *BY_CLASS, "val_f1/7"]), unique=True))
def test_any_combination_of_metrics_is_reported(train: Train, log: list[str]) -> None:
    (report,) = train(SHORT, epochs=1, log=tuple(log))
    names = {name.removesuffix("_by_class").partition("/")[0] for name in log}
    metric_names = {name.partition("/")[0] for name in report.metrics.keys() - METRICS.keys()}
    assert metric_names == names, "exactly the requested metrics"
    assert all(math.isfinite(report.metrics[name]) for name in report.metrics if "/" in name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch.module:hits", "ModuleNotFoundError: No module named 'nosuch'"),
        ("math:nosuch", "the module math must have this function, but got nosuch"),
        ("math:pi", "the module math must have this function, but got pi"),
    ],
)
def test_a_missing_metric_function_is_reported(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"metric\.log") as error:
        EpochMetrics(CLASSES, extra=[name])
    assert message in str(error.value)
