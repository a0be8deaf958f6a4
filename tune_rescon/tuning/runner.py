"""A search from beginning to end: checks, data, Ray, trials, files."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Final

from tune_rescon.errors import LeaseLostError, RecordBusyError
from tune_rescon.spaces import Space, dump_space, grid_points, to_optuna
from tune_rescon.tracking import (
    Champion,
    Images,
    MlflowWriter,
    SearchView,
    check_tracking_uri,
    now_ms,
)
from tune_rescon.tuning.coordination.coordinator import Coordinator, SearchPlan
from tune_rescon.tuning.coordination.hours import deadline, spent_words
from tune_rescon.tuning.execution.cluster import RaySession, fit_slots, ray_session
from tune_rescon.tuning.execution.cluster_size import sampled_cluster
from tune_rescon.tuning.execution.execute import execute
from tune_rescon.tuning.execution.interruption import Interruption, listening
from tune_rescon.tuning.execution.noise import diverted, library_log
from tune_rescon.tuning.execution.supervision import Turns, run_aside
from tune_rescon.tuning.execution.trial import run_trial
from tune_rescon.tuning.execution.watch import Watch
from tune_rescon.tuning.gauges import ClusterSize, Gauges
from tune_rescon.tuning.listener import SearchListener
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.ownership.lease import LeaseKeeper, hold_lease
from tune_rescon.tuning.ownership.lease_store import StudyLeaseStore
from tune_rescon.tuning.preparation import Prepared, anchored, prepare_data
from tune_rescon.tuning.proposing.proposer import Proposer
from tune_rescon.tuning.proposing.warm_start import note_earlier, noted_earlier, trials_of
from tune_rescon.tuning.provenance import provenance
from tune_rescon.tuning.record.folder import SearchFolder, write_atomically
from tune_rescon.tuning.record.study import StudyRecord
from tune_rescon.tuning.result import SearchState, StudyResult, best_file
from tune_rescon.tuning.rules.ladder import make_rule
from tune_rescon.tuning.run_notes import note_outcome, note_run
from tune_rescon.tuning.store.search_store import SearchStore, open_store
from tune_rescon.tuning.summing_up import sum_up
from tune_rescon.tuning.tasks import TaskMaker
from tune_rescon.tuning.tensorboard_listener import check_tensorboard, event_files
from tune_rescon.tuning.tracking_listener import TrackingListener

__all__ = ["run_search"]

#: Seconds the end of a search waits for MLflow, and for a storage at a URL, to take what is still queued;
#: what it waits if somebody wants it to stop at once.
TRACKING_PATIENCE: Final = 60.0
STORAGE_PATIENCE: Final = 60.0
HURRIED_PATIENCE: Final = 2.0

#: A lease at a URL is longer: a beat there is several requests, and each is repeated for half a minute where
#: the store refuses it (s3fs's 5 tries of botocore's 5).
URL_LEASE_FACTOR: Final = 4

_LOGGER = logging.getLogger(__name__)


def run_search(
    space: Space,
    options: RunOptions,
    *,
    listeners: Sequence[SearchListener] = (),
    trainable: Callable[[dict[str, Any]], None] = run_trial,
    write_report: Callable[[StudyResult, Path], None] | None = None,
    say: Callable[[str], object] = _LOGGER.info,
    attend: Callable[[Gauges], object] | None = None,
) -> StudyResult:
    """Search ``space``: from nothing, or on from what the record of ``options.name`` holds.

    Args:
        space: what to search; its ``budget.trials`` is the total, earlier runs included.
        options: where.
        listeners: told of every trial and epoch, one call at a time, on a thread of the search's.
        trainable: what Ray runs for each trial; a test may give a fake one.
        write_report: writes the report's file from the result, before MLflow is given it.
        say: tells the user what keeps the search waiting, or ends it.
        attend: given, before the first trial begins, what can be read while the search runs.

    Raises:
        UserError: something given is wrong, or another driver has the search; nothing is left behind.
        SearchError: the search failed.
        KeyboardInterrupt: a signal came before the first trial; nothing new is left behind.
    """
    space = anchored(space)
    if options.tracking_uri is not None:
        check_tracking_uri(options.tracking_uri)
    if options.tensorboard:
        check_tensorboard()
    interruption = Interruption(grace=options.grace_seconds, clock=time.monotonic)
    with (
        listening(interruption),
        open_store(options) as store,
        library_log(store.folder.log),
        # Given back last, when no worker of this driver's can touch a checkpoint any more.
        ExitStack() as held,
    ):
        lease = held.enter_context(_lease(options, store, say)) if options.resume else None
        store.fetch()
        prepared = prepare_data(space, options)
        with (
            diverted(store.folder.log) if options.divert_output else nullcontext(),
            ray_session(options.address) as ray,
            sampled_cluster(ray.gone) as cluster,
        ):
            slots = fit_slots(
                ray.resources,
                cpu=space.resources_per_trial.cpu,
                gpu=space.resources_per_trial.gpu,
                wanted=space.budget.concurrent,
            )
            record = _open_record(space, options, store.folder, say)
            lease = lease or held.enter_context(_lease(options, store, say))
            if options.tensorboard:
                files = event_files(store.folder.tensorboard, space)
                listeners = [held.enter_context(files), *listeners]
            search = _Search(space, options, store, prepared, listeners, record, lease, ray)
            watch = search.watch(interruption, ray, say)
            if attend is not None:
                attend(search.gauges(slots, cluster))
            interruption.deferred = True
            result = search.run(trainable, slots, write_report, watch)
        spent = _spent_words(space, options, lease, result)
        if spent is not None:
            say(spent)
        return result


class _Search:
    """One run of one search: the parts, put together once Ray and the data are there."""

    def __init__(
        self,
        space: Space,
        options: RunOptions,
        store: SearchStore,
        prepared: Mapping[str, Prepared],
        listeners: Sequence[SearchListener],
        record: StudyRecord,
        lease: LeaseKeeper,
        ray: RaySession,
    ) -> None:
        self._space = space
        self._options = options
        self._store = store
        self._folder = folder = store.folder
        facts = {name: dataset.facts for name, dataset in prepared.items()}
        self._maker = TaskMaker(space=space, options=options, store=store, facts=facts)
        self._devices = self._maker.devices
        self._record = record
        self._lease = lease
        self._writer = MlflowWriter(
            options.tracking_uri or folder.mlflow_uri,
            experiment=space.dataset.name,
            search=options.name,
            metric=space.metric.name,
            maximize=space.metric.mode == "max",
            artifacts=None if options.tracking_uri else folder.mlflow_artifacts,
        )
        tags = {"tune_rescon.folder": store.url or str(folder.path), **provenance(ray.resources)}
        self._shown = SearchView(
            tags=tags,
            began_with=len(record),
            images=tuple(map(_images, prepared.values())),
            files=self._artifacts(folder.space_yaml),
        )
        self._writer.show(self._shown)
        self._tracking = TrackingListener(self._writer, self._record, space, self._maker.cost, self._devices)
        self._plan = _plan(space, self._maker, lease)
        self._coordinator = Coordinator(
            self._plan,
            self._record,
            make_rule(space),
            Proposer(space, rows=_rows(space), background=noted_earlier(record), known=record.trials()),
            listeners=(self._tracking, *store.listeners, *listeners),
            prune=store.prune,
        )

    def gauges(self, slots: int, cluster: Callable[[], ClusterSize | None]) -> Gauges:
        """What can be read while the trials run."""
        return Gauges(
            slots=slots,
            deadline=self._plan.deadline,
            waiting=lambda: self._writer.waiting,
            cluster=cluster,
        )

    def watch(self, interruption: Interruption, ray: RaySession, say: Callable[[str], object]) -> Watch:
        """What is looked at while the trials run."""
        return Watch(
            interruption,
            ray_gone=ray.gone,
            assure=self._lease.assure,
            interrupt=self._coordinator.interrupt,
            say=say,
        )

    def run(
        self,
        trainable: Callable[[dict[str, Any]], None],
        slots: int,
        write_report: Callable[[StudyResult, Path], None] | None,
        watch: Watch,
    ) -> StudyResult:
        """Run the trials; whatever ends them, leave the files and MLflow as the record is."""
        note_run(self._record, self._maker.facts, self._options.tracking_uri)
        write_atomically(self._folder.space_yaml, dump_space(self._space))
        self._store.begin(trial.number for trial in self._record.trials())
        self._writer.start()
        turns = Turns(self._lease.assure)
        try:
            work = functools.partial(self._execute, trainable, slots, turns)
            run_aside(work, leave=watch.leave, turns=turns)
        except (LeaseLostError, RecordBusyError):
            # The record is not this driver's to write to.
            self._store.abandon()
            self._writer.close(HURRIED_PATIENCE)
            raise
        except Exception:
            # A Ray that dies makes Tune raise anything; what died is said instead.
            if not watch.ray_is_gone:
                self._conclude(SearchState.FAILED, write_report, watch)
                raise
        state = SearchState.INTERRUPTED if watch.interrupted else SearchState.FINISHED
        failed = watch.failure or self._coordinator.failure
        return self._conclude(SearchState.FAILED if failed else state, write_report, watch)

    def _execute(self, trainable: Callable[[dict[str, Any]], None], slots: int, turns: Turns) -> None:
        execute(
            self._coordinator,
            make_task=self._maker.task,
            trainable=trainable,
            resources={
                "cpu": float(self._space.resources_per_trial.cpu),
                "gpu": self._space.resources_per_trial.gpu,
            },
            concurrent=slots,
            turns=turns,
        )

    def _conclude(
        self, state: SearchState, write_report: Callable[[StudyResult, Path], None] | None, watch: Watch
    ) -> StudyResult:
        self._coordinator.settle()
        folder, result = self._folder, self._result(state, watch.failure or self._coordinator.failure)
        note_outcome(self._record, state, result.failure)
        folder.write_trials(result.trials, self._space.parameters)
        files = [folder.space_yaml, folder.trials_csv]
        if result.best is not None:
            folder.write_best(best_file(result))
            files.append(folder.best_yaml)
        if write_report is not None:
            write_report(result, folder.report_html)
            files.append(folder.report_html)
        self._show_end(state, result, files)
        unsent = watch.hurried(self._writer.close, TRACKING_PATIENCE, HURRIED_PATIENCE)
        self._tracking.note_runs()
        unkept = watch.hurried(self._store.close, STORAGE_PATIENCE, HURRIED_PATIENCE)
        return dataclasses.replace(result, trials=self._record.trials(), unsent=unsent, unkept=unkept)

    def _show_end(self, state: SearchState, result: StudyResult, files: Sequence[Path]) -> None:
        best = {f"best_{result.metric}": result.best.best_value} if result.best else {}
        self._shown = dataclasses.replace(
            self._shown,
            state=state.value,
            closing=best,
            champion=self._champion(state, result),
            files=self._artifacts(*files),
            ended_ms=now_ms(),
        )
        self._writer.show(self._shown)

    def _champion(self, state: SearchState, result: StudyResult) -> Champion | None:
        best = result.best
        if state is not SearchState.FINISHED or best is None or best.checkpoint is None or not self._uploads:
            return None
        return Champion(number=best.number, epoch=best.best_epoch, checkpoint=best.checkpoint)

    @property
    def _uploads(self) -> bool:
        """Not where MLflow's store travels with the search, for its artifacts do not."""
        return self._store.url is None or self._options.tracking_uri is not None

    def _artifacts(self, *files: Path) -> tuple[Path, ...]:
        """What MLflow is given."""
        return files if self._uploads else ()

    def _result(self, state: SearchState, failure: str | None) -> StudyResult:
        return sum_up(
            self._maker,
            self._record.trials(),
            name=self._options.name,
            folder=self._folder.path,
            state=state,
            tracking_uri=self._writer.uri,
            url=self._store.url,
            failure=failure,
        )


