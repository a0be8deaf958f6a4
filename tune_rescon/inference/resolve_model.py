"""Load the network that a user names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from torch import nn

from tune_rescon.errors import StorageError, format_error
from tune_rescon.storage import StorageUrl, local_file
from tune_rescon.training import TrainedNetwork, load_trained
from tune_rescon.training.weights import load_exported
from tune_rescon.tuning import SearchFolder, SearchLocation, StudyResult, read_search

__all__ = [
    "load_model",
]

#: Suffixes of the files that a model may be in. A name with one of them is never taken for a search's.
_FILES: Final = (".ckpt", ".safetensors", ".pt", ".pth", ".pt2", ".onnx")


def load_model(model: str, location: SearchLocation) -> tuple[nn.Module, TrainedNetwork]:
    """Load the network that ``model`` names, on the CPU and in eval mode, and its metadata.

    Args:
        model: Name of a search (for its best trial), ``models:/NAME@ALIAS`` of MLflow, or a file: a
            ``best.ckpt`` or a file written by ``export --format safetensors``.
        location: Location of the searches.

    Raises:
        StorageError: The model does not exist, or its file is damaged or of another kind.
    """
    if model.startswith("models:/"):
        # Imported here because it imports MLflow, which no other kind of model needs.
        from tune_rescon.tracking.registry import registered_checkpoint

        with registered_checkpoint(model, tracking_uri=_tracking_uri(location)) as file:
            return load_trained(file)
    path = Path(model)
    # `path.is_file()` would raise if the text is too long for a file name.
    if os.path.isfile(path):  # noqa: PTH113
        is_exported = path.suffix == ".safetensors"
        return load_exported(path, where="MODEL") if is_exported else load_trained(path)
    # The name of a search may contain dots, as that of a reproduction does (`-0.1x0.05`).
    if path.suffix in _FILES or len(path.parts) > 1:
        rule = "MODEL must be a search's name, models:/NAME@ALIAS, or a file that exists"
        raise StorageError(format_error(rule, got=model))
    with local_file(_best_checkpoint(read_search(location, model, where="MODEL"))) as file:
        return load_trained(file)


def _best_checkpoint(result: StudyResult) -> str:
    """Return the path or URL of the checkpoint of a search's best trial.

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
    return checkpoint


def _tracking_uri(location: SearchLocation) -> str:
    """Return the value of MLFLOW_TRACKING_URI, or the MLflow store of the storage if it is not set."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if isinstance(location.storage, StorageUrl):
        rule = "MLflow must be named for a storage at a URL"
        raise StorageError(format_error(rule, got="no MLFLOW_TRACKING_URI", where="MODEL"))
    return SearchFolder(storage=location.storage.resolve(), name="any").mlflow_uri
