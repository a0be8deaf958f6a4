"""What an MLflow store shows of a search, read through its client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

__all__ = ["RunSeen", "read_runs"]

#: Runs asked for at once: more than any search of a storm has.
PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class RunSeen:
    """One run, with the whole history of the metrics that were asked for, as (step, value)."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of every metric."""
    history: Mapping[str, tuple[tuple[int, float], ...]]


def read_runs(database: Path, metrics: Iterable[str]) -> list[RunSeen]:
    """Every run of a SQLite store; none if there is no store."""
    if not database.is_file():
        return []
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = tuple(metrics)
    return [
        RunSeen(
            run_id=run.info.run_id,
            status=run.info.status,
            tags=run.data.tags,
            params=run.data.params,
            metrics=run.data.metrics,
            history={name: _history(client, run.info.run_id, name) for name in wanted},
        )
        for run in client.search_runs(experiments, max_results=PAGE)
    ]


def _history(client: MlflowClient, run_id: str, metric: str) -> tuple[tuple[int, float], ...]:
    return tuple((entry.step, entry.value) for entry in client.get_metric_history(run_id, metric))
