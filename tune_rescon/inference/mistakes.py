"""The mistakes of a network: confusion matrix, scores of classes, the most confident mistakes; an HTML page.

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
from jinja2 import Environment, StrictUndefined
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
    "mistakes_page",
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

#: The columns of the table of scores. F1 also counts the images of other classes that are taken for this one.
CLASS_HEADINGS: Final = ("class", "images", "right", "accuracy", "F1")

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
    right: int
    """Images of the class that are classified correctly."""
    false_positives: int
    """Images of other classes that are taken for this one."""

    @property
    def accuracy(self) -> float:
        """The share of the class's images that are classified correctly."""
        return self.right / self.images

    @property
    def f1(self) -> float:
        """The harmonic mean of the recall, which is the accuracy, and the precision."""
        return 2 * self.right / (self.images + self.right + self.false_positives)


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
        rights, totals = np.diag(self.confusion_KK).tolist(), self.confusion_KK.sum(axis=1).tolist()
        predicted = self.confusion_KK.sum(axis=0).tolist()
        scores = [
            ClassScore(name=name, images=images, right=right, false_positives=count - right)
            for name, images, right, count in zip(self.class_names, totals, rights, predicted, strict=True)
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
    classifier = placement.network(Classifier(network, about).eval())
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
    right = mistakes.images - mistakes.wrong
    line = f"{right} of {mistakes.images} {split_name} images are right ({right / mistakes.images:.2%})"
    if mistakes.left_out:
        verb = "was" if mistakes.left_out == 1 else "were"
        line += f"; {counted(mistakes.left_out, 'other')} {verb} not evaluated"
    pairs = (
        f"{count} of {total} images of {label} are taken for {predicted}"
        for label, predicted, count, total in mistakes.confused_pairs()[:5]
    )
    return [line, *pairs]


def mistakes_document(mistakes: Mistakes, *, split_name: str) -> dict[str, Any]:
    """Return the plain values of the mistakes that the report of a search shows.

    Args:
        mistakes: The mistakes.
        split_name: The name of the images, "validation" or "test".
    """
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
                "picture": _data_uri(mistake.image_HWC, max_side=THUMBNAIL),
            }
            for mistake in mistakes.worst[:MAX_IN_REPORT]
        ],
    }


def mistakes_page(mistakes: Mistakes, *, title: str, split_name: str) -> str:
    """Return an HTML page with the accuracy, the confusion matrix, the classes and the worst mistakes.

    Args:
        mistakes: The mistakes.
        title: The title of the page.
        split_name: The name of the images, "validation" or "test".
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    has_matrix = len(mistakes.class_names) <= MAX_MATRIX
    return environment.from_string(_PAGE).render(
        title=title,
        accuracy=mistakes_lines(mistakes, split_name=split_name)[0],
        names=mistakes.class_names,
        rows=list(_matrix_rows(mistakes)) if has_matrix else [],
        pairs=mistakes.confused_pairs(),
        headings=CLASS_HEADINGS,
        classes=_class_rows(mistakes),
        worst=[(mistake, _data_uri(mistake.image_HWC)) for mistake in mistakes.worst],
        wrong=mistakes.wrong,
    )


def _class_rows(mistakes: Mistakes) -> list[list[str]]:
    """Return the cells of the worst classes, under :data:`CLASS_HEADINGS`."""
    return [
        [score.name, str(score.images), str(score.right), f"{score.accuracy:.1%}", f"{score.f1:.3f}"]
        for score in mistakes.by_class()[:MAX_CLASSES]
    ]


def _matrix_rows(mistakes: Mistakes) -> Iterator[tuple[str, list[tuple[int, float, bool]]]]:
    """Yield each class with its cells: the count, its share of the class, and whether it is right."""
    matrix = zip(mistakes.class_names, mistakes.confusion_KK.tolist(), strict=True)
    for row, (name, counts) in enumerate(matrix):
        total = sum(counts) or 1
        yield name, [(count, count / total, column == row) for column, count in enumerate(counts)]


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


_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px system-ui; margin: 2rem; color-scheme: light dark }
table { border-collapse: collapse } td, th { padding: .2rem .5rem; text-align: right; font-weight: normal }
th.class { max-width: 12rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
td.right { background: rgba(46, 125, 50, var(--share)) }
td.wrong { background: rgba(198, 40, 40, var(--share)) }
.grid { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; width: 10rem } img { width: 9rem; height: 9rem; object-fit: contain }
figcaption { font-size: .85rem; overflow-wrap: anywhere }
</style>
<h1>{{ title }}</h1>
<p>{{ accuracy }}</p>
{% if rows %}
<h2>Confusion matrix</h2>
<p>A row is the class of the images, a column the prediction. The shade is the share of the row.</p>
<table>
<tr><th></th>{% for name in names %}<th class="class" title="{{ name }}">{{ name }}</th>{% endfor %}</tr>
{% for name, cells in rows %}
<tr><th class="class" title="{{ name }}">{{ name }}</th>
{% for count, share, right in cells %}
<td class="{{ 'right' if right else 'wrong' }}" style="--share: {{ '%.2f' | format(share) }}">{{ count }}</td>
{% endfor %}
</tr>
{% endfor %}
</table>
{% endif %}
{% if pairs %}
<h2>Most confused classes</h2>
<table>
<tr><th>class</th><th>taken for</th><th>images</th><th>of</th></tr>
{% for label, predicted, count, total in pairs %}
<tr><td>{{ label }}</td><td>{{ predicted }}</td><td>{{ count }}</td><td>{{ total }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if classes %}
<h2>By class</h2>
<p>{{ classes | length }} of {{ names | length }} classes, the worst accuracy first.</p>
<table>
<tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for cells in classes %}
<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if worst %}
<h2>Most confident mistakes</h2>
<p>{{ worst | length }} of {{ wrong }}, as the network sees them. A wrong label is a common cause.</p>
<div class="grid">
{% for mistake, image in worst %}
<figure><img src="{{ image }}" alt="">
<figcaption>{{ mistake.label }}, taken for <b>{{ mistake.predicted }}</b>
({{ '%.1f' | format(100 * mistake.probability) }} %)
</figcaption></figure>
{% endfor %}
</div>
{% endif %}
</html>
"""
