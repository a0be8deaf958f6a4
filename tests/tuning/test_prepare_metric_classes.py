"""Metrics of single classes: a metric that cannot be computed is refused before the first trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tune_rescon.data import DatasetInfo, describe
from tune_rescon.errors import ConfigError, DataError
from tune_rescon.metric_names import LARGEST_BY_CLASS
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning.prepare import check_metric_classes


def space(metric: str) -> Space:
    return load_space("digits", [f"metric={metric}"])


def classes(count: int, tmp_path: Path) -> DatasetInfo:
    info = describe(space("{name: val_loss, mode: min}").dataset, data_root=tmp_path)
    return dataclasses.replace(info, classes=count, class_names=tuple(map(str, range(count))))


def test_per_class_metrics_of_too_many_classes_are_refused(tmp_path: Path) -> None:
    all_classes = space("{name: val_loss, mode: min, log: [val_f1_by_class]}")
    check_metric_classes(all_classes, classes(LARGEST_BY_CLASS, tmp_path))
    with pytest.raises(ConfigError, match=r"at most 100 classes, but got 101 .*val_f1/CLASS"):
        check_metric_classes(all_classes, classes(LARGEST_BY_CLASS + 1, tmp_path))


def test_single_classes_of_a_thousand_may_be_named(tmp_path: Path) -> None:
    single_classes = space("{name: val_f1/999, mode: max, log: [val_auroc/0]}")
    check_metric_classes(single_classes, classes(1000, tmp_path))
    with pytest.raises(ConfigError, match=r"metric\.name: unknown class '999'"):
        check_metric_classes(single_classes, classes(999, tmp_path))


def test_an_objective_class_without_validation_images_is_refused(tmp_path: Path) -> None:
    single_classes = space("{name: val_f1/3, mode: max, log: [val_auroc/0]}")
    check_metric_classes(single_classes, classes(10, tmp_path), val_labels_N=np.array([3, 5]))
    with pytest.raises(DataError, match=r"metric\.name: .* must have validation images, but got none of 3"):
        check_metric_classes(single_classes, classes(10, tmp_path), val_labels_N=np.array([0, 5]))
