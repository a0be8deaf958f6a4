"""The metrics of an epoch, accumulated on the device until they are read.

Shapes: B images of a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassStatScores,
)
from typing_extensions import override

from tune_rescon.training.distributed import SINGLE_PROCESS, ProcessGroup
from tune_rescon.training.extra_metrics import Predictions, accuracy_by_class

__all__ = ["EpochMetrics", "FinalMetrics"]

#: ImageNet's second metric: the label is among the five highest scores.
TOP_K = 5


class EpochMetrics(nn.Module):
    """Mean loss, accuracy and the requested further metrics over the images of an epoch.

    If several processes train the trial, reading is an exchange: torchmetrics sums over all processes.
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
            top5: True to measure top-5 accuracy. With fewer than five classes it is top-``classes``, always
                1.
            extra: names of metrics for :class:`.Predictions`.
            class_names: in the order of the labels; needed if ``extra`` has metrics by class.
            peers: the processes that train the trial together.
        """
        super().__init__()
        self._peers = peers
        # torchmetrics' argument checks and its NaN handling read values back, which would make a GPU wait
        # each step.
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

        If a loss was nan, all values are nan: torchmetrics takes class scores of nan for the first class, so
        that a network without an answer would have the accuracy of that class's share. The call waits for a
        GPU.
        """
        values = {"loss": self.mean_loss, "accuracy": self._read(self.accuracy)}
        if self.top5 is not None:
            values["top5"] = self._read(self.top5)
        if self.predictions is not None:
            with self._peers.collective():
                values |= self.predictions.read()
        return _unknown_if_lost(values)

    def reset(self) -> None:
        """Clear the metrics for the next epoch."""
        for metric in self._parts().values():
            metric.reset()
        if self.predictions is not None:
            self.predictions.reset()

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """Return the sums so far, by metric and by torchmetrics' name of the sum."""
        states = {name: metric.metric_state.items() for name, metric in self._parts().items()}
        return {
            name: {key: value for key, value in state if isinstance(value, Tensor)}
            for name, state in states.items()
        }

    def resume_from(self, sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the sums that :meth:`sums` returned, from any device.

        The metrics can be read after the next batch.
        """
        for name, metric in self._parts().items():
            for key, value in sums[name].items():
                setattr(metric, key, value.to(getattr(metric, key).device))

    def _parts(self) -> dict[str, MeanMetric | MulticlassAccuracy]:
        parts = {"loss": self.loss, "accuracy": self.accuracy, "top5": self.top5}
        return {name: metric for name, metric in parts.items() if metric is not None}

    def _read(self, metric: MeanMetric | MulticlassAccuracy) -> float:
        with self._peers.collective():
            return float(metric.compute()) if metric.update_called else math.nan


class FinalMetrics(EpochMetrics):
    """The metrics of a finished network: also the accuracy of each class, and the calibration error."""

    def __init__(self, class_names: Sequence[str], *, peers: ProcessGroup = SINGLE_PROCESS) -> None:
        """Create empty metrics.

        Args:
            class_names: in the order of the labels.
            peers: the processes that train the trial together.
        """
        classes = len(class_names)
        super().__init__(classes, top5=True, peers=peers)
        self.by_class = MulticlassStatScores(classes, average=None, validate_args=False)
        # Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017, section 2).
        self.calibration = MulticlassCalibrationError(classes, n_bins=15, norm="l1", validate_args=False)
        self._names = tuple(class_names)

    @override
    def update(self, loss: Tensor, logits_BK: Tensor, labels_B: Tensor) -> None:
        super().update(loss, logits_BK, labels_B)
        self.by_class.update(logits_BK.detach(), labels_B)
        self.calibration.update(logits_BK.detach().softmax(dim=1), labels_B)

    @override
    def compute(self) -> dict[str, float]:
        """Return the base class's metrics and, after the first batch, those of this class.

        These are ``calibration_error``, and ``accuracy/CLASS`` of each class that has images.
        """
        known = super().compute()
        if not self.by_class.update_called:
            return known
        with self._peers.collective():
            scores_K5, error = self.by_class.compute(), float(self.calibration.compute())
        by_class = zip(self._names, accuracy_by_class(scores_K5).tolist(), strict=True)
        named = {f"accuracy/{name}": value for name, value in by_class if not math.isnan(value)}
        return _unknown_if_lost({**known, "calibration_error": error, **named})

    @override
    def reset(self) -> None:
        super().reset()
        self.by_class.reset()
        self.calibration.reset()


def _unknown_if_lost(values: dict[str, float]) -> dict[str, float]:
    """Return ``values``, or nan for each of them if the loss is nan."""
    return dict.fromkeys(values, math.nan) if math.isnan(values["loss"]) else values
