"""Log a search to MLflow: a parent run for the search and a child run for each trial.

The runs are found by the search's id, because a name does not identify the owner of a run: two storages may
share one MLflow server and have searches of the same name. A run is opened, changed or deleted only if one of
these holds:

- The run carries this search's id.
- The record of this search has the run's id, and the run carries no search's id. (An earlier version put no
  id on its searches.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from tune_rescon.atomic_write import file_version
from tune_rescon.config import TrialState, trial_name
from tune_rescon.tracking.experiment import check_experiment, find_run, open_experiment
from tune_rescon.tracking.registry import ID_TAG, champion_label, import_exporter, register_champion
from tune_rescon.tracking.run_state import (
    ACTIVE,
    Champion,
    Destination,
    Images,
    RunState,
    SearchRunState,
    TrialRunState,
    without_passwords,
)

__all__ = ["MlflowRunSync"]


#: Tag of a trial's run: the place of the search that created the run.
PLACE_TAG: Final = "tune_rescon.place"
SEARCH_TAG: Final = "tune_rescon.search"
TRIAL_TAG: Final = "tune_rescon.trial"
STATE_TAG: Final = "tune_rescon.state"
NOTE_TAG: Final = "mlflow.note.content"
CHAMPION_TAG: Final = "tune_rescon.champion"
CHAMPION_RUN_TAG: Final = "tune_rescon.champion_run"

#: Maximum length of the text in a tag, in characters (MLflow allows 8,000 bytes).
TAG_CHARACTERS: Final = 2000

#: MLflow's limits: of runs per page of results, and of metrics, parameters and tags together per request. Its
#: client divides a larger request, and would send the tags before the last metrics.
RUNS_A_PAGE: Final = 1000
ENTITIES_A_REQUEST: Final = 1000

#: Maximum difference of start times, in milliseconds, between a trial and the run that shows it. Some
#: databases store whole seconds.
SAME_START_MS: Final = 1000

#: MLflow's run status of each state of a search or trial.
_STATUS: Final = {
    ACTIVE: "RUNNING",
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "interrupted": "KILLED",
    "paused": "SCHEDULED",
    "diverged": "FAILED",
    "out_of_memory": "FAILED",
    "failed": "FAILED",
}


@dataclass
class _RunContent:
    """The content of one run on the server."""

    run_id: str
    state: str = ACTIVE
    """Empty if the run's status does not match its state tag, so that the state is sent again."""
    params: set[str] = field(default_factory=set)
    epochs: set[int] = field(default_factory=set)
    epochs_known: bool = True
    """False if ``epochs`` must first be read from the server, because the run was found there."""
    tags: dict[str, str] = field(default_factory=dict)
    ended_ms: int = 0
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def needs(self, wanted: RunState) -> bool:
        """Return whether the server lacks ``wanted.state``, or has that of an earlier end.

        While the server was away, a trial may have continued and been interrupted again.
        """
        return self.state != wanted.state or (wanted.state != ACTIVE and self.ended_ms < wanted.ended_ms)


