"""The metrics of an epoch, accumulated on the device until they are read.

Loss and accuracy are sums over the batches. All further metrics (those of ``metric_names.EXTRA_METRICS``,
those of each class, and a user's own functions) are computed from the scores of all validation images
(:class:`Predictions`).

Shapes: B images of a batch, N validation images, K classes.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
    multiclass_stat_scores,
)
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from tune_rescon.errors import ConfigError, unknown_name_message
from tune_rescon.metric_names import BY_CLASS, CLASS_METRICS, class_metric, custom_metric_name
from tune_rescon.training.distributed import SINGLE_PROCESS, ProcessGroup
from tune_rescon.user_code import import_function

__all__ = ["FINAL_METRICS", "EpochMetrics", "Predictions", "load_metric"]

MetricFunction = Callable[[Tensor, Tensor], Any]

#: ImageNet's second metric: the label is among the five highest scores.
TOP_K = 5

#: The further metrics of a finished network, which is evaluated on the test images. The names are those of
#: the validation metrics; the report has ``test_`` in place of ``val_``.
FINAL_METRICS: Final = ("val_calibration_error", "val_accuracy_by_class")


class EpochMetrics(nn.Module):
    """Mean loss, accuracy and the requested further metrics over the images of an epoch.

    If several processes train the trial, reading is a collective: torchmetrics sums over all processes.
    """

    def __init__(
        self,
        classes: int,
        *,
        top5: bool = False,
        extra: Sequence[str] = (),
        class_names: Sequence[str] = (),
        peers: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Create empty metrics.

        Args:
            classes: number of classes.
            top5: True to measure top-5 accuracy; it is always 1 with at most five classes.
            extra: names of metrics for :class:`Predictions`.
            class_names: in the order of the labels; needed if ``extra`` has metrics by class.
            peers: the processes that train the trial together.
        """
        super().__init__()
        self._peers = peers
        # Without torchmetrics' checks of arguments and of NaN: they would make the host wait for each step.
        self.loss = MeanMetric(nan_strategy="disable")
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.top5 = (
            MulticlassAccuracy(classes, top_k=min(TOP_K, classes), average="micro", validate_args=False)
            if top5
            else None
        )
        self.predictions = Predictions(extra, class_names=class_names) if extra else None

    def update(self, loss: Tensor, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch.

        Args:
            loss: mean loss over the batch.
            logits_BK: the class scores.
            labels_B: the true classes.
        """
        loss, logits_BK = loss.detach(), logits_BK.detach()
        # Repeat the loss for each image, because torchmetrics 1.9 ignores `weight` under
        # nan_strategy="disable".
        self.loss.update(loss.expand(len(labels_B)))
        self.accuracy.update(logits_BK, labels_B)
        if self.top5 is not None:
            self.top5.update(logits_BK, labels_B)
        if self.predictions is not None:
            self.predictions.update(logits_BK, labels_B)

    @property
    def mean_loss(self) -> float:
        """Mean over the images so far; nan before the first image, and after any non-finite batch loss."""
        return self._read(self.loss)

    def compute(self) -> dict[str, float]:
        """Return ``loss``, ``accuracy`` and the requested further metrics; nan before the first batch.

        If a loss was nan, all values are nan. torchmetrics counts class scores of nan as the first class, and
        the accuracy would be the share of that class. The call waits for a GPU.
        """
        values = {"loss": self.mean_loss, "accuracy": self._read(self.accuracy)}
        if self.top5 is not None:
            values["top5"] = self._read(self.top5)
        if self.predictions is not None:
            with self._peers.collective():
                values |= self.predictions.read()
        return dict.fromkeys(values, math.nan) if math.isnan(values["loss"]) else values

    def reset(self) -> None:
        """Clear the metrics for the next epoch."""
        for metric in self._metrics().values():
            metric.reset()
        if self.predictions is not None:
            self.predictions.reset()

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """Return the sums so far, by metric and by torchmetrics' name of the state."""
        states = {name: metric.metric_state.items() for name, metric in self._metrics().items()}
        return {
            name: {key: value for key, value in state if isinstance(value, Tensor)}
            for name, state in states.items()
        }

    def resume_from(self, sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the sums that :meth:`sums` returned, from any device.

        The metrics can be read after the next batch.
        """
        for name, metric in self._metrics().items():
            for key, value in sums[name].items():
                setattr(metric, key, value.to(getattr(metric, key).device))

    def _metrics(self) -> dict[str, MeanMetric | MulticlassAccuracy]:
        metrics = {"loss": self.loss, "accuracy": self.accuracy, "top5": self.top5}
        return {name: metric for name, metric in metrics.items() if metric is not None}

    def _read(self, metric: MeanMetric | MulticlassAccuracy) -> float:
        with self._peers.collective():
            return float(metric.compute()) if metric.update_called else math.nan


class Predictions(Metric):
    """The class scores and labels of an epoch, from which any number of metrics are computed at its end.

    The scores are kept on the device in fp32: 4 x N x K bytes, 200 MB for ImageNet's 50,000 validation
    images. If several processes train the trial, :meth:`compute` gathers the scores of all of them.
    """

    full_state_update = False

    logits: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor

    def __init__(self, names: Sequence[str], *, class_names: Sequence[str] = ()) -> None:
        """Create the metric without images.

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
            metric, class_name = found
            if class_name not in self._class_names:
                raise ConfigError(unknown_name_message("class", class_name, self._class_names))
            self._classes.setdefault(metric, set()).add(class_name)
        else:
            self._functions[_metric_key(name)] = load_metric(name)

    @override
    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch."""
        assert isinstance(self.logits, list)
        assert isinstance(self.labels, list)
        self.logits.append(logits_BK)
        self.labels.append(labels_B)

    def read(self) -> dict[str, float]:
        """Return :meth:`compute`; before the first batch, nan for each metric and no metrics by class."""
        if not self.update_called:
            return dict.fromkeys(self._functions, math.nan)
        return dict(self.compute())

    @override
    def compute(self) -> dict[str, float]:
        """Return the metrics by name without ``val_``.

        A class without images has no metrics.
        """
        logits_NK, labels_N = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        values = {name: float(function(logits_NK, labels_N)) for name, function in self._functions.items()}
        for metric, chosen in self._classes.items():
            values_K = _BY_CLASS[metric](logits_NK, labels_N).tolist()
            values |= {
                f"{_metric_key(metric)}/{name}": value
                for name, value in zip(self._class_names, values_K, strict=True)
                if name in chosen and not math.isnan(value)
            }
        return values


def _metric_key(name: str) -> str:
    """Return the name of a metric of the validation images without its ``val_``.

    >>> _metric_key("val_macro_f1"), _metric_key("hospital.metrics:sensitivity")
    ('macro_f1', 'sensitivity')
    """
    return (custom_metric_name(name) or name).removeprefix("val_")


def load_metric(name: str) -> MetricFunction:
    """Return the function that computes a metric from class scores (N, K) and labels (N).

    Args:
        name: a key of ``metric_names.EXTRA_METRICS``, or ``module:function``. The search's working directory
            is on the import path.

    Raises:
        ConfigError: the module or function does not exist, or importing the module raises.
    """
    if name in _EXTRA:
        return _EXTRA[name]
    function = import_function(name, what="a metric", where="metric.log")
    # It may change its arguments, from which other metrics are computed.
    return lambda logits_NK, labels_N: function(logits_NK.clone(), labels_N.clone())


def _scores(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return true positives, false positives, true and false negatives, and images of each class (K, 5)."""
    return multiclass_stat_scores(logits_NK, labels_N, num_classes=logits_NK.shape[1], average=None)


def _accuracy_K(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    hits_K, *_, images_K = _scores(logits_NK, labels_N).unbind(dim=1)
    return hits_K / images_K


def _f1_K(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    hits_K, wrong_K, _, missed_K, images_K = _scores(logits_NK, labels_N).unbind(dim=1)
    f1_K = 2 * hits_K / (2 * hits_K + wrong_K + missed_K)
    return f1_K.where(images_K > 0, math.nan)


def _against_the_rest(
    curve: Callable[[Tensor, Tensor], Tensor], logits_NK: Tensor, labels_N: Tensor
) -> Tensor:
    """Return a metric of each class against the rest (K); nan for a class without images or with all of them.

    torchmetrics would return 0 for such a class, which has no curve.
    """
    classes = logits_NK.shape[1]
    images_K = torch.bincount(labels_N, minlength=classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(positive|negative) samples .*")
        values = [
            curve(ranks_N, (labels_N == number).long())
            for number, ranks_N in enumerate(_ranks_by_class(logits_NK))
        ]
    return torch.stack(values).where((images_K > 0) & (images_K < len(labels_N)), math.nan)


#: Images whose exponentials are in memory at a time.
_CHUNK: Final = 4096


def _ranks_by_class(logits_NK: Tensor) -> Iterator[Tensor]:
    """Yield for each class numbers in 0..1 that order the images by the probability of the class (N).

    fp32 rounds the probabilities of a confident network to 1, which loses their order. The log odds keep it:
    the score of the class minus the log-sum-exp of the other scores.
    """
    tops, totals, others = [], [], []
    for chunk_NK in torch.split(logits_NK, _CHUNK):
        scores_NK = chunk_NK.double()
        top_N = scores_NK.argmax(dim=1)
        tops.append(top_N)
        totals.append(scores_NK.logsumexp(dim=1))
        others.append(scores_NK.scatter(1, top_N[:, None], -math.inf).logsumexp(dim=1))
    top_N, total_N, others_N = torch.cat(tops), torch.cat(totals), torch.cat(others)
    for number in range(logits_NK.shape[1]):
        scores_N = logits_NK[:, number].double()
        log_N = scores_N - total_N
        # The second form cancels for a probability near 1, which only the class of the highest score has.
        odds_N = torch.where(top_N == number, scores_N - others_N, log_N - torch.log1p(-log_N.exp()))
        _, ranks_N = odds_N.unique(return_inverse=True)  # type: ignore[no-untyped-call]  # torch leaves it so
        yield ranks_N.double() / len(logits_NK)


def _mean_of_classes(by_class: Callable[[Tensor, Tensor], Tensor]) -> MetricFunction:
    """Return a function for the mean over the classes for which a metric is defined, or else nan."""
    return lambda logits_NK, labels_N: by_class(logits_NK, labels_N).nanmean()


def _with_classes(function: Callable[..., Tensor], **settings: Any) -> MetricFunction:
    """Return ``function`` as a function of the class scores and labels alone."""
    return lambda logits_NK, labels_N: function(
        logits_NK, labels_N, num_classes=logits_NK.shape[1], **settings
    )


def _calibration_error(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    # 15 bins of equal width (Guo et al., ICML 2017, section 2). torchmetrics 1.9 would put images whose
    # probability is rounded to 1 into a 16th.
    probabilities_NK = logits_NK.softmax(dim=1).clamp(max=1 - 2**-24)
    return multiclass_calibration_error(
        probabilities_NK, labels_N, num_classes=logits_NK.shape[1], n_bins=15, norm="l1"
    )


_auroc_K: Final = functools.partial(_against_the_rest, binary_auroc)
_average_precision_K: Final = functools.partial(_against_the_rest, binary_average_precision)

#: The metrics of ``metric_names.CLASS_METRICS``: class scores (N, K) and labels (N) to values (K).
_BY_CLASS: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "val_accuracy": _accuracy_K,
    "val_f1": _f1_K,
    "val_auroc": _auroc_K,
    "val_average_precision": _average_precision_K,
}

#: The metrics of ``metric_names.EXTRA_METRICS``: class scores (N, K) and labels (N) to one value.
_EXTRA: Final[Mapping[str, MetricFunction]] = {
    "val_macro_accuracy": _mean_of_classes(_accuracy_K),
    "val_macro_f1": _with_classes(multiclass_f1_score, average="macro"),
    "val_auroc": _mean_of_classes(_auroc_K),
    "val_average_precision": _mean_of_classes(_average_precision_K),
    "val_cohen_kappa": _with_classes(multiclass_cohen_kappa),
    "val_calibration_error": _calibration_error,
}
