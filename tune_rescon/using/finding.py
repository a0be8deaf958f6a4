"""From what a person calls a model to the network itself."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from tune_rescon.errors import StorageError, explain
from tune_rescon.storage import StorageUrl, local_file
from tune_rescon.training import TrainedNetwork, load_trained
from tune_rescon.training.exported import load_exported
from tune_rescon.tuning import Place, SearchFolder, read_search

__all__ = ["load_model"]


def load_model(model: str, place: Place) -> tuple[nn.Module, TrainedNetwork]:
    """The network that ``model`` names, on the CPU and in eval mode, and what goes with it.

    Args:
        model: a search's name (its best trial), ``models:/NAME@ALIAS`` of MLflow, or a file: a ``best.ckpt``
            or what ``export --format safetensors`` has written.
        place: where searches are kept.

    Raises:
        StorageError: there is no such model, or its file is damaged or something else's.
    """
    if model.startswith("models:/"):
        # Imported here: it brings MLflow, which no other model needs.
        from tune_rescon.tracking.champion import registered_checkpoint

        with registered_checkpoint(model, tracking_uri=_tracking_uri(place)) as file:
            return load_trained(file)
    path = Path(model)
    if path.is_file():
        is_exported = path.suffix == ".safetensors"
        return load_exported(path, where="MODEL") if is_exported else load_trained(path)
    if path.suffix or len(path.parts) > 1:
        rule = "MODEL must be a search's name, models:/NAME@ALIAS, or a file that exists"
        raise StorageError(explain(rule, got=model))
    best = read_search(place, model, where="MODEL").best
    if best is None or best.checkpoint is None:
        rule = "a search must have a best trial with its checkpoint"
        raise StorageError(explain(rule, got=f"{model}, which has none yet", where="MODEL"))
    with local_file(best.checkpoint) as file:
        return load_trained(file)


def _tracking_uri(place: Place) -> str:
    """MLflow's own variable, or the store of the storage."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if isinstance(place.storage, StorageUrl):
        rule = "MLflow must be named for a storage at a URL"
        raise StorageError(explain(rule, got="no MLFLOW_TRACKING_URI", where="MODEL"))
    return SearchFolder(storage=place.storage.resolve(), name="any").mlflow_uri