class MlflowRunSync:
    """The MLflow runs of one search. Every method may raise MLflow's exceptions, and can then be retried.

    The content of each run on the server is stored here, so only the additions of a state are sent. For a run
    that an earlier driver has opened, or that a request without a response may have opened, the content is
    read from the server.
    """

    def __init__(self, destination: Destination) -> None:
        """Store ``destination``; nothing is sent yet."""
        uri = destination.uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._destination = destination
        self._search = destination.search
        self._experiment_id = ""
        self._id = self._place = ""
        self._parent: _RunContent | None = None
        self._runs: dict[int, _RunContent] = {}
        # By trial number: the runs that the server had when this sync began.
        self._earlier_runs: dict[int, list[Run]] = {}
        # The trials whose run a request without a response may have created.
        self._maybe_created: set[int] = set()
        self._remarks: list[str] = []

    def connect(self) -> None:
        """Find or create the experiment: see :func:`.open_experiment`."""
        self._experiment_id = open_experiment(self._client, self._destination)

    def check(self) -> None:
        """Check that the experiment still accepts runs: see :func:`.check_experiment`."""
        check_experiment(self._client, self._experiment_id)

    def send(self, run_state: RunState) -> str:
        """Send the additions of ``run_state`` to the server, and return the id of its run."""
        if isinstance(run_state, SearchRunState):
            return self._send_search(run_state)
        return self._send_run(run_state)

    def take_remarks(self) -> tuple[str, ...]:
        """Return the messages to the user since the last call."""
        taken, self._remarks = tuple(self._remarks), []
        return taken

    def _send_search(self, search: SearchRunState) -> str:
        parent = self._parent or self._open_parent(search)
        if self._parent is None and search.images:
            # Each run of the search logs the same input; MLflow stores it once.
            inputs = [_dataset_input(images) for images in search.images]
            self._client.log_inputs(parent.run_id, datasets=inputs)
        self._parent = parent
        texts = {**search.tags, **({NOTE_TAG: search.note} if search.note else {})}
        tags = {key: text for key, text in texts.items() if parent.tags.get(key, "") != text}
        if tags:
            self._log(parent.run_id, tags=tags)
            parent.tags |= tags
        if parent.needs(search):
            points = list(self._closing_points(parent.run_id, search))
            self._log(parent.run_id, metrics=points, tags={STATE_TAG: search.state})
            self._set_status(parent, search.state, search.ended_ms)
        # Files are last, so that a file that the server rejects (a proxy's size limit) leaves no run open.
        for file in search.files:
            self._upload(parent, file)
        if search.preload_exporter:
            import_exporter()
        if search.champion is not None:
            self._register_champion(parent, search.champion)
        return parent.run_id

    def _closing_points(self, run_id: str, search: SearchRunState) -> Iterator[Metric]:
        """Yield the figures of a search that MLflow does not show, each with a later time than the last one.

        MLflow shows the latest point. Without that, a figure of an earlier end would stay if the clock was
        set back since, or if ``report --sync`` sends another one for the end of the last trial.
        """
        for name, value in search.closing.items():
            history = self._client.get_metric_history(run_id, name)
            last = max(history, key=lambda point: point.timestamp, default=None)
            if last is None or last.value != value:
                yield Metric(name, value, max(search.ended_ms, last.timestamp + 1 if last else 0), 0)

    def _send_run(self, trial: TrialRunState) -> str:
        run = self._runs.get(trial.number) or self._open_run(trial)
        self._runs[trial.number] = run
        if not run.epochs_known:
            run.epochs = self._sent_epochs(run, trial)
            run.epochs_known = True
        changes = run.needs(trial)
        for params, points, last in _batches(trial, run, closes=changes):
            tags = _closing_tags(trial) if last and changes else {}
            self._log(run.run_id, metrics=points, params=params, tags=tags)
            run.params |= params.keys()
            run.epochs.update(point.step for point in points)
        if changes:
            self._set_status(run, trial.state, trial.ended_ms)
        return run.run_id

    def _open_parent(self, search: SearchRunState) -> _RunContent:
        self._id, self._place = search.id, search.place
        parents: list[Run] = []
        self._earlier_runs = {}
        for run in self._search_runs():
            number = run.data.tags.get(TRIAL_TAG)
            if number is None:
                parents.append(run)
            else:
                self._earlier_runs.setdefault(int(number), []).append(run)
        first = min(parents, key=lambda run: run.info.start_time, default=None)
        found = first or self._earlier_parent(search.known_runs)
        if found is not None:
            return self._adopt(found)
        known = {key: text for key, text in search.tags.items() if text}
        tags = {ID_TAG: self._id, SEARCH_TAG: self._search, STATE_TAG: ACTIVE, **known}
        run = self._client.create_run(
            self._experiment_id, start_time=search.started_ms, tags=tags, run_name=self._search
        )
        return _RunContent(run_id=run.info.run_id, tags=known)

    def _earlier_parent(self, known_runs: Sequence[str]) -> Run | None:
        """Find the parent run of a search that began without an id.

        It is the parent of the first child run that the record names and that exists.
        """
        for child in map(self._run_without_id, known_runs):
            if child is not None:
                return self._run_without_id(child.data.tags.get(MLFLOW_PARENT_RUN_ID, ""))
        return None

    def _run_without_id(self, run_id: str) -> Run | None:
        """Return the run if it is active, has no search id, and is of a search of this name; else None."""
        run = find_run(self._client, run_id) if run_id else None
        if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            return None
        tags = run.data.tags
        return run if ID_TAG not in tags and tags.get(SEARCH_TAG) == self._search else None

    def _adopt(self, run: Run, *, parent: _RunContent | None = None) -> _RunContent:
        """Put this search's id and name on an existing run and move it below ``parent``; return its content.

        The folder of the search may have been renamed. A name that a user gave the parent run stays.
        """
        before = run.data.tags.get(SEARCH_TAG)
        if parent is None and before not in (None, self._search) and run.info.run_name == before:
            self._client.update_run(run.info.run_id, name=self._search)
        tags = {ID_TAG: self._id, SEARCH_TAG: self._search}
        tags |= {MLFLOW_PARENT_RUN_ID: parent.run_id} if parent else {}
        missing = {key: text for key, text in tags.items() if run.data.tags.get(key) != text}
        if missing:
            self._log(run.info.run_id, tags=missing)
        return _content_of(run)

    def _open_run(self, trial: TrialRunState) -> _RunContent:
        assert self._parent is not None, "the search is sent before its trials"
        number = trial.number
        known = self._earlier_runs.get(number, [])
        found = self._recorded_run(trial, known) or _same_trial(trial, known)
        if found is None and number in self._maybe_created:
            # A trial must have one run only.
            found = _same_trial(trial, self._search_runs(number))
        if found is not None:
            run = self._adopt(found, parent=self._parent)
        else:
            self._delete_superseded(known)
            self._maybe_created.add(number)
            run = _RunContent(run_id=self._create_run(trial, self._parent))
        self._maybe_created.discard(number)
        return run

    def _recorded_run(self, trial: TrialRunState, known: Iterable[Run]) -> Run | None:
        """Return the run that the record names if it is active and belongs to this search, else None."""
        if trial.run_id is None:
            return None
        named = (run for run in known if run.info.run_id == trial.run_id)
        return next(named, None) or self._run_without_id(trial.run_id)

    def _delete_superseded(self, known: Iterable[Run]) -> None:
        """Delete the earlier runs of a trial number that is used again.

        A driver that dies before its record is stored safely leaves such a run, which carries this search's
        id and place. A run that a copy of the search has created carries another place and is not deleted.
        """
        for run in known:
            if self._place and run.data.tags.get(PLACE_TAG) == self._place:
                self._client.delete_run(run.info.run_id)

    def _create_run(self, trial: TrialRunState, parent: _RunContent) -> str:
        tags = {
            MLFLOW_PARENT_RUN_ID: parent.run_id,
            ID_TAG: self._id,
            PLACE_TAG: self._place,
            SEARCH_TAG: self._search,
            TRIAL_TAG: str(trial.number),
            STATE_TAG: ACTIVE,
        }
        name = trial_name(trial.number)
        run = self._client.create_run(
            self._experiment_id, start_time=trial.started_ms, tags=tags, run_name=name
        )
        return str(run.info.run_id)

    def _sent_epochs(self, run: _RunContent, trial: TrialRunState) -> set[int]:
        """Return the epochs of a run on the server.

        One metric is enough to find them, because all metrics of an epoch are sent in one request.
        """
        if run.state == trial.state and TrialState(trial.state).is_final:
            # The state is sent last, so all epochs are there. A trial that was interrupted or paused may have
            # continued since, while the server was unreachable.
            return set(range(1, trial.epochs + 1))
        if not trial.history:
            return set()
        history = self._client.get_metric_history(run.run_id, next(iter(trial.history)))
        return {point.step for point in history}

    def _search_runs(self, number: int | None = None) -> Iterator[Run]:
        """Yield the runs with this search's id; with ``number``, only those of that trial."""
        query = f"tags.`{ID_TAG}` = '{self._id}'"
        query += "" if number is None else f" AND tags.`{TRIAL_TAG}` = '{number}'"
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], query, max_results=RUNS_A_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _set_status(self, run: _RunContent, state: str, time_ms: int) -> None:
        """Set MLflow's status of a run whose tag has ``state`` already."""
        if state == ACTIVE:
            self._client.update_run(run.run_id, status=_STATUS[ACTIVE])
        else:
            self._client.set_terminated(run.run_id, _STATUS[state], time_ms)
            run.ended_ms = time_ms
        run.state = state

    def _log(
        self,
        run_id: str,
        *,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
        )

    def _register_champion(self, parent: _RunContent, champion: Champion) -> None:
        """Register the winner's network, unless it is registered already."""
        label, run_id = champion_label(champion), self._runs[champion.number].run_id
        # The run is compared too, because a record that was restored from a backup assigns numbers again.
        if parent.tags.get(CHAMPION_TAG) == label and parent.tags.get(CHAMPION_RUN_TAG, run_id) == run_id:
            return
        registered, remark = register_champion(
            self._client, champion, name=self._search, run_id=run_id, owner=self._id
        )
        if remark is not None:
            self._remarks.append(remark)
        if registered:
            tags = {CHAMPION_TAG: label, CHAMPION_RUN_TAG: run_id}
            self._log(parent.run_id, tags=tags)
            parent.tags |= tags

    def _upload(self, run: _RunContent, file: Path) -> None:
        if run.files.get(file) != (version := file_version(file)):
            with without_passwords(file) as shown:
                self._client.log_artifact(run.run_id, str(shown))
            run.files[file] = version


