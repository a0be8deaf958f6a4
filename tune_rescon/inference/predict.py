"""Predict the classes of pictures with a trained network.

Shape legend: B images of a batch, K classes, C channels, H = W the image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tune_rescon.data.preprocessing import to_unit
from tune_rescon.errors import NetworkError, format_error
from tune_rescon.inference.pictures import Pictures
from tune_rescon.training import TrainedNetwork
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.weights import Classifier

__all__ = ["Prediction", "pixels", "predictions"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of a picture in descending order, each with its probability."""

    path: Path
    classes: tuple[tuple[str, float], ...]

    @property
    def best(self) -> tuple[str, float]:
        """The most probable class and its probability."""
        return self.classes[0]


def pixels(batch: Pictures, about: TrainedNetwork, device: torch.device | str = "cpu") -> Tensor:
    """Return the network's input before normalisation: B x C x H x W, in 0..1, on ``device``.

    The pictures are copied to the device as bytes and resized there, as in validation.

    Args:
        batch: The decoded pictures.
        about: Metadata of the network, with its preprocessing.
        device: Device of the result.
    """
    images_BCHW = torch.from_numpy(batch.images_BHWC).to(device).permute(0, 3, 1, 2)
    return to_unit(images_BCHW, about.preprocessing)


def predictions(
    network: nn.Module,
    about: TrainedNetwork,
    batches: Iterable[Pictures],
    placement: DeviceConfig,
    *,
    top: int,
    mirrored: bool = False,
    on_unknown: Callable[[Path], object] | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each picture; move the network to the device of ``placement``.

    Args:
        network: The trained network.
        about: Metadata of the network.
        batches: The decoded pictures.
        placement: Device and precision of the forward pass.
        top: Maximum number of classes per picture.
        mirrored: Also classify each picture's mirror image, and return the means of the two probabilities.
        on_unknown: Called with the path of each picture for which the network gives nan instead of
            probabilities. Such a picture has no prediction. None: raise the error.

    Raises:
        NetworkError: The network gives nan, and ``on_unknown`` is None.
    """
    classifier = placement.network(Classifier(network, about).eval())
    top = min(top, len(about.class_names))
    with torch.inference_mode():
        for batch in batches:
            with placement.active():
                pixels_BCHW = placement.images(pixels(batch, about, placement.device))
                probabilities_BK = placement.within_range(partial(classifier, pixels_BCHW))
                if mirrored:
                    flipped_BCHW = placement.images(pixels_BCHW.flip(-1))
                    flipped_BK = placement.within_range(partial(classifier, flipped_BCHW))
                    probabilities_BK = (probabilities_BK + flipped_BK) / 2
            values_BT, places_BT = probabilities_BK.topk(top, dim=1)
            for path, values, places in zip(batch.paths, values_BT.tolist(), places_BT.tolist(), strict=True):
                if not all(map(math.isfinite, values)):
                    _report_unknown(path, on_unknown)
                    continue
                named = tuple((about.class_names[k], value) for k, value in zip(places, values, strict=True))
                yield Prediction(path=path, classes=named)


def _report_unknown(path: Path, on_unknown: Callable[[Path], object] | None) -> None:
    if on_unknown is None:
        rule = "a network must give probabilities"
        raise NetworkError(format_error(rule, got=f"nan for {path}", where="network"))
    on_unknown(path)