def _images(prepared: Prepared) -> Images:
    facts = prepared.facts
    counts = {"train": facts.train_images, "val": facts.val_images, "test": facts.test_images}
    return Images(name=facts.name, digest=prepared.digest, counts=counts)


def _open_record(
    space: Space, options: RunOptions, folder: SearchFolder, say: Callable[[str], object]
) -> StudyRecord:
    url = options.study_url or folder.study_url
    metric = space.metric.name
    if options.resume:
        return StudyRecord.load(url, options.name, metric=metric)
    earlier = trials_of(space, options, say) if options.warm_start else []
    record = StudyRecord.create(
        url,
        options.name,
        metric=metric,
        maximize=space.metric.mode == "max",
        space=dump_space(space),
        against=space.metric.against,
    )
    note_earlier(record, earlier)
    return record


def _rows(space: Space) -> list[dict[str, Any]]:
    """The first trials' parameters, which nobody draws."""
    rows = grid_points(space) if space.sampler.type == "grid" else space.initial
    return [to_optuna(row) for row in rows]


def _lease(
    options: RunOptions, store: SearchStore, say: Callable[[str], object]
) -> AbstractContextManager[LeaseKeeper]:
    at_url = store.lease
    if at_url is not None:
        seconds = URL_LEASE_FACTOR * options.lease_seconds
        return hold_lease(at_url, name=options.name, seconds=seconds, say=say)
    database = StudyLeaseStore.open(options.study_url or store.folder.study_url, options.name)
    return hold_lease(database, name=options.name, seconds=options.lease_seconds, say=say)


def _plan(space: Space, maker: TaskMaker, lease: LeaseKeeper) -> SearchPlan:
    """The plan of this run."""
    return SearchPlan(
        total=space.budget.trials,
        deadline=deadline(space.budget.hours, driven=lease.driven, now=time.monotonic()),
        group=maker.group,
        cost=maker.second_objective if space.metric.against else None,
        same_memory=maker.same_memory,
        guard=lease.assure,
    )


def _spent_words(space: Space, options: RunOptions, lease: LeaseKeeper, result: StudyResult) -> str | None:
    if result.interrupted or result.failure is not None:
        return None
    budget = space.budget
    trials = len(result.trials)
    return spent_words(
        budget.hours, driven=lease.driven, name=options.name, trials=trials, total=budget.trials
    )
