"""Register a search's winner in MLflow's model registry, as a model that torch can load without this package.

torch is imported only when a network is exported, because the process that makes the calls to MLflow does not
need it until the search ends.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tune_rescon.config import trial_name
from tune_rescon.errors import ConfigError, StorageError, UserError, first_line, format_error
from tune_rescon.lazy import import_lean_torchmetrics
from tune_rescon.models import NetworkSpec
from tune_rescon.storage import local_file, sqlite_file
from tune_rescon.tracking.experiment import find_run
from tune_rescon.tracking.run_state import Champion

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from torch import nn

    from tune_rescon.training import TrainedNetwork

__all__ = [
    "ID_TAG",
    "champion_label",
    "exported",
    "import_exporter",
    "register_champion",
    "registered_checkpoint",
]


#: Tag of a run and of a model's version: the id of the search that created it.
ID_TAG: Final = "tune_rescon.id"
#: The alias of the winner.
CHAMPION: Final = "champion"

#: The path of the checkpoint within a model: MLflow's folder for extra files, and the file in it.
_CHECKPOINT_PATH: Final = "extra_files/best.ckpt"

_URI: Final = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")

#: Batch size of a model's input example, with which it is traced. It is not 1, because torch would treat 1 as
#: a constant.
EXAMPLES = 2


def champion_label(champion: Champion) -> str:
    """Return the text that identifies the network: its trial and its epoch."""
    return f"{trial_name(champion.number)}, epoch {champion.epoch}"


def register_champion(
    client: MlflowClient, champion: Champion, *, name: str, run_id: str, owner: str
) -> tuple[bool, str | None]:
    """Register the winner's network as the newest version of the model ``name``.

    Args:
        client: MLflow.
        champion: the winner.
        name: the search's name.
        run_id: the run of the winner's trial.
        owner: the search's id.

    Returns:
        Whether the network is registered, and a message to the user, or None.

    Raises:
        MlflowException: MLflow does not accept a call; all calls can be repeated.
    """
    label = champion_label(champion)
    try:
        with exported(champion.checkpoint) as folder:
            client.log_artifacts(run_id, str(folder), "model")
    except UserError as error:
        # The checkpoint is deleted or damaged, or a network from elsewhere cannot be built or exported here.
        # A retry cannot succeed.
        return False, f"The winner's network is not registered in MLflow: {error}"
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        f"{client.get_run(run_id).info.artifact_uri}/model",
        run_id,
        tags={ID_TAG: owner},
        description=f"{label}: {champion.value}" if champion.value else label,
    ).version
    remark = _keep_other_champion(client, name, owner, new=version)
    client.set_registered_model_alias(name, CHAMPION, version)
    return True, remark


def _keep_other_champion(client: MlflowClient, name: str, owner: str, *, new: str) -> str | None:
    """Give another search's champion of this name a separate alias before version ``new`` replaces it."""
    before = client.get_registered_model(name).aliases.get(CHAMPION)
    if before is None or str(before) == str(new):
        return None
    version = client.get_model_version(name, str(before))
    other = version.tags.get(ID_TAG)
    if not other:
        run = find_run(client, version.run_id) if version.run_id else None
        other = "" if run is None else run.data.tags.get(ID_TAG, "")
    if other == owner:
        return None
    alias = f"{CHAMPION}-{other[:8]}" if other else f"{CHAMPION}-version-{before}"
    client.set_registered_model_alias(name, alias, str(before))
    return (
        f"models:/{name}@{CHAMPION} was version {before}, which another search of this name"
        f" registered. It is now version {new}; the other keeps the alias {alias}."
    )


def import_exporter() -> None:
    """Import torch and MLflow's torch models for :func:`exported`, which takes seconds.

    MLflow imports Lightning with them, and Lightning imports torchmetrics.
    """
    import_lean_torchmetrics()
    import mlflow.pytorch  # noqa: F401

    import tune_rescon.training.weights  # noqa: F401


@contextmanager
def exported(checkpoint: str) -> Iterator[Path]:
    """Save the network of a ``best.ckpt`` as an MLflow model, and yield its temporary folder.

    The model has torch's own export format, which only torch is needed to load. The format is not safe:
    loading an exported program (.pt2) can run code from the file. This package itself reads only the
    ``best.ckpt`` beside it.

    Args:
        checkpoint: The path or URL of the checkpoint.

    Raises:
        StorageError: If the file is missing or damaged.
        NetworkError, ConfigError: If a network from elsewhere cannot be built or exported here.
    """
    import_exporter()
    from tune_rescon.training.weights import load_trained

    with local_file(checkpoint) as file, tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        network, about = load_trained(file)
        try:
            saved = _saved(network, about, file, Path(folder) / "model")
        except Exception as error:
            # torch's exporter raises many kinds of errors for a user's code.
            if isinstance(about.spec, NetworkSpec):
                raise
            rule = f"torch must be able to export the network {about.spec.network}"
            raise ConfigError(format_error(rule, got=first_line(error))) from error
        yield saved


def _saved(network: nn.Module, about: TrainedNetwork, checkpoint: Path, path: Path) -> Path:
    import mlflow.pytorch
    import numpy as np
    import torch

    from tune_rescon.training.weights import Classifier

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


def _signature(channels: int, side: int, classes: int) -> ModelSignature:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels = TensorSpec(np.dtype(np.float32), (-1, channels, side, side))
    return ModelSignature(Schema([pixels]), Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]))


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
    database = sqlite_file(tracking_uri)
    if database is not None and not database.is_file():
        # MLflow would create it.
        hint = "Give the --storage of the search, or set TUNE_RESCON_TRACKING_URI."
        got = f"no {database} for {uri}"
        raise StorageError(format_error("MLflow's database must exist", got=got, where="MODEL", hint=hint))
    name, alias, version = found["name"], found["alias"], found["version"]
    client = MlflowClient(tracking_uri, tracking_uri)
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
