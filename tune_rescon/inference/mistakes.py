"""The mistakes of a network: confusion matrix, scores of classes, the most confident mistakes.

Shape legend: N images, B images of a batch, K classes, H = W the stored side, C channels.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from tune_rescon.data.dataset import ImageDataset, Split
from tune_rescon.data.preprocessing import to_unit
from tune_rescon.errors import DataError, NetworkError, counted, format_error
from tune_rescon.inference.model import probabilities
from tune_rescon.training import TrainedNetwork
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.weights import Classifier

__all__ = [
    "ClassScore",
    "Mistake",
    "Mistakes",
    "find_mistakes",
    "mistakes_document",
    "mistakes_lines",
]

#: Maximum number of the most confident mistakes that are shown.
MAX_WORST: Final = 40

#: Maximum number of them in a search's report, and the largest side of their pictures there, in pixels.
MAX_IN_REPORT: Final = 24
THUMBNAIL: Final = 128

#: Maximum number of classes of a confusion matrix that is shown. A larger one cannot be read.
MAX_MATRIX: Final = 40

#: Maximum number of the most confused pairs of classes that are shown.
MAX_PAIRS: Final = 10

#: Maximum number of classes, the worst first, whose scores are shown.
MAX_CLASSES: Final = 40

#: Number of images of a batch.
_BATCH: Final = 64

#: Smallest side of an image that is shown, in pixels.
_MIN_SIDE: Final = 96


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that the network classifies incorrectly."""

    image_HWC: npt.NDArray[np.uint8]
    label: str
    """The class that the image has."""
    predicted: str
    """The class that the network predicts."""
    probability: float
    """The probability that the network gives to its prediction."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well the network classifies the images of a class."""

    name: str
    images: int
    correct: int
    """Images of the class that are classified correctly."""
    false_positives: int
    """Images of other classes that are predicted as this one."""

    @property
    def accuracy(self) -> float:
        """The share of the class's images that are classified correctly."""
        return self.correct / self.images

    @property
    def f1(self) -> float:
        """The harmonic mean of the recall, which is the accuracy, and the precision."""
        return 2 * self.correct / (self.images + self.correct + self.false_positives)


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The predictions of a network for images whose classes are known."""

    class_names: tuple[str, ...]
    confusion_KK: npt.NDArray[np.int64]
    """Number of images by class (row) and prediction (column)."""
    worst: tuple[Mistake, ...]
    """The most confident mistakes, the most confident first."""
    left_out: int = 0
    """Number of images, chosen at random, for which the time was too short."""

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion_KK.sum())

    @property
    def wrong(self) -> int:
        """Number of images that the network gets wrong."""
        return self.images - int(np.trace(self.confusion_KK))

    def by_class(self) -> list[ClassScore]:
        """Return the scores of the classes that have images, the worst accuracy first."""
        correct, totals = np.diag(self.confusion_KK).tolist(), self.confusion_KK.sum(axis=1).tolist()
        predicted = self.confusion_KK.sum(axis=0).tolist()
        scores = [
            ClassScore(name=name, images=images, correct=hits, false_positives=count - hits)
            for name, images, hits, count in zip(self.class_names, totals, correct, predicted, strict=True)
            if images
        ]
        return sorted(scores, key=lambda score: (score.accuracy, score.f1))

    def confused_pairs(self) -> list[tuple[str, str, int, int]]:
        """Return the most confused pairs: class, prediction, number, and images of the class."""
        off_KK = self.confusion_KK - np.diag(np.diag(self.confusion_KK))
        rows, columns = np.unravel_index(
            np.argsort(-off_KK, axis=None, kind="stable")[:MAX_PAIRS], off_KK.shape
        )
        return [
            (self.class_names[i], self.class_names[j], int(off_KK[i, j]), int(self.confusion_KK[i].sum()))
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
            if off_KK[i, j]
        ]


def find_mistakes(
    network: nn.Module,
    about: TrainedNetwork,
    dataset: ImageDataset,
    split: Split,
    *,
    placement: DeviceConfig,
    seconds: float = math.inf,
) -> Mistakes:
    """Predict the classes of all images of a split, as validation does, and compare them with the labels.

    Args:
        network: The trained network.
        about: Metadata of the network.
        dataset: The images with which the network was trained.
        split: Their split to evaluate: ``dataset.val`` or ``dataset.test``.
        placement: Device and precision of the forward pass.
        seconds: Time after which no further batch is predicted. If it is finite, the order of the images is
            random.

    Raises:
        DataError: The images are not those of the training, or the split has none.
        NetworkError: The network returns nan instead of probabilities.
    """
    if about.dataset != dataset.digest:
        rule = "a network must be evaluated on the images, in the splits, with which it was trained"
        raise DataError(format_error(rule, got="images that have changed since", where="--errors"))
    if not len(split):
        raise DataError(format_error("there must be images to evaluate on", got="none", where="--errors"))
    count = len(about.class_names)
    confusion_KK = np.zeros((count, count), dtype=np.int64)
    wrong: list[tuple[float, int, int, int]] = []
    order_N = np.arange(len(split))
    if math.isfinite(seconds):
        order_N = np.random.default_rng(0).permutation(order_N)
    position, began = 0, time.monotonic()
    for probabilities_BK, labels_B in _predicted(network, about, split, placement=placement, order_N=order_N):
        values_B, chosen_B = probabilities_BK.max(dim=1)
        if not values_B.isfinite().all():
            rule = "a network must give probabilities"
            raise NetworkError(format_error(rule, got="nan for some images", where="--errors"))
        np.add.at(confusion_KK, (labels_B, chosen_B.numpy()), 1)
        for index in np.flatnonzero(chosen_B.numpy() != labels_B):
            place = int(order_N[position + int(index)])
            wrong.append((float(values_B[index]), place, int(labels_B[index]), int(chosen_B[index])))
        position += len(labels_B)
        if time.monotonic() - began > seconds:
            break
    return Mistakes(
        class_names=about.class_names,
        confusion_KK=confusion_KK,
        worst=_most_confident(wrong, about, split),
        left_out=len(split) - position,
    )


def _most_confident(
    wrong: list[tuple[float, int, int, int]], about: TrainedNetwork, split: Split
) -> tuple[Mistake, ...]:
    """Return the most confident of ``wrong``: probability, index in ``split``, label and prediction each."""
    worst = []
    by_confidence = sorted(wrong, key=lambda mistake: (-mistake[0], mistake[1]))
    for probability, index, label, predicted in by_confidence[:MAX_WORST]:
        images_BHWC, _ = split.gather(np.array([index]))
        worst.append(
            Mistake(
                image_HWC=images_BHWC[0],
                label=about.class_names[label],
                predicted=about.class_names[predicted],
                probability=probability,
            )
        )
    return tuple(worst)


def _predicted(
    network: nn.Module,
    about: TrainedNetwork,
    split: Split,
    *,
    placement: DeviceConfig,
    order_N: npt.NDArray[np.int64],
) -> Iterator[tuple[torch.Tensor, npt.NDArray[np.int64]]]:
    """Yield the probabilities (B, K), on the CPU, and the labels of each batch."""
    classifier = placement.move_network(Classifier(network, about).eval())
    with torch.inference_mode():
        for first in range(0, len(order_N), _BATCH):
            images_BHWC, labels_B = split.gather(order_N[first : first + _BATCH])
            images_BCHW = torch.from_numpy(images_BHWC).to(placement.device).permute(0, 3, 1, 2)
            with placement.active():
                pixels_BCHW = to_unit(images_BCHW, about.preprocessing)
                probabilities_BK = probabilities(classifier, pixels_BCHW, placement)
            yield probabilities_BK.cpu(), labels_B


def mistakes_lines(mistakes: Mistakes, *, split_name: str) -> list[str]:
    """Return lines for a terminal: the accuracy, and the most confused pairs of classes.

    Args:
        mistakes: The mistakes.
        split_name: The name of the images, "validation" or "test".
    """
    correct = mistakes.images - mistakes.wrong
    share = f"{correct / mistakes.images:.2%}"
    line = f"{correct} of {mistakes.images} {split_name} images are classified correctly ({share})"
    if mistakes.left_out:
        verb = "was" if mistakes.left_out == 1 else "were"
        line += f"; {counted(mistakes.left_out, 'other')} {verb} not evaluated"
    pairs = (
        f"{count} of {total} images of {label} are predicted as {predicted}"
        for label, predicted, count, total in mistakes.confused_pairs()[:5]
    )
    return [line, *pairs]


def mistakes_document(mistakes: Mistakes, *, split_name: str, in_report: bool = False) -> dict[str, Any]:
    """Return the mistakes as plain values, from which a page can be made.

    Args:
        mistakes: The mistakes.
        split_name: The name of the images, "validation" or "test".
        in_report: True for the report of a search, which has fewer and smaller pictures.
    """
    most, max_side = (MAX_IN_REPORT, THUMBNAIL) if in_report else (MAX_WORST, None)
    has_matrix = len(mistakes.class_names) <= MAX_MATRIX
    return {
        "words": mistakes_lines(mistakes, split_name=split_name)[0],
        "wrong": mistakes.wrong,
        "class_names": list(mistakes.class_names),
        "confusion": mistakes.confusion_KK.tolist() if has_matrix else [],
        "pairs": [list(pair) for pair in mistakes.confused_pairs()],
        "classes": _class_rows(mistakes),
        "worst": [
            {
                "label": mistake.label,
                "predicted": mistake.predicted,
                "probability": mistake.probability,
                "picture": _data_uri(mistake.image_HWC, max_side=max_side),
            }
            for mistake in mistakes.worst[:most]
        ],
    }


def _class_rows(mistakes: Mistakes) -> list[list[str]]:
    """Return name, images, correct images, accuracy and F1 of the worst classes."""
    return [
        [score.name, str(score.images), str(score.correct), f"{score.accuracy:.1%}", f"{score.f1:.3f}"]
        for score in mistakes.by_class()[:MAX_CLASSES]
    ]


def _data_uri(image_HWC: npt.NDArray[np.uint8], *, max_side: int | None = None) -> str:
    """Return an image as a PNG in a data URI. Its sides are scaled down to at most ``max_side`` pixels."""
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC)
    if image.width < _MIN_SIDE:
        # Pixels are repeated, because a browser would blur the small image.
        factor = -(-_MIN_SIDE // image.width)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif max_side is not None:
        image.thumbnail((max_side, max_side))
    data = io.BytesIO()
    image.save(data, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
