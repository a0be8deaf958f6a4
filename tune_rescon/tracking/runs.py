"""The MLflow calls: a parent run for the search, a child run for each trial, found again by their tags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tune_rescon.tracking.events import (
    Event,
    RunEnded,
    RunMetrics,
    RunRecalled,
    RunStarted,
    SearchEnded,
    SearchStarted,
)

__all__ = ["RunBook"]

SEARCH_TAG: Final = "tune_rescon.search"
TRIAL_TAG: Final = "tune_rescon.trial"
STATE_TAG: Final = "tune_rescon.state"

#: Longest error text kept in a tag, characters (MLflow admits 8,000 bytes).
ERROR_CHARACTERS: Final = 2000

#: Runs asked for at once.
RUNS_A_PAGE: Final = 1000

#: MLflow's word for how a run ended, by ours.
_STATUS: Final = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "interrupted": "KILLED",
    "paused": "SCHEDULED",
    "diverged": "FAILED",
    "out_of_memory": "FAILED",
    "failed": "FAILED",
}


class RunBook:
    """One search's runs. Every call may raise what MLflow raises; :class:`.MlflowWriter` deals with that."""

    def __init__(self, uri: str, *, experiment: str, search: str, metric: str, maximize: bool) -> None:
        """Remember where to write; nothing is sent yet.

        Args:
            uri: the tracking URI.
            experiment: the experiment's name (the dataset).
            search: the search's name: the parent run's, and the tag all its runs carry.
            metric: the experiment's primary metric.
            maximize: whether larger is better.
        """
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._experiment = experiment
        self._search = search
        self._primary = {
            "mlflow.experiment.primaryMetric.name": f"best_{metric}",
            "mlflow.experiment.primaryMetric.greaterIsBetter": str(maximize),
        }
        self._experiment_id = ""
        self._parent_id = ""
        self._run_ids: dict[int, str] = {}
        self._recalled: dict[int, Run] | None = None

    def connect(self, artifacts: Path | None) -> None:
        """Find or make the experiment; ``artifacts`` is where a new local one keeps its files."""
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            location = artifacts.resolve().as_uri() if artifacts else None
            try:
                self._experiment_id = self._client.create_experiment(self._experiment, location)
            except MlflowException:
                # Another search on this storage made it between the two calls.
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found is not None:
            self._experiment_id = found.experiment_id
        for key, value in self._primary.items():
            self._client.set_experiment_tag(self._experiment_id, key, value)

    def apply(self, event: Event) -> tuple[int, str] | None:
        """Carry out one event; the trial's number and run id if it opened a child run."""
        match event:
            case SearchStarted():
                self._start_search(event)
            case RunStarted():
                return event.number, self._start_run(event)
            case RunRecalled():
                return event.start.number, self._recall_run(event)
            case RunMetrics():
                self._log(self._run_ids[event.number], event.metrics, event.step, event.time_ms)
            case RunEnded():
                self._end_run(event)
            case SearchEnded():
                self._end_search(event)
        return None

    def _start_search(self, event: SearchStarted) -> None:
        tags = {SEARCH_TAG: self._search, STATE_TAG: "running", **event.tags}
        found = self._find(f"tags.`{SEARCH_TAG}` = '{self._search}'", parent=True)
        if found is None:
            found = self._client.create_run(
                self._experiment_id, start_time=event.time_ms, tags=tags, run_name=self._search
            )
        else:
            self._client.update_run(found.info.run_id, status="RUNNING")
            self._client.set_tag(found.info.run_id, STATE_TAG, "running")
        self._parent_id = found.info.run_id
        self._upload(event.files)

    def _start_run(self, event: RunStarted) -> str:
        run_id = self._active(event.run_id) or self._child_id(event.number)
        if run_id is None:
            tags = {
                MLFLOW_PARENT_RUN_ID: self._parent_id,
                SEARCH_TAG: self._search,
                TRIAL_TAG: str(event.number),
                STATE_TAG: "running",
            }
            name = f"trial_{event.number:04d}"
            run = self._client.create_run(
                self._experiment_id, start_time=event.time_ms, tags=tags, run_name=name
            )
            run_id = run.info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
            self._client.set_tag(run_id, STATE_TAG, "running")
        self._run_ids[event.number] = run_id
        # Also for a run that was there: an earlier try may have ended between the two calls. MLflow takes
        # the same value again, and refuses another one.
        self._client.log_batch(run_id, params=[Param(key, value) for key, value in event.params.items()])
        return run_id

    def _recall_run(self, event: RunRecalled) -> str:
        """Send what is missing: a run whose state is the trial's has all, for that is sent last."""
        if self._recalled is None:
            self._recalled = self._children()
        found = self._recalled.get(event.start.number)
        if found is not None and event.end and found.data.tags.get(STATE_TAG) == event.end.state:
            return str(found.info.run_id)
        run_id = self._start_run(event.start)
        there = self._steps(run_id, event.epochs)
        for epoch in event.epochs:
            if epoch.step not in there:
                self._log(run_id, epoch.metrics, epoch.step, epoch.time_ms)
        if event.end is not None:
            self._end_run(event.end)
        return run_id

    def _steps(self, run_id: str, epochs: tuple[RunMetrics, ...]) -> frozenset[int]:
        """The epochs a run has; each was one request, so one metric stands for all."""
        if not epochs:
            return frozenset()
        history = self._client.get_metric_history(run_id, next(iter(epochs[0].metrics)))
        return frozenset(point.step for point in history)

    def _end_run(self, event: RunEnded) -> None:
        run_id = self._run_ids[event.number]
        tags = {STATE_TAG: event.state}
        if event.error:
            tags["tune_rescon.error"] = event.error[-ERROR_CHARACTERS:]
        if event.notes:
            tags["tune_rescon.notes"] = "\n".join(event.notes)[-ERROR_CHARACTERS:]
        self._log(run_id, event.metrics, event.step, event.time_ms, tags)
        self._client.set_terminated(run_id, _STATUS[event.state], event.time_ms)

    def _end_search(self, event: SearchEnded) -> None:
        self._log(self._parent_id, event.metrics, 0, event.time_ms, {STATE_TAG: event.state})
        self._client.set_terminated(self._parent_id, _STATUS[event.state], event.time_ms)
        # Last: a file the server does not take (a proxy's size limit) leaves no run open.
        self._upload(event.files)

    def _log(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        step: int,
        time_ms: int,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._client.log_batch(
            run_id,
            metrics=[Metric(key, value, time_ms, step) for key, value in metrics.items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )

    def _upload(self, files: tuple[str, ...]) -> None:
        for file in files:
            self._client.log_artifact(self._parent_id, file)

    def _active(self, run_id: str | None) -> str | None:
        """The run an earlier search noted, if this server has it: it may be another server, or deleted."""
        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run_id if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None

    def _children(self) -> dict[int, Run]:
        """All trials' runs, a thousand a request."""
        query = f"tags.`{SEARCH_TAG}` = '{self._search}'"
        children: dict[int, Run] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], query, max_results=RUNS_A_PAGE, page_token=token
            )
            children |= {int(run.data.tags[TRIAL_TAG]): run for run in page if TRIAL_TAG in run.data.tags}
            token = page.token
            if not token:
                return children

    def _child_id(self, number: int) -> str | None:
        query = f"tags.`{SEARCH_TAG}` = '{self._search}' AND tags.`{TRIAL_TAG}` = '{number}'"
        found = self._find(query, parent=False)
        return found.info.run_id if found else None

    def _find(self, query: str, *, parent: bool) -> Run | None:
        # The parent is the oldest, so it is on the first page however many children there are.
        runs = self._client.search_runs([self._experiment_id], query, order_by=["attributes.start_time ASC"])
        return next((run for run in runs if (TRIAL_TAG not in run.data.tags) == parent), None)
