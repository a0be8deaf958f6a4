"""The metrics of a trial: their names, and which direction is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from tune_rescon.user_code import split_function

__all__ = [
    "BY_CLASS",
    "CHECKPOINT_SECONDS",
    "CLASS_METRICS",
    "EXTRA_METRICS",
    "FIRST_STEP_SECONDS",
    "GPU_METRICS",
    "GPU_UTILISATION",
    "MAX_CLASSES_LOGGED",
    "METRICS",
    "PEAK_MEMORY",
    "TEST_METRICS",
    "VALIDATION_SECONDS",
    "MetricAt",
    "class_metric",
    "custom_metric_name",
    "is_extra_metric",
    "is_test_metric",
    "metric_mode",
    "objective_names",
    "watched_metric",
]

#: The metrics that a trial reports after each epoch, and which direction is better. "" means neither: the
#: metric is a measurement, not an objective.
METRICS: Final[Mapping[str, str]] = {
    "train_loss": "min",
    "train_accuracy": "max",
    "val_loss": "min",
    "val_accuracy": "max",
    "val_top5": "max",
    "learning_rate": "",
    "images_per_second": "",
    "epoch_seconds": "",
}


#: Further metrics of the validation images. A trial reports only those in ``metric.log``, because they need
#: the class scores of all images at once. ``macro_`` metrics give every class the same weight; ``auroc`` and
#: ``average_precision`` are means over the classes, each against the rest; ``calibration_error`` is the
#: expected calibration error in 15 bins.
EXTRA_METRICS: Final[Mapping[str, str]] = {
    "val_macro_accuracy": "max",
    "val_macro_f1": "max",
    "val_auroc": "max",
    "val_average_precision": "max",
    "val_cohen_kappa": "max",
    "val_calibration_error": "min",
}


#: The metrics of the validation images that exist for each class: the accuracy on its images, its F1 score,
#: and the areas under its curves against the rest. ``val_f1/cat`` is the F1 score of the class ``cat``. For
#: each of them a larger value is better.
CLASS_METRICS: Final = ("val_accuracy", "val_f1", "val_auroc", "val_average_precision")

#: The names in ``metric.log`` that stand for all classes: ``val_f1_by_class`` for a ``val_f1/CLASS`` of each.
BY_CLASS: Final = tuple(f"{name}_by_class" for name in CLASS_METRICS)

#: The maximum number of classes whose metrics may be logged. The record and MLflow have a row for each value:
#: nine million rows for 1,000 classes, 90 epochs and 100 trials.
MAX_CLASSES_LOGGED: Final = 100


#: The metrics that are measured once, on the test images, after the last epoch. A trial that also trains on
#: the validation images reports them, because no other images are left to evaluate it. It also reports its
#: accuracy on each class, as ``test_accuracy/CLASS``.
TEST_METRICS: Final[Mapping[str, str]] = {
    "test_loss": "min",
    "test_accuracy": "max",
    "test_top5": "max",
    "test_calibration_error": "",
    "test_images_per_second": "",
}


#: The peak memory of the trial's tensors on the GPU since the trial started, in million bytes. A CPU trial
#: does not report it, because the memory of a worker process also includes its libraries and the remains of
#: earlier trials.
PEAK_MEMORY: Final = "peak_memory_mb"

#: Share of an epoch's time in which the GPU ran a kernel, 0..1: the mean of NVML's samples, one a second. If
#: trials share the GPU, all of them are measured together.
GPU_UTILISATION: Final = "gpu_utilisation"

#: Seconds of an epoch in which the GPU may have been idle, by cause. ``first_step_seconds``: from the
#: start or resume of the epoch to the end of the first training step since the trial was started or resumed.
#: ``validation_seconds``: the validation, and the estimate of batch norm's statistics before it.
#: ``checkpoint_seconds``: the part of writing the epoch's files for which training waits.
FIRST_STEP_SECONDS: Final = "first_step_seconds"
VALIDATION_SECONDS: Final = "validation_seconds"
CHECKPOINT_SECONDS: Final = "checkpoint_seconds"

#: The metrics that only a trial on a GPU reports. One that could not be measured is missing.
GPU_METRICS: Final = (
    PEAK_MEMORY,
    GPU_UTILISATION,
    FIRST_STEP_SECONDS,
    VALIDATION_SECONDS,
    CHECKPOINT_SECONDS,
)


#: The epoch whose metric is the trial's value and whose network is kept: the best or the last one.
MetricAt: TypeAlias = Literal["best", "last"]


def metric_mode(name: str) -> str:
    """Return ``"max"`` or ``"min"`` for an objective, and ``""`` for a metric that is not an objective."""
    known = {**METRICS, **EXTRA_METRICS, **TEST_METRICS}
    return known[name] if class_metric(name) is None else "max"


def objective_names() -> list[str]:
    """Return the names of all metrics by which trials can be compared."""
    return [name for name in (*METRICS, *EXTRA_METRICS, *TEST_METRICS) if metric_mode(name)]


def class_metric(name: str) -> tuple[str, str] | None:
    """Return the metric and the class of ``METRIC/CLASS``; None for the name of any other metric.

    >>> class_metric("val_f1/cat"), class_metric("val_f1_by_class"), class_metric("val_loss/cat")
    (('val_f1', 'cat'), None, None)
    """
    metric, _, class_name = name.partition("/")
    return (metric, class_name) if class_name and metric in CLASS_METRICS else None


def is_extra_metric(name: str) -> bool:
    """Return whether a metric is one of ours that needs the class scores of all validation images.

    >>> [is_extra_metric(name) for name in ("val_auroc", "val_f1/cat", "val_f1_by_class", "val_loss")]
    [True, True, True, False]
    """
    return name in EXTRA_METRICS or name in BY_CLASS or class_metric(name) is not None


def custom_metric_name(function: str) -> str | None:
    """Return the name of a metric that a user's function computes; None if it is not ``module:function``.

    >>> custom_metric_name("hospital.metrics:sensitivity"), custom_metric_name("val_auroc")
    ('val_sensitivity', None)
    """
    parts = split_function(function)
    return None if parts is None else f"val_{parts[1]}"


def is_test_metric(name: str) -> bool:
    """Return whether a metric is measured on the test images, and therefore only once.

    >>> is_test_metric("test_accuracy"), is_test_metric("test_accuracy/cat"), is_test_metric("val_accuracy")
    (True, True, False)
    """
    return name.partition("/")[0] in TEST_METRICS


def watched_metric(name: str) -> str:
    """Return the metric that shows a trial's progress after each epoch.

    This is the metric itself if every epoch reports it, and the training loss otherwise.

    >>> watched_metric("val_accuracy"), watched_metric("test_accuracy")
    ('val_accuracy', 'train_loss')
    """
    return "train_loss" if is_test_metric(name) else name
