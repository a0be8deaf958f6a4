"""Metrics of the validation images beyond accuracy, against scikit-learn's, and a person's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
)
from torch import Tensor

from tune_rescon.errors import ConfigError
from tune_rescon.metric_names import EXTRA_METRICS, METRICS
from tune_rescon.training import EpochReport
from tune_rescon.training.metrics import EpochMetrics

pytestmark = pytest.mark.torch

Run = Callable[..., list[EpochReport]]

CLASSES = 4


def images(count: int = 200, *, classes: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Tensor, Tensor]:
    """Class scores that are better than chance, and labels of some of the classes."""
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.tensor(classes)[torch.randint(len(classes), (count,), generator=generator)]
    logits_NK = torch.randn(count, CLASSES, generator=generator)
    logits_NK[torch.arange(count), labels_N] += 1.0
    return logits_NK, labels_N


def measured(logits_NK: Tensor, labels_N: Tensor, *names: str) -> dict[str, float]:
    metrics = EpochMetrics(CLASSES, extra=names)
    for logits_BK, labels_B in zip(torch.split(logits_NK, 64), torch.split(labels_N, 64), strict=True):
        metrics.update(torch.tensor(1.0), logits_BK, labels_B)
    return metrics.compute()


def test_each_is_scikit_learns() -> None:
    logits_NK, labels_N = images()
    found = measured(logits_NK, labels_N, *EXTRA_METRICS)
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
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al., equation 3, with 15 bins."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    members = [(bins == b) for b in sorted(set(bins))]
    gaps = [abs(right[of].mean() - confidence[of].mean()) * of.sum() for of in members]
    return float(sum(gaps) / len(labels))


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    logits_NK, labels_N = images(classes=(0, 1, 3))
    found = measured(logits_NK, labels_N, "val_auroc", "val_average_precision")
    rest = [(labels_N.numpy() == k, logits_NK.softmax(dim=1).numpy()[:, k]) for k in (0, 1, 3)]
    assert found["auroc"] == pytest.approx(np.mean([roc_auc_score(*one) for one in rest]), abs=1e-5)
    precision = np.mean([average_precision_score(*one) for one in rest])
    assert found["average_precision"] == pytest.approx(precision, abs=1e-5)


def test_of_a_single_class_there_is_no_curve() -> None:
    found = measured(*images(classes=(2,)), "val_auroc")
    assert math.isnan(found["auroc"])


def test_before_the_first_batch_and_after_a_reset_nothing_is_known() -> None:
    metrics = EpochMetrics(CLASSES, extra=["val_macro_f1"])
    metrics.update(torch.tensor(1.0), *images(8))
    metrics.reset()
    assert math.isnan(metrics.compute()["macro_f1"])


def test_a_trial_reports_what_it_is_asked_for_and_is_judged_by_it(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        count = report.metrics["val_hits"] / report.metrics["val_accuracy"]
        assert count == pytest.approx(round(count)), "hits are whole images"
    assert reports[0].best_checkpoint is not None


def test_an_objective_of_this_kind_need_not_be_asked_for_twice(train: Run) -> None:
    (report,) = train(metric="val_auroc", mode="max", epochs=1)
    assert 0 < report.metrics["val_auroc"] < 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch.module:hits", "ModuleNotFoundError: No module named 'nosuch'"),
        ("math:nosuch", "the module math must have this function, but got nosuch"),
        ("math:pi", "the module math must have this function, but got pi"),
    ],
)
def test_a_function_that_is_not_there_is_said(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"metric\.log") as caught:
        EpochMetrics(CLASSES, extra=[name])
    assert words in str(caught.value)
