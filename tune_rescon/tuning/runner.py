"""A search from beginning to end: checks, data, Ray, trials, files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tune_rescon import __version__
from tune_rescon.config import TrialState
from tune_rescon.data import DatasetFacts
from tune_rescon.spaces import Space, dump_space, grid_points, to_optuna
from tune_rescon.tracking import MlflowWriter, SearchEnded, SearchStarted, check_tracking_uri
from tune_rescon.tuning.cluster import fit_slots, ray_session
from tune_rescon.tuning.coordinator import Coordinator, SearchListener, SearchPlan
from tune_rescon.tuning.execution import execute
from tune_rescon.tuning.folder import SearchFolder, write_atomically
from tune_rescon.tuning.interruption import interruptible
from tune_rescon.tuning.ladder import ladder_levels, make_rule
from tune_rescon.tuning.noise import library_log
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.preparation import anchored, prepare_data
from tune_rescon.tuning.proposer import Proposer
from tune_rescon.tuning.record import StudyRecord
from tune_rescon.tuning.result import StudyResult, best_file, best_trial
from tune_rescon.tuning.summary import TrialSummary
from tune_rescon.tuning.tasks import TaskMaker
from tune_rescon.tuning.tracking_listener import TrackingListener
from tune_rescon.tuning.trial import run_trial
from tune_rescon.tuning.warm_start import note_earlier, noted_earlier, trials_of

__all__ = ["run_search"]

#: Seconds the end of a search waits for MLflow to take what is still queued.
TRACKING_PATIENCE: Final = 60.0


def run_search(
    space: Space,
    options: RunOptions,
    *,
    listeners: Sequence[SearchListener] = (),
    trainable: Callable[[dict[str, Any]], None] = run_trial,
    write_report: Callable[[StudyResult, Path], None] | None = None,
) -> StudyResult:
    """Search ``space``: from nothing, or on from what the record of ``options.name`` holds.

    Args:
        space: what to search; its ``budget.trials`` is the total, earlier runs included.
        options: where.
        listeners: told of every trial and epoch, on this thread.
        trainable: what Ray runs for each trial; a test may give a fake one.
        write_report: writes the report's file from the result, before MLflow is given it.

    Raises:
        UserError: something given is wrong; nothing is left behind.
        SearchError: the search failed.
    """
    folder = SearchFolder(storage=options.storage.resolve(), name=options.name)
    space = anchored(space)
    check_tracking_uri(options.tracking_uri or folder.mlflow_uri)
    with _folder_of(folder, resume=options.resume), library_log(folder.log):
        facts = prepare_data(space, options)
        with ray_session(options.address) as resources:
            slots = fit_slots(
                resources,
                cpu=space.resources_per_trial.cpu,
                gpu=space.resources_per_trial.gpu,
                wanted=space.budget.concurrent,
            )
            search = _Search(space, options, folder, facts, listeners)
            return search.run(trainable, slots, write_report)


class _Search:
    """One run of one search: the parts, put together once Ray and the data are there."""

    def __init__(
        self,
        space: Space,
        options: RunOptions,
        folder: SearchFolder,
        facts: Mapping[str, DatasetFacts],
        listeners: Sequence[SearchListener],
    ) -> None:
        self._space = space
        self._options = options
        self._folder = folder
        self._maker = TaskMaker(space=space, options=options, folder=folder, facts=facts)
        self._devices = self._maker.devices
        self._record, background, words = _open_record(space, options, folder)
        self._writer = MlflowWriter(
            options.tracking_uri or folder.mlflow_uri,
            experiment=space.dataset.name,
            search=options.name,
            metric=space.metric.name,
            maximize=space.metric.mode == "max",
            artifacts=None if options.tracking_uri else folder.mlflow_artifacts,
        )
        self._writer.put(SearchStarted(tags=_provenance(), files=(str(folder.space_yaml),)))
        self._tracking = TrackingListener(self._writer, self._record, space, self._maker.cost, self._devices)
        self._coordinator = Coordinator(
            _plan(space, self._maker),
            self._record,
            make_rule(space),
            Proposer(space, rows=_rows(space), background=background, known=self._record.trials()),
            listeners=(self._tracking, *listeners),
            prune=lambda number, keep: folder.prune_checkpoints(number, keep=keep),
        )
        if words:
            self._coordinator.tell(words)

    def run(
        self,
        trainable: Callable[[dict[str, Any]], None],
        slots: int,
        write_report: Callable[[StudyResult, Path], None] | None,
    ) -> StudyResult:
        """Run the trials; whatever ends them, leave the files and MLflow as the record is."""
        write_atomically(self._folder.space_yaml, dump_space(self._space))
        self._writer.start()
        state = TrialState.FAILED
        try:
            with interruptible(self._coordinator.interrupt):
                self._execute(trainable, slots)
            state = self._how_it_ended()
        except KeyboardInterrupt:
            state = TrialState.INTERRUPTED
        finally:
            self._coordinator.settle()
            result = self._conclude(state, write_report)
        return result

    def _how_it_ended(self) -> TrialState:
        if self._coordinator.failure is not None:
            return TrialState.FAILED
        return TrialState.INTERRUPTED if self._coordinator.interrupted else TrialState.FINISHED

    def _execute(self, trainable: Callable[[dict[str, Any]], None], slots: int) -> None:
        execute(
            self._coordinator,
            make_task=self._maker.task,
            trainable=trainable,
            resources={
                "cpu": float(self._space.resources_per_trial.cpu),
                "gpu": self._space.resources_per_trial.gpu,
            },
            concurrent=slots,
        )

    def _conclude(
        self, state: TrialState, write_report: Callable[[StudyResult, Path], None] | None
    ) -> StudyResult:
        folder, result = self._folder, self._result(state)
        folder.write_trials(result.trials, self._space.parameters)
        files = [folder.space_yaml, folder.trials_csv]
        if result.best is not None:
            folder.write_best(best_file(result))
            files.append(folder.best_yaml)
        if write_report is not None:
            write_report(result, folder.report_html)
            files.append(folder.report_html)
        best = {f"best_{result.metric}": result.best.best_value} if result.best else {}
        self._writer.put(SearchEnded(state=state.value, metrics=best, files=tuple(map(str, files))))
        unsent = self._writer.close(TRACKING_PATIENCE)
        self._tracking.note_runs()
        return dataclasses.replace(result, trials=self._record.trials(), unsent=unsent)

    def _result(self, state: TrialState) -> StudyResult:
        trials = self._record.trials()
        best = best_trial(trials)
        return StudyResult(
            name=self._options.name,
            folder=self._folder.path,
            metric=self._space.metric.name,
            maximize=self._record.maximize,
            trials=trials,
            costs={trial.number: self._maker.cost(trial) for trial in trials},
            devices_per_trial=self._devices,
            device="GPU" if self._space.resources_per_trial.gpu else "CPU",
            levels=ladder_levels(self._space),
            best=best,
            best_config=self._maker.config(best.parameters).to_dict() if best else {},
            interrupted=state is TrialState.INTERRUPTED,
            tracking_uri=self._writer.uri,
            unsent=0,
            against=self._space.metric.against,
            failure=self._coordinator.failure,
        )


@contextmanager
def _folder_of(folder: SearchFolder, *, resume: bool) -> Iterator[None]:
    """The search's folder; a new one is taken back if the search cannot begin."""
    if resume:
        folder.require()
        yield
        return
    storage_is_new = not folder.storage.exists()
    folder.create()
    try:
        yield
    except BaseException:
        # The space is the first file of a search that has begun.
        if not folder.space_yaml.exists():
            folder.remove(with_storage=storage_is_new)
        raise


