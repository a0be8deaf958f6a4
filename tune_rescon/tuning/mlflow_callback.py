"""Passes the trials to MLflow's writer, and records which MLflow run shows which trial."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from typing_extensions import override

from tune_rescon.config import trial_name
from tune_rescon.data import DatasetInfo, is_url
from tune_rescon.errors import hide_passwords
from tune_rescon.metric_names import (
    GPU_METRICS,
    GPU_UTILISATION,
    MAX_CLASSES_LOGGED,
    PEAK_MEMORY,
    TEST_METRICS,
    is_test_metric,
)
from tune_rescon.spaces import Space
from tune_rescon.tracking import (
    Champion,
    Destination,
    Images,
    MlflowWriter,
    SearchRunState,
    TrialRunState,
    mlflow_names,
    now_ms,
)
from tune_rescon.tuning.callbacks import SearchCallback
from tune_rescon.tuning.cost_model import CostModel, TrialCost, compute_hours
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.identity import Identity
from tune_rescon.tuning.options import RunOptions, sync_command
from tune_rescon.tuning.result import SearchState, StudyResult
from tune_rescon.tuning.stopping.rule import Verdict
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import INACTIVE, TrialRecord

__all__ = [
    "MlflowCallback",
    "ParentRun",
    "closing_message",
    "closing_metrics",
    "destination",
    "experiment_name",
    "logged_images",
    "record_experiment",
]


#: Seconds that are needed to export and register a network on two slow cores (benchmarks/own_time.py).
REGISTRATION_SECONDS: Final = 10


#: The study's attribute with the name of the search's experiment. Earlier versions used the dataset's name.
_EXPERIMENT: Final = "experiment"


def experiment_name(space: Space) -> str:
    """Return the name of the MLflow experiment of a new search: its dataset's name, or its folder's.

    >>> from tune_rescon.spaces import load_space
    >>> experiment_name(load_space("folder", ["path=/data/pets/"])), experiment_name(load_space("digits"))
    ('pets', 'digits')
    """
    dataset = space.dataset
    if dataset.name != "folder" or dataset.path is None:
        return dataset.name
    path = urlsplit(dataset.path).path if is_url(dataset.path) else dataset.path
    last = PurePosixPath(path)
    return (last.stem if last.suffix.lower() == ".zip" else last.name) or dataset.name


def record_experiment(record: StudyRecord, space: Space) -> None:
    """Record the experiment of a new search, which it keeps if its images are moved."""
    record.set_attribute(_EXPERIMENT, experiment_name(space))


def destination(
    space: Space, folder: SearchFolder, tracking_uri: str | None, record: StudyRecord | None
) -> Destination:
    """Return the destination of a search's runs.

    Args:
        space: The search's space.
        folder: The search's files.
        tracking_uri: MLflow's tracking URI; None for the storage's own store.
        record: The record of a search that has begun, whose experiment is kept; None for a new search.
    """
    runs: list[str] = []
    if record is None:
        experiment = experiment_name(space)
    else:
        experiment = record.attribute(_EXPERIMENT) or space.dataset.name
        runs = [trial.mlflow_run_id for trial in record.trials() if trial.mlflow_run_id]
    return Destination(
        uri=tracking_uri or folder.mlflow_uri,
        experiment=experiment,
        search=folder.name,
        metric=_mlflow_name(space.metric.name),
        maximize=space.metric.mode == "max",
        artifacts=None if tracking_uri else folder.mlflow_artifacts,
        # The last one, because the tracking URI may have changed since the first. The first one, because a
        # store that was restored from a backup has no newer ones.
        known_runs=(*runs[-1:], *runs[:1]),
    )


def closing_message(champion: Champion | None, options: RunOptions) -> str:
    """Return a message about the work that follows the result: its duration, and how to postpone it."""
    if champion is None:
        return "Writing the report and completing MLflow"
    return (
        f"Writing the report and registering the model of {trial_name(champion.number)} in MLflow: about"
        f" {REGISTRATION_SECONDS} s. Ctrl-C leaves MLflow for later: {sync_command(options)}"
    )


class ParentRun:
    """Passes the newest state of the search's own MLflow run to the writer."""

    def __init__(
        self,
        writer: MlflowWriter,
        store: SearchStore,
        *,
        identity: Identity,
        trials: Iterable[TrialRecord],
        tracking_uri: str | None,
        tags: Mapping[str, str],
        images: Iterable[Images] = (),
        files: Sequence[Path] = (),
    ) -> None:
        """Prepare the first state; :meth:`start` sends it.

        Args:
            writer: The writer that receives the states.
            store: The storage of the search.
            identity: The search's identity, by which its runs are found.
            trials: The trials that the record already has.
            tracking_uri: MLflow's tracking URI; None for the storage's own store.
            tags: Tags of the search's run.
            images: The datasets on which the trials train.
            files: Files to log as artifacts from the beginning.
        """
        self._writer = writer
        self._identity = identity
        # The storage's own MLflow store is copied to its URL, but the artifacts are not.
        self._uploads = store.url is None or tracking_uri is not None
        folder = hide_passwords(store.url or str(store.folder.path))
        trials = tuple(trials)
        self._state = SearchRunState(
            id=identity.id,
            place=identity.location,
            known_runs=tuple(trial.mlflow_run_id for trial in trials if trial.mlflow_run_id),
            tags={"tune_rescon.folder": folder, **tags},
            note=_with_identity(identity, ""),
            images=tuple(images),
            files=tuple(files) if self._uploads else (),
            # Not the current time: the run may be created long after, on a server that was away before.
            started_ms=min((_ms(trial.start_seconds) for trial in trials if trial.started), default=now_ms()),
        )

    def start(self) -> None:
        """Show that the search begins."""
        self._show()

    def note(self, text: str) -> None:
        """Replace the note of the search's run."""
        self._show(note=_with_identity(self._identity, text))

    def preload_exporter(self) -> None:
        """Tell the writer that :meth:`end` will soon register a network."""
        if self._uploads:
            self._show(preload_exporter=True)

    def end(
        self, result: StudyResult, files: Sequence[Path], note: str, *, ended_ms: int | None = None
    ) -> None:
        """Show how the search ended, and register its :meth:`champion`.

        Args:
            result: The result of the search.
            files: Files to log as artifacts.
            note: The note of the search's run, as markdown.
            ended_ms: When the search ended, in milliseconds since 1970; None for now.
        """
        self._show(
            state=result.state.value,
            note=_with_identity(self._identity, note),
            closing={f"best_{_mlflow_name(result.metric)}": result.best.value} if result.best else {},
            champion=self.champion(result),
            files=tuple(files) if self._uploads else (),
            ended_ms=now_ms() if ended_ms is None else ended_ms,
        )

    def _show(self, **changes: Any) -> None:
        self._state = dataclasses.replace(self._state, **changes)
        self._writer.submit(self._state)

    def champion(self, result: StudyResult) -> Champion | None:
        """Return the trial whose network is registered at the end; None if no network is registered."""
        best = result.best
        over = result.state is SearchState.FINISHED
        checkpoint = result.kept_checkpoint(best) if best else None
        if not over or best is None or checkpoint is None or not self._uploads:
            return None
        return Champion(
            number=best.number,
            epoch=best.value_epoch,
            checkpoint=checkpoint,
            value=f"{best.metric} {best.value:.4g} (metric.at: {best.at})",
        )


