"""Validation metrics beyond accuracy, by class, and a user's own, from the scores of all validation images.

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
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
    multiclass_stat_scores,
)
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from tune_rescon.errors import ConfigError, unknown_name_message
from tune_rescon.metric_names import BY_CLASS, CLASS_METRICS, class_metric, custom_metric_name
from tune_rescon.user_code import import_function

__all__ = ["Predictions", "accuracy_by_class", "load_metric"]

MetricFunction = Callable[[Tensor, Tensor], Any]


class Predictions(Metric):
    """The class scores and labels of an epoch, from which any number of metrics are computed at its end.

    The scores are kept on the device in fp32: 4 x N x K bytes, 200 MB for ImageNet's 50,000 validation
    images. If several processes train the trial, :meth:`compute` gathers the scores of all of them.
    """

    full_state_update = False

    logits: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor

    def __init__(self, names: Sequence[str], *, class_names: Sequence[str] = ()) -> None:
        """Create it without images.

        Args:
            names: keys of ``metric_names.EXTRA_METRICS``, names of ``metric_names.BY_CLASS``,
                ``METRIC/CLASS``, and functions as ``module:function``.
            class_names: in the order of the labels; needed for metrics by class.

        Raises:
            ConfigError: a function cannot be imported, or a class does not exist.
        """
        super().__init__()
        self._class_names = tuple(class_names)
        self._functions: dict[str, MetricFunction] = {}
        self._classes: dict[str, set[str]] = {}
        for name in names:
            self._add(name)
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def _add(self, name: str) -> None:
        if name in BY_CLASS:
            metric = CLASS_METRICS[BY_CLASS.index(name)]
            self._classes.setdefault(metric, set()).update(self._class_names)
        elif (found := class_metric(name)) is not None:
            metric, of = found
            if of not in self._class_names:
                raise ConfigError(unknown_name_message("class", of, self._class_names))
            self._classes.setdefault(metric, set()).add(of)
        else:
            self._functions[metric_key(name)] = load_metric(name)

    @override
    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch."""
        assert isinstance(self.logits, list)
        assert isinstance(self.labels, list)
        self.logits.append(logits_BK)
        self.labels.append(labels_B)

    def read(self) -> dict[str, float]:
        """Return :meth:`compute`, or nan before the first batch, when classes have no metrics."""
        if not self.update_called:
            return dict.fromkeys(self._functions, math.nan)
        return dict(self.compute())

    @override
    def compute(self) -> dict[str, float]:
        """Return the metrics by name without ``val_``.

        A class that has no images has no metrics, so its name is left out.
        """
        logits_NK, labels_N = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        values = {name: float(function(logits_NK, labels_N)) for name, function in self._functions.items()}
        for metric, chosen in self._classes.items():
            values_K = _OF_CLASSES[metric](logits_NK, labels_N).tolist()
            values |= {
                f"{metric_key(metric)}/{name}": value
                for name, value in zip(self._class_names, values_K, strict=True)
                if name in chosen and not math.isnan(value)
            }
        return values


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


def accuracy_by_class(scores_K5: Tensor) -> Tensor:
    """Return the share of each class's images that are classified correctly (K), nan without images.

    Args:
        scores_K5: true positives, false positives, true negatives, false negatives, and images.
    """
    return scores_K5[:, 0] / scores_K5[:, 4]


def _scores(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return multiclass_stat_scores(logits_NK, labels_N, num_classes=logits_NK.shape[1], average=None)


def _accuracy_K(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return accuracy_by_class(_scores(logits_NK, labels_N))


def _f1_K(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    hits_K, wrong_K, _, missed_K, images_K = _scores(logits_NK, labels_N).unbind(dim=1)
    f1_K = 2 * hits_K / (2 * hits_K + wrong_K + missed_K)
    return f1_K.where(images_K > 0, math.nan)


def _auroc_K(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return _against_the_rest(multiclass_auroc, logits_NK, labels_N)


def _average_precision_K(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    return _against_the_rest(multiclass_average_precision, logits_NK, labels_N)


def _against_the_rest(by_class: Callable[..., Tensor], logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return a metric of each class against the rest (K), nan where it is not defined.

    A class without images, or with all of them, has no curve: torchmetrics would count it as 0.
    """
    classes = logits_NK.shape[1]
    images_K = torch.bincount(labels_N, minlength=classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(positive|negative) samples in targets.*")
        warnings.filterwarnings("ignore", message=".*scores for one or more classes was `nan`.*")
        values_K = by_class(logits_NK.softmax(dim=1), labels_N, num_classes=classes, average=None)
    return values_K.where((images_K > 0) & (images_K < len(labels_N)), math.nan)


def _mean_of_classes(by_class: Callable[[Tensor, Tensor], Tensor]) -> MetricFunction:
    """Return the function of the mean over the classes for which a metric is defined; nan without any."""
    return lambda logits_NK, labels_N: by_class(logits_NK, labels_N).nanmean()


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


#: The metrics of ``metric_names.CLASS_METRICS``: class scores (N, K) and labels (N) to values (K).
_OF_CLASSES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "val_accuracy": _accuracy_K,
    "val_f1": _f1_K,
    "val_auroc": _auroc_K,
    "val_average_precision": _average_precision_K,
}

_KNOWN: Final[Mapping[str, MetricFunction]] = {
    "val_macro_accuracy": _mean_of_classes(_accuracy_K),
    "val_macro_f1": _macro_f1,
    "val_auroc": _mean_of_classes(_auroc_K),
    "val_average_precision": _mean_of_classes(_average_precision_K),
    "val_cohen_kappa": _kappa,
    "val_calibration_error": _calibration_error,
}
