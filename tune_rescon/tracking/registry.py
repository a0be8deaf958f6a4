"""Save the winner's network as an MLflow model, which torch can load without this package."""

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
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from tune_rescon.errors import ConfigError, StorageError, first_line, format_error
from tune_rescon.models import NetworkSpec
from tune_rescon.storage import local_file
from tune_rescon.training import TrainedNetwork, load_trained
from tune_rescon.training.weights import Classifier

__all__ = ["exported", "registered_checkpoint"]


#: The path of the checkpoint within a model: MLflow's folder for extra files, and the file in it.
_CHECKPOINT_PATH: Final = "extra_files/best.ckpt"

_URI: Final = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")

#: Batch size of a model's input example, with which it is traced. It is not 1, because torch would treat 1 as
#: a constant.
EXAMPLES = 2


@contextmanager
def exported(checkpoint: str) -> Iterator[Path]:
    """Save the network of a ``best.ckpt`` as an MLflow model in a temporary folder for the block.

    The model has torch's own export format, which needs no package but torch. It is no safe format: loading
    an exported program (.pt2) can run code that is in the file. This package itself only reads the
    ``best.ckpt`` beside it.

    Args:
        checkpoint: The path or URL of the checkpoint.

    Raises:
        StorageError: If the file is missing or damaged.
        NetworkError, ConfigError: If a network from elsewhere cannot be built or exported here.
    """
    with local_file(checkpoint) as file, tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        network, about = load_trained(file)
        try:
            saved = _saved(network, about, file, Path(folder) / "model")
        except Exception as error:
            # torch's exporter raises many kinds of errors at another's code.
            if isinstance(about.spec, NetworkSpec):
                raise
            rule = f"torch must be able to export the network {about.spec.network}"
            raise ConfigError(format_error(rule, got=first_line(error))) from error
        yield saved


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
        # Given here, because MLflow would otherwise find them by loading the model in another process.
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
        metadata={
            "class_names": list(about.class_names),
            "dataset": about.dataset,
            "preprocessing": about.preprocessing.to_dict(),
        },
        # The checkpoint lets users of this package export the network again; the model alone has only its
        # exported program.
        extra_files=[str(checkpoint)],
    )
    return path


@contextmanager
def registered_checkpoint(uri: str, *, tracking_uri: str) -> Iterator[Path]:
    """Download the ``best.ckpt`` of a registered model for the block.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking_uri: The URI of the MLflow store.

    Raises:
        StorageError: If the model does not exist, was not registered by a search, or cannot be downloaded.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        rule = "a registered model must be models:/NAME@ALIAS or models:/NAME/VERSION"
        raise StorageError(format_error(rule, got=uri, where="MODEL"))
    name, alias, version = found["name"], found["alias"], found["version"]
    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        try:
            version = version or client.get_model_version_by_alias(name, alias).version
            place = client.get_model_version_download_uri(name, version)
            file = mlflow.artifacts.download_artifacts(
                f"{place.rstrip('/')}/{_CHECKPOINT_PATH}", dst_path=folder, tracking_uri=tracking_uri
            )
        except Exception as error:  # each store of artifacts has its own exceptions
            rule = "MODEL must be registered by a search"
            got, where = f"{uri} ({first_line(error)})", f"MLflow at {tracking_uri}"
            raise StorageError(format_error(rule, got=got, where=where)) from error
        yield Path(file)


def _signature(channels: int, side: int, classes: int) -> ModelSignature:
    pixels = TensorSpec(np.dtype(np.float32), (-1, channels, side, side))
    return ModelSignature(Schema([pixels]), Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]))
