"""Load the network that a user names, and predict the classes of pictures with it.

Shape legend: B images of a batch, K classes, C channels, H = W the image size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tune_rescon.command import print_line
from tune_rescon.config import TrialConfig, trial_name
from tune_rescon.data.preprocessing import to_unit
from tune_rescon.errors import NetworkError, StorageError, format_error
from tune_rescon.inference.pictures import Pictures
from tune_rescon.models import ExternalSpec
from tune_rescon.storage import RemoteError, StorageUrl, local_file
from tune_rescon.training import TrainedNetwork, load_trained
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.memory import ran_out_of_memory
from tune_rescon.training.weights import Classifier, load_exported
from tune_rescon.tuning import SearchFolder, SearchLocation, StudyResult, TrialRecord, read_search
from tune_rescon.tuning.input_digests import function_digest

__all__ = [
    "Prediction",
    "changed_network_message",
    "check_checkpoint",
    "load_model",
    "pixels",
    "predictions",
    "probabilities",
]

#: Suffixes of model files. A name with one of them is never the name of a search.
_MODEL_SUFFIXES: Final = (".ckpt", ".safetensors", ".pt", ".pth", ".pt2", ".onnx")


def load_model(model: str, location: SearchLocation) -> tuple[nn.Module, TrainedNetwork]:
    """Load the network that ``model`` names, on the CPU and in eval mode, and its metadata.

    Args:
        model: Name of a search (for its best trial), ``models:/NAME@ALIAS`` of MLflow, or a file: a
            ``best.ckpt`` or a file written by ``export --format safetensors``.
        location: Location of the searches.

    Raises:
        StorageError: The model does not exist, or its file is damaged, of another kind, or not readable now.
    """
    if model.startswith("models:/"):
        # Imported here because it imports MLflow, which no other kind of model needs.
        from tune_rescon.tracking.registry import registered_checkpoint

        with registered_checkpoint(model, tracking_uri=_tracking_uri(location)) as file:
            return load_trained(file)
    path = Path(model)
    # `path.is_file()` would raise if the text is too long for a file name.
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file() may raise
        is_exported = path.suffix == ".safetensors"
        return load_exported(path, where="MODEL") if is_exported else load_trained(path)
    # The name of a search may contain dots, as that of a reproduction does (`-0.1x0.05`).
    if path.suffix in _MODEL_SUFFIXES or len(path.parts) > 1:
        rule = "MODEL must be a search's name, models:/NAME@ALIAS, or a file that exists"
        raise StorageError(format_error(rule, got=model))
    result = read_search(location, model, where="MODEL")
    best, checkpoint = _best_checkpoint(result)
    try:
        with local_file(checkpoint) as file:
            network, about = load_trained(file)
    except RemoteError as error:
        rule = "the best trial's checkpoint must be readable"
        raise StorageError(format_error(rule, got=str(error), where="MODEL")) from error
    check_checkpoint(about, result, best)
    if (message := changed_network_message(about, result)) is not None:
        print_line(message, err=True)
    return network, about


def check_checkpoint(about: TrainedNetwork, result: StudyResult, trial: TrialRecord) -> None:
    """Check that the checkpoint in a trial's folder holds the network of this trial.

    The files of other searches have the same names, because their trials have the same numbers.

    Args:
        about: Metadata of the network in the trial's checkpoint.
        result: The search.
        trial: The trial.

    Raises:
        StorageError: The network was trained with another configuration, seed or images.
    """
    # Early versions recorded no origin, and the space may have changed since.
    origin = trial.origin
    config = None if origin is None else TrialConfig.from_dict(origin.config).without_passwords()
    same = {
        "configuration": config is None or about.config.without_passwords() == config,
        "seed": origin is None or about.seed == origin.seed,
        "images": not result.images or about.dataset in result.images.values(),
    }
    other = [name for name, is_same in same.items() if not is_same]
    if other:
        rule = f"the checkpoint of {trial_name(trial.number)} must hold the network that this trial trained"
        got = f"{result.checkpoint(trial)}, of a training with another {', '.join(other)}"
        hint = "Copy the folder's `checkpoints` again from where this search ran."
        raise StorageError(format_error(rule, got=got, where="MODEL", hint=hint))


def changed_network_message(about: TrainedNetwork, result: StudyResult) -> str | None:
    """Return a message if the code of a user's network has changed since the search; None if it has not.

    Args:
        about: Metadata of the network.
        result: The search that trained it.

    Raises:
        ConfigError: The network's function cannot be imported.
    """
    if not isinstance(about.spec, ExternalSpec) or about.spec.network not in result.code:
        return None
    name = about.spec.network
    if function_digest(name) in (result.code[name], None):
        return None
    return (
        f"The code of {name} has changed since {result.name}. The weights were trained with the"
        " earlier code; with the present one they may mean nothing."
    )


def _best_checkpoint(result: StudyResult) -> tuple[TrialRecord, str]:
    """Return a search's best trial, and the path or URL of its checkpoint.

    Raises:
        StorageError: No trial has a checkpoint yet, or the file is missing.
    """
    best = result.best
    checkpoint = result.checkpoint(best) if best else None
    if best is None or checkpoint is None:
        rule = "a search must have a best trial with its checkpoint"
        raise StorageError(format_error(rule, got=f"{result.name}, which has none yet", where="MODEL"))
    if result.kept_checkpoint(best) is None:
        rule = "the best trial's checkpoint must be in the search's folder"
        hint = "Copy the folder's `checkpoints` from where the search ran."
        got = f"{result.name}, where {checkpoint} is missing"
        raise StorageError(format_error(rule, got=got, where="MODEL", hint=hint))
    return best, checkpoint


def _tracking_uri(location: SearchLocation) -> str:
    """Return the first variable that names an MLflow, or the MLflow store of the storage if none is set."""
    for variable in ("TUNE_RESCON_TRACKING_URI", "MLFLOW_TRACKING_URI"):
        if uri := os.environ.get(variable):
            return uri
    if isinstance(location.storage, StorageUrl):
        rule = "MLflow must be named for a storage at a URL"
        raise StorageError(format_error(rule, got="no TUNE_RESCON_TRACKING_URI", where="MODEL"))
    return SearchFolder(storage=location.storage.resolve(), name="any").mlflow_uri


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


def probabilities(classifier: nn.Module, pixels_BCHW: Tensor, placement: DeviceConfig) -> Tensor:
    """Return the probabilities of images (B, K), computed in the precision of ``placement``.

    If the memory is too small for all images at once, they are computed in halves, as in a validation.

    Args:
        classifier: The network with its normalisation and softmax, on the device of ``placement``.
        pixels_BCHW: The images, in 0..1.
        placement: Device and precision of the forward pass.
    """
    try:
        return placement.within_range(partial(classifier, placement.move_images(pixels_BCHW)))
    except RuntimeError as error:
        if len(pixels_BCHW) == 1 or not ran_out_of_memory(error):
            raise
    # Outside the handler, because the exception holds the tensors that did not fit.
    halves = pixels_BCHW.tensor_split(2)
    return torch.cat([probabilities(classifier, half_BCHW, placement) for half_BCHW in halves])


def predictions(
    network: nn.Module,
    about: TrainedNetwork,
    batches: Iterable[Pictures],
    placement: DeviceConfig,
    *,
    top: int,
    mirrored: bool = False,
    on_nan: Callable[[Path], object] | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each picture; move the network to the device of ``placement``.

    Args:
        network: The trained network.
        about: Metadata of the network.
        batches: The decoded pictures.
        placement: Device and precision of the forward pass.
        top: Maximum number of classes per picture.
        mirrored: Also classify each picture's mirror image, and return the means of the two probabilities.
        on_nan: Called with the path of each picture for which the network returns nan instead of
            probabilities. Such a picture gets no prediction. None: raise an error.

    Raises:
        NetworkError: The network returns nan, and ``on_nan`` is None.
    """
    classifier = placement.move_network(Classifier(network, about).eval())
    top = min(top, len(about.class_names))
    with torch.inference_mode():
        for batch in batches:
            with placement.active():
                pixels_BCHW = pixels(batch, about, placement.device)
                probabilities_BK = probabilities(classifier, pixels_BCHW, placement)
                if mirrored:
                    flipped_BK = probabilities(classifier, pixels_BCHW.flip(-1), placement)
                    probabilities_BK = (probabilities_BK + flipped_BK) / 2
            values_BT, places_BT = probabilities_BK.topk(top, dim=1)
            for path, values, places in zip(batch.paths, values_BT.tolist(), places_BT.tolist(), strict=True):
                if not all(map(math.isfinite, values)):
                    _report_nan(path, on_nan)
                    continue
                classes = tuple(
                    (about.class_names[k], value) for k, value in zip(places, values, strict=True)
                )
                yield Prediction(path=path, classes=classes)


def _report_nan(path: Path, on_nan: Callable[[Path], object] | None) -> None:
    if on_nan is None:
        rule = "a network must give probabilities"
        raise NetworkError(format_error(rule, got=f"nan for {path}", where="network"))
    on_nan(path)
