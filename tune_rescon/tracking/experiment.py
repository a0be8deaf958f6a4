"""Find or create the MLflow experiment of a search, and refuse one that a user has deleted."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException

from tune_rescon.tracking.run_state import Destination
from tune_rescon.tracking.worker_client import CallError, RetryPolicy

__all__ = ["check_experiment", "find_run", "open_experiment"]


def open_experiment(client: MlflowClient, destination: Destination) -> str:
    """Find or create the experiment, and set its primary metric to the search's metric.

    Args:
        client: The client of the MLflow store.
        destination: The names of the search in the store.

    Returns:
        The id of the experiment.

    Raises:
        CallError: If the experiment was deleted.
        MlflowException: If the store refuses a request.
    """
    experiment_id = _find(client, destination) or _create(client, destination)
    primary = "mlflow.experiment.primaryMetric"
    client.set_experiment_tag(experiment_id, f"{primary}.name", f"best_{destination.metric}")
    client.set_experiment_tag(experiment_id, f"{primary}.greaterIsBetter", str(destination.maximize))
    return experiment_id


def check_experiment(client: MlflowClient, experiment_id: str) -> None:
    """Check that the experiment still accepts runs.

    Raises:
        CallError: If the experiment was deleted.
    """
    _check(client.get_experiment(experiment_id))


def _find(client: MlflowClient, destination: Destination) -> str | None:
    known = next(filter(None, (find_run(client, run) for run in destination.known_runs)), None)
    found = (
        client.get_experiment_by_name(destination.experiment)
        if known is None
        else client.get_experiment(known.info.experiment_id)
    )
    if found is None:
        return None
    _check(found)
    return str(found.experiment_id)


def _create(client: MlflowClient, destination: Destination) -> str:
    artifacts = destination.artifacts
    try:
        return str(
            client.create_experiment(
                destination.experiment, artifacts.resolve().as_uri() if artifacts else None
            )
        )
    except MlflowException:
        # Another search on this storage may have created the experiment between the two calls.
        if (found := _find(client, destination)) is None:
            raise
        return found


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run; None if the store does not have it."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _check(experiment: Experiment) -> None:
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        hint = f"Restore it: `mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        message = f"the experiment {experiment.name!r} is deleted. {hint}"
        raise CallError(message, RetryPolicy.ABORT)