def _with_identity(identity: Identity, note: str) -> str:
    """Append the search's id and location to a note, because several searches may have the same name."""
    return f"{note}\n\nSearch `{identity.id[:8]}`, in `{identity.location}`".strip()


def logged_images(infos: Mapping[str, DatasetInfo], digests: Mapping[str, str]) -> tuple[Images, ...]:
    """Return the datasets that MLflow shows with a search, which are those whose digest is known.

    Args:
        infos: The description of each dataset, by name.
        digests: The digest of the images and splits of each dataset, by name.
    """
    return tuple(
        Images(
            name=info.name,
            digest=digests[name],
            counts={"train": info.train_images, "val": info.val_images, "test": info.test_images},
        )
        for name, info in infos.items()
        if name in digests
    )


#: Fixed values that each trial's run also shows. They distinguish searches on one dataset that MLflow shows
#: side by side. All fixed values are in ``space.yaml``, an artifact of the search's run.
SHOWN_FIXED: Final = frozenset(
    ("batch_size", "depth", "image_size", "layout", "learning_rate", "optimizer", "preset", "width")
)


class MlflowCallback(SearchCallback):
    """Passes each trial's newest state to the writer."""

    def __init__(
        self,
        writer: MlflowWriter,
        record: StudyRecord,
        costs: CostModel,
        *,
        preload_exporter: Callable[[], object] | None = None,
    ) -> None:
        """Connect ``writer`` and ``record``.

        Args:
            writer: The writer that receives the states.
            record: The search's record.
            costs: The space and the cost model of its networks.
            preload_exporter: Called once, when all trials have begun and one of them has a checkpoint.
        """
        self._writer = writer
        self._record = record
        self._space = costs.space
        self._fixed = {name: value for name, value in self._space.fixed.items() if name in SHOWN_FIXED}
        self._costs = costs
        self._preload_exporter = preload_exporter

    @override
    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        """Send every trial of the record again, because a driver that died may not have sent all of it."""
        for trial in trials:
            self._writer.submit(self.run_state(trial))

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        """Open or reopen the trial's run."""
        self._show(trial)

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Show the trial with its new epoch."""
        del metrics, verdict
        # The worker processes have finished their imports, so MLflow's process no longer delays the first
        # epochs.
        self._writer.wake()
        self._show(trial)
        if self._preload_exporter and trial.checkpoint and len(self._record) >= self._space.budget.trials:
            self._preload_exporter()
            self._preload_exporter = None

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        """Log the closing metrics and end the run; of a paused or interrupted trial, show only the state."""
        state = self.run_state(trial)
        # The record has no end of a trial that may continue.
        self._writer.submit(state if trial.ended else dataclasses.replace(state, ended_ms=now_ms()))

    def record_runs(self) -> None:
        """Record the runs that the writer has opened.

        It writes the record: call it only where the record may be written (:class:`.StudyRecord`).
        """
        for number, run_id in self._writer.opened_runs():
            if self._record.trial(number).mlflow_run_id != run_id:
                self._record.set_run_id(number, run_id)

    def run_state(self, trial: TrialRecord) -> TrialRunState:
        """Return the state of a trial as MLflow shows it."""
        names = (*self._space.parameters, *trial.parameters)
        chosen = {name: trial.setting(name, INACTIVE) for name in names}
        # A field that is fixed now may have been searched when the trial was sampled.
        fixed = {name: trial.setting(name, value) for name, value in self._fixed.items()}
        final, devices = trial.state.is_final, self._space.resources_per_trial.devices
        logged = mlflow_names(name for name in trial.history if _is_logged_by_epoch(name))
        return TrialRunState(
            number=trial.number,
            run_id=trial.mlflow_run_id,
            state=trial.state.value,
            params={
                name: INACTIVE if value is None else hide_passwords(str(value))
                for name, value in {**fixed, **chosen}.items()
            },
            history={shown: trial.history[name] for name, shown in logged.items()},
            times_ms=trial.times_ms,
            closing=closing_metrics(trial, self._costs.cost(trial), devices) if final else {},
            error=trial.error,
            notes=trial.notes,
            started_ms=_ms(trial.start_seconds),
            ended_ms=last_ms(trial),
        )

    def _show(self, trial: TrialRecord) -> None:
        self._writer.submit(self.run_state(trial))
        self.record_runs()


def _is_logged_by_epoch(name: str) -> bool:
    """Return whether a metric is logged for each epoch.

    The peak of the memory never decreases, and a network is evaluated on the test images once: these are
    logged when the trial ends. The seconds that a GPU may have been idle are only for the report.
    """
    return name == GPU_UTILISATION or not (name in GPU_METRICS or is_test_metric(name))


def last_ms(trial: TrialRecord) -> int:
    """Return when a trial ended, in milliseconds since 1970; before its end, when its last epoch ended.

    The record has no end of a trial that was interrupted or paused, and MLflow may be told of it days later.
    """
    if trial.ended is None and trial.times_ms:
        return trial.times_ms[-1]
    return _ms(trial.start_seconds if trial.ended is None else trial.end_seconds)


def _ms(seconds: float | None) -> int:
    # The trial's own time, so that MLflow shows one point for data that is sent twice.
    return now_ms() if seconds is None else int(seconds * 1000)


def closing_metrics(trial: TrialRecord, cost: TrialCost, devices: float) -> dict[str, float]:
    """Return the metrics that are logged once when a trial ends: the best values and the cost.

    They are logged so that MLflow's table shows them.

    Args:
        trial: The trial.
        cost: The cost of the trial's network.
        devices: The number of devices for epochs whose own number is not recorded.
    """
    metrics = {
        "compute_hours": compute_hours(trial, devices),
        "params_m": cost.params_m,
        "gmacs": cost.gmacs,
    }
    if peaks := _finite(trial, PEAK_MEMORY):
        metrics[PEAK_MEMORY] = max(peaks)
    if rates := _finite(trial, "images_per_second"):
        # The harmonic mean is all images divided by all seconds, because each epoch trains on the same number
        # of images.
        metrics["mean_images_per_second"] = statistics.harmonic_mean(rates)
    tested = [name for name in trial.history if is_test_metric(name)]
    if len(tested) > MAX_CLASSES_LOGGED + len(TEST_METRICS):
        tested = [name for name in tested if name in TEST_METRICS]
    for name, shown in mlflow_names(tested).items():
        if seen := _finite(trial, name):
            metrics[shown] = seen[-1]
    if trial.best_epoch:
        accuracy = _finite(trial, "val_accuracy")
        metrics["best_epoch"] = float(trial.best_epoch)
        if accuracy:
            metrics["best_val_accuracy"] = max(accuracy)
        metrics[f"best_{_mlflow_name(trial.metric)}"] = trial.best_value
    return metrics


def _mlflow_name(metric: str) -> str:
    return mlflow_names([metric])[metric]


def _finite(trial: TrialRecord, name: str) -> list[float]:
    return [value for value in trial.history.get(name, ()) if math.isfinite(value)]
