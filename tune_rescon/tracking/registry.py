"""The winner as an MLflow model: anybody with torch can load it, without this package."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import mlflow.artifacts
import mlflow.pytorch
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from tune_rescon.errors import StorageError, format_error
from tune_rescon.storage import local_file
from tune_rescon.training import TrainedNetwork, load_trained
from tune_rescon.training.weights import Classifier

__all__ = [
    "exported",
    "registered_checkpoint",
]


#: Where MLflow puts what belongs to a model, and what of ours is there.
_KEPT: Final = "extra_files/best.ckpt"

_URI: Final = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")

#: Images of the example a model is traced and shown with: not 1, which torch would take for a constant.
EXAMPLES = 2


@contextmanager
def exported(checkpoint: str) -> Iterator[Path]:
    """The network of a ``best.ckpt``, at a path or a URL, as an MLflow model in a folder for the block.

    torch's own export format: no code of anybody's is run when it is loaded, and none is needed.

    Raises:
        StorageError: the file is missing or damaged.
    """
    with local_file(checkpoint) as file, tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        network, about = load_trained(file)
        yield _saved(network, about, file, Path(folder) / "model")


def _saved(network: nn.Module, about: TrainedNetwork, checkpoint: Path, path: Path) -> Path:
    side, channels = about.spec.image_size, len(about.mean)
    shape = (EXAMPLES, channels, side, side)
    example_BCHW = np.random.default_rng(0).random(shape, dtype=np.float32)
    mlflow.pytorch.save_model(
        Classifier(network, about).eval(),
        str(path),
        signature=_signature(channels, side, len(about.class_names)),
        input_example=example_BCHW,
        serialization_format="pt2",
        # Given, for MLflow finds them out by loading the model in another process.
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
        metadata={
            "class_names": list(about.class_names),
            "dataset": about.dataset,
            "preprocessing": about.preprocessing.to_dict(),
        },
        # For whoever has this package: a network to export, and not its program alone.
        extra_files=[str(checkpoint)],
    )
    return path


@contextmanager
def registered_checkpoint(uri: str, *, tracking_uri: str) -> Iterator[Path]:
    """The ``best.ckpt`` behind ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, for the block.

    Raises:
        StorageError: there is no such model, or it was not registered by a search.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        rule = "a registered model must be models:/NAME@ALIAS or models:/NAME/VERSION"
        raise StorageError(format_error(rule, got=uri, where="MODEL"))
    name, alias, version = found["name"], found["alias"], found["version"]
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    try:
        version = version or client.get_model_version_by_alias(name, alias).version
        place = client.get_model_version_download_uri(name, version)
        with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
            yield Path(
                mlflow.artifacts.download_artifacts(
                    f"{place.rstrip('/')}/{_KEPT}", dst_path=folder, tracking_uri=tracking_uri
                )
            )
    except (MlflowException, OSError) as error:
        rule = "MODEL must be registered by a search"
        said = str(error).strip().splitlines()[0]
        raise StorageError(
            format_error(rule, got=f"{uri} ({said})", where=f"MLflow at {tracking_uri}")
        ) from error


def _signature(channels: int, side: int, classes: int) -> ModelSignature:
    pixels = TensorSpec(np.dtype(np.float32), (-1, channels, side, side))
    return ModelSignature(Schema([pixels]), Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]))