def _dataset_input(images: Images) -> DatasetInput:
    counts = {f"{part}_images": count for part, count in images.counts.items()}
    dataset = Dataset(
        name=images.name,
        digest=images.digest,
        source_type="tune_rescon",
        source=json.dumps({"name": images.name}),
        profile=json.dumps(counts),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def _same_trial(trial: TrialRunState, runs: Iterable[Run]) -> Run | None:
    """Return the run that began when ``trial`` began; None if no run did.

    A number may have several runs, and the record may not have the id of the right one.
    """
    near = (run for run in runs if abs(run.info.start_time - trial.started_ms) <= SAME_START_MS)
    return next(near, None)


def _content_of(run: Run) -> _RunContent:
    state = run.data.tags.get(STATE_TAG, "")
    return _RunContent(
        run_id=run.info.run_id,
        state=state if _STATUS.get(state) == run.info.status else "",
        params=set(run.data.params),
        epochs_known=False,
        tags=dict(run.data.tags),
        ended_ms=run.info.end_time or 0,
    )


def _batches(
    trial: TrialRunState, run: _RunContent, *, closes: bool
) -> Iterator[tuple[dict[str, str], list[Metric], bool]]:
    """Yield the additions of ``trial`` as requests: parameters, metrics, and whether the request is the last.

    Each request has as many epochs as MLflow allows, the first one also the parameters. If the run's state
    changes, the last one has the closing figures too. A short trial is therefore one request and a status.
    """
    # MLflow refuses another value of a parameter, so one that a resumed search has changed keeps its first.
    params = {key: value for key, value in trial.params.items() if key not in run.params}
    fresh = [epoch for epoch in range(1, trial.epochs + 1) if epoch not in run.epochs]
    closing = _single_points(trial.closing, trial.epochs, trial.ended_ms) if closes else []
    entities = ENTITIES_A_REQUEST - len(closing) - len(_closing_tags(trial))
    while len(fresh) > (room := max(1, (entities - len(params)) // max(1, len(trial.history)))):
        yield params, [point for epoch in fresh[:room] for point in _points(trial, epoch)], False
        params, fresh = {}, fresh[room:]
    points = [point for epoch in fresh for point in _points(trial, epoch)] + closing
    if params or points or closes:
        yield params, points, True


def _points(trial: TrialRunState, epoch: int) -> Iterator[Metric]:
    for name, series in trial.history.items():
        yield Metric(name, series[epoch - 1], trial.times_ms[epoch - 1], epoch)


def _single_points(figures: Mapping[str, float], step: int, time_ms: int) -> list[Metric]:
    return [Metric(key, value, time_ms, step) for key, value in figures.items()]


def _closing_tags(trial: TrialRunState) -> dict[str, str]:
    """Return the tags of a run whose state changes. MLflow writes a request's tags after its metrics."""
    texts = {"tune_rescon.error": trial.error, "tune_rescon.notes": "\n".join(trial.notes)}
    tags = {key: text[-TAG_CHARACTERS:] for key, text in texts.items() if text}
    return {**tags, STATE_TAG: trial.state}
