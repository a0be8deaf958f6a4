"""The winner as an MLflow model: anybody with torch can load it, without this package."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from tune_rescon.errors import StorageError, explain
from tune_rescon.storage import RemoteFolder, StorageUrl
from tune_rescon.training import TrainedNetwork, load_trained

__all__ = ["Classifier", "exported"]

#: Images of the example a model is traced and shown with: not 1, which torch would take for a constant.
EXAMPLES = 2


class Classifier(nn.Module):
    """A trained network with what belongs before and behind it: pixels in, probabilities out."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, network: nn.Module, about: TrainedNetwork) -> None:
        """Wrap ``network``, which is in eval mode."""
        super().__init__()
        channels = len(about.mean)
        applied = about.config.normalize
        mean = about.mean if applied else (0.0,) * channels
        std = about.std if applied else (1.0,) * channels
        self.network = network
        self.register_buffer("mean_C11", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Probabilities, B x classes, of images in 0..1 at the size the network was trained with."""
        logits_BK: Tensor = self.network((images_BCHW - self.mean_C11) / self.std_C11)
        return logits_BK.softmax(1)


@contextmanager
def exported(checkpoint: str) -> Iterator[Path]:
    """The network of a ``best.ckpt``, at a path or a URL, as an MLflow model in a folder for the block.

    torch's own export format: no code of anybody's is run when it is loaded, and none is needed.

    Raises:
        StorageError: the file is missing or damaged.
    """
    with _local(checkpoint) as file:
        network, about = load_trained(file)
    side, channels = about.spec.image_size, len(about.mean)
    shape = (EXAMPLES, channels, side, side)
    example_BCHW = np.random.default_rng(0).random(shape, dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        path = Path(folder) / "model"
        mlflow.pytorch.save_model(
            Classifier(network, about).eval(),
            str(path),
            signature=_signature(channels, side, len(about.class_names)),
            input_example=example_BCHW,
            serialization_format="pt2",
            # Given, for MLflow finds them out by loading the model in another process.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"numpy=={np.__version__}"],
            metadata={"class_names": list(about.class_names), "dataset": about.dataset},
        )
        yield path


@contextmanager
def _local(checkpoint: str) -> Iterator[Path]:
    folder, _, name = checkpoint.rpartition("/")
    if "://" not in checkpoint:
        yield Path(checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as scratch:
        file = Path(scratch) / name
        if not RemoteFolder.connect(StorageUrl(url=folder)).download(name, file):
            raise StorageError(explain("the winner's checkpoint must be in the storage", got=checkpoint))
        yield file


def _signature(channels: int, side: int, classes: int) -> ModelSignature:
    pixels = TensorSpec(np.dtype(np.float32), (-1, channels, side, side))
    return ModelSignature(Schema([pixels]), Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]))