def _open_record(
    space: Space, options: RunOptions, folder: SearchFolder
) -> tuple[StudyRecord, list[TrialSummary], str]:
    """The record, the earlier trials its sampler learns from, and a sentence on them if they are new."""
    url = options.study_url or folder.study_url
    metric = space.metric.name
    if options.resume:
        record = StudyRecord.load(url, options.name, metric=metric)
        return record, noted_earlier(record), ""
    earlier, words = trials_of(space, options) if options.warm_start else ([], "")
    record = StudyRecord.create(
        url,
        options.name,
        metric=metric,
        maximize=space.metric.mode == "max",
        space=dump_space(space),
        against=space.metric.against,
    )
    note_earlier(record, earlier)
    return record, noted_earlier(record), words


def _rows(space: Space) -> list[dict[str, Any]]:
    """The first trials' parameters, which nobody draws."""
    rows = grid_points(space) if space.sampler.type == "grid" else space.initial
    return [to_optuna(row) for row in rows]


def _plan(space: Space, maker: TaskMaker) -> SearchPlan:
    hours = space.budget.hours
    return SearchPlan(
        total=space.budget.trials,
        deadline=None if hours is None else time.monotonic() + hours * 3600,
        group=maker.group,
        cost=maker.second_objective if space.metric.against else None,
        same_memory=maker.same_memory,
    )


def _provenance() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "torchvision", "ray", "optuna", "pytorch-lightning")
    versions = {f"version.{name}": version(name) for name in packages}
    return {"tune_rescon.version": __version__, **versions}
