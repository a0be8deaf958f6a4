"""Register a search's winner in MLflow's model registry, under the search's name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tune_rescon.config import trial_name
from tune_rescon.errors import UserError
from tune_rescon.tracking.run_state import Champion
from tune_rescon.training.lean import import_lean_torchmetrics

__all__ = ["CHAMPION", "ID_TAG", "champion_label", "load_exporter", "register_champion"]


#: Tag of a run and of a model's version: the id of the search that created it.
ID_TAG: Final = "tune_rescon.id"
#: The alias of the winner.
CHAMPION: Final = "champion"


def load_exporter() -> Callable[[str], AbstractContextManager[Path]]:
    """Return :func:`.registry.exported`, whose import loads torch and takes seconds.

    The import also makes MLflow import Lightning, and Lightning import torchmetrics.
    """
    import_lean_torchmetrics()
    from tune_rescon.tracking.registry import exported

    return exported


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
    exported, label = load_exporter(), champion_label(champion)
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
    standing = client.get_registered_model(name).aliases.get(CHAMPION)
    if standing is None or str(standing) == str(new):
        return None
    version = client.get_model_version(name, str(standing))
    other = version.tags.get(ID_TAG) or _id_of_run(client, version.run_id)
    if other == owner:
        return None
    alias = f"{CHAMPION}-{other[:8]}" if other else f"{CHAMPION}-version-{standing}"
    client.set_registered_model_alias(name, alias, str(standing))
    return (
        f"models:/{name}@{CHAMPION} was version {standing}, which another search of this name"
        f" registered. It is now version {new}; the other keeps the alias {alias}."
    )


def _id_of_run(client: MlflowClient, run_id: str | None) -> str:
    """Return the id of the search that created a run; empty if the run or its id does not exist."""
    try:
        return client.get_run(run_id).data.tags.get(ID_TAG, "") if run_id else ""
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
