"""Validation metrics beyond accuracy, and a user's own, from the class scores of all validation images.

Shapes: N validation images, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
)
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from tune_rescon.metric_names import custom_metric_name
from tune_rescon.user_code import import_function

__all__ = ["Predictions", "load_metric"]

MetricFunction = Callable[[Tensor, Tensor], Any]


class Predictions(Metric):
    """The class scores and labels of an epoch, from which any number of metrics are computed at its end.

    The scores are kept on the device in fp32: 4 x N x K bytes, 200 MB for ImageNet's 50,000 validation
    images. If several processes train the trial, :meth:`compute` gathers the scores of all of them.
    """

    full_state_update = False

    logits: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor

    def __init__(self, names: Sequence[str]) -> None:
        """Create it without images.

        Args:
            names: keys of ``metric_names.EXTRA_METRICS``, and functions as ``module:function``.

        Raises:
            ConfigError: a function cannot be imported.
        """
        super().__init__()
        self._functions = {metric_key(name): load_metric(name) for name in names}
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    @override
    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch."""
        assert isinstance(self.logits, list)
        assert isinstance(self.labels, list)
        self.logits.append(logits_BK)
        self.labels.append(labels_B)

    def read(self) -> dict[str, float]:
        """Return :meth:`compute`, or nan before the first batch."""
        if not self.update_called:
            return dict.fromkeys(self._functions, math.nan)
        return dict(self.compute())

    @override
    def compute(self) -> dict[str, float]:
        """Return the metrics by name without ``val_``."""
        logits_NK, labels_N = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        return {name: float(function(logits_NK, labels_N)) for name, function in self._functions.items()}


def metric_key(name: str) -> str:
    """Return the name of a metric of the validation images without its ``val_``.

    >>> metric_key("val_macro_f1"), metric_key("hospital.metrics:sensitivity")
    ('macro_f1', 'sensitivity')
    """
    return (custom_metric_name(name) or name).removeprefix("val_")


def load_metric(name: str) -> MetricFunction:
    """Return the function that computes a metric from class scores (N, K) and labels (N).

    Args:
        name: a key of ``metric_names.EXTRA_METRICS``, or ``module:function``. The module is looked for on the
            path of imports, which has the working directory of the search.

    Raises:
        ConfigError: the module or function does not exist, or importing the module raises.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    return import_function(name, what="a metric", where="metric.log")


def _macro_accuracy(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return multiclass_accuracy(logits_NK, labels_N, num_classes=logits_NK.shape[1], average="macro")


def _macro_f1(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return multiclass_f1_score(logits_NK, labels_N, num_classes=logits_NK.shape[1], average="macro")


def _kappa(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return multiclass_cohen_kappa(logits_NK, labels_N, num_classes=logits_NK.shape[1])


def _calibration_error(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    # 15 bins of equal width (Guo et al., ICML 2017, section 2).
    probabilities_NK = logits_NK.softmax(dim=1)
    return multiclass_calibration_error(
        probabilities_NK, labels_N, num_classes=logits_NK.shape[1], n_bins=15, norm="l1"
    )


def _auroc(logits_NK: Tensor, labels_N: Tensor) -> float:
    return _over_classes(multiclass_auroc, logits_NK, labels_N)


def _average_precision(logits_NK: Tensor, labels_N: Tensor) -> float:
    return _over_classes(multiclass_average_precision, logits_NK, labels_N)


def _over_classes(by_class: Callable[..., Tensor], logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the mean of a one-against-rest metric over the classes for which it is defined.

    A class without images, or with all of them, has no curve: torchmetrics would count it as 0. Without any
    such class the mean is nan.
    """
    classes = logits_NK.shape[1]
    images_K = torch.bincount(labels_N, minlength=classes)
    defined_K = (images_K > 0) & (images_K < len(labels_N))
    if not defined_K.any():
        return math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(positive|negative) samples in targets.*")
        warnings.filterwarnings("ignore", message=".*scores for one or more classes was `nan`.*")
        values_K = by_class(logits_NK.softmax(dim=1), labels_N, num_classes=classes, average=None)
    return float(values_K[defined_K].mean())


_KNOWN: Final[Mapping[str, MetricFunction]] = {
    "val_macro_accuracy": _macro_accuracy,
    "val_macro_f1": _macro_f1,
    "val_auroc": _auroc,
    "val_average_precision": _average_precision,
    "val_cohen_kappa": _kappa,
    "val_calibration_error": _calibration_error,
}
