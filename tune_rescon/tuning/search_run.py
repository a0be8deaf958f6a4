"""One run of a search: its trials, the files that it writes at its end, and its updates of MLflow."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tune_rescon.errors import LeaseLostError, RecordError, presentable
from tune_rescon.spaces import Space, dump_space
from tune_rescon.tracking import MlflowWriter
from tune_rescon.tuning.assembly import make_coordinator, make_plan
from tune_rescon.tuning.callbacks import CallbackList, ClusterSize, Gauges, Presentation, SearchCallback
from tune_rescon.tuning.coordinator import Coordinator
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.folder import SearchFolder, usable_directory, write_atomically
from tune_rescon.tuning.identity import Identity, ensure_identity, with_id
from tune_rescon.tuning.input_digests import code_digests, record_code, record_images
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.mlflow_callback import MlflowCallback, ParentRun, closing_message, logged_images
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.prepare import PreparedData
from tune_rescon.tuning.ray.session import RaySession
from tune_rescon.tuning.ray.shutdown import DriverLock, SignalState, Watch, run_in_thread
from tune_rescon.tuning.reader import with_record
from tune_rescon.tuning.result import (
    SearchState,
    StudyResult,
    best_file,
    build_result,
    missing_winner,
    spent_message,
)
from tune_rescon.tuning.resume import waiting_message
from tune_rescon.tuning.space_versions import SpaceVersions
from tune_rescon.tuning.stopping.from_space import make_stopping_rule
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.study_attributes import (
    planned_slots,
    provenance,
    read_run_attributes,
    record_outcome,
    record_provenance,
    record_run,
)
from tune_rescon.tuning.tensorboard_callback import EventFiles

__all__ = ["STORAGE_TIMEOUT", "RunSetup", "SearchRun", "begin_run", "write_report", "write_tables"]


#: Seconds that a search waits at its end for MLflow, and for a storage at a URL, to accept the queued
#: updates. ``HURRIED_TIMEOUT`` applies instead when the user wants the search to stop at once.
TRACKING_TIMEOUT: Final = 60.0
STORAGE_TIMEOUT: Final = 60.0
HURRIED_TIMEOUT: Final = 2.0

_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSetup:
    """What one run of a search uses, once Ray has started and the data are prepared."""

    options: RunOptions
    store: SearchStore
    record: StudyRecord
    lease: LeaseKeeper
    writer: MlflowWriter
    versions: SpaceVersions
    """The spaces that the search has had, with the one to run as the newest."""
    data: PreparedData
    slots: int
    """Number of trials that run at once."""
    presentation: Presentation | None
    """Displays the search; None displays nothing."""

    @property
    def space(self) -> Space:
        """The space to run."""
        return self.versions.newest


@contextmanager
def begin_run(
    setup: RunSetup, callbacks: Sequence[SearchCallback], interruption: SignalState, ray: RaySession
) -> Iterator[SearchRun]:
    """Show the search in MLflow, start its display, and carry out the decisions that the record holds.

    At the end of the block, the display ends and TensorBoard's files are closed, also after an error.

    Args:
        setup: What the run uses.
        callbacks: Called with the events of the search.
        interruption: The signals that end the search, watched from now on.
        ray: The session on which the trials run, watched from now on.

    Yields:
        The run. Call :meth:`SearchRun.run`, then :meth:`SearchRun.send_remaining`.
    """
    store, record = setup.store, setup.record
    identity = ensure_identity(record, store.folder, url=store.url, study_url=setup.options.study_url)
    # Trials of an earlier version of the space may have used other datasets as well.
    datasets = {**read_run_attributes(record).datasets, **setup.data.infos}
    costs = CostModel(space=setup.space, datasets=datasets)
    plan = make_plan(
        costs,
        record,
        setup.versions,
        elapsed_seconds=setup.lease.elapsed_seconds,
        now=time.monotonic(),
        check_lease=setup.lease.ensure_held,
    )
    slots = planned_slots(record, setup.slots)
    parent = _parent_run(setup, identity, ray.resources)
    tracking = MlflowCallback(setup.writer, record, costs, preload_exporter=parent.preload_exporter)
    observers = CallbackList(safe=True)
    coordinator = make_coordinator(
        plan,
        record,
        make_stopping_rule(setup.space, slots=slots),
        setup.versions,
        callbacks=(tracking, *store.callbacks, observers),
        prune=store.prune,
    )
    run = SearchRun(
        setup=setup,
        identity=identity,
        costs=costs,
        planned_slots=slots,
        deadline=plan.deadline,
        parent=parent,
        tracking=tracking,
        coordinator=coordinator,
        watch=Watch(
            interruption,
            ray_gone=ray.gone,
            ensure_held=setup.lease.ensure_held,
            interrupt=coordinator.interrupt,
        ),
    )
    with closing(run.displays):
        run.display(observers, callbacks)
        coordinator.start()
        yield run


def _parent_run(setup: RunSetup, identity: Identity, resources: Mapping[str, float]) -> ParentRun:
    """Show the search's own run in MLflow, the parent of its trials' runs, and return it."""
    tags = provenance(resources)
    record_provenance(setup.record, tags)
    parent = ParentRun(
        setup.writer,
        setup.store,
        identity=identity,
        trials=setup.record.trials(),
        tracking_uri=setup.options.tracking_uri,
        tags=tags,
        images=logged_images(setup.data.infos, setup.data.digests),
        files=[setup.store.folder.space_yaml],
    )
    parent.start()
    return parent


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchRun:
    """One run of one search; :func:`begin_run` creates it."""

    setup: RunSetup
    identity: Identity
    costs: CostModel
    planned_slots: int
    """Number of trials at once with which the scheduler plans. A resume does not change it."""
    deadline: float | None
    """The end of the trials, in seconds on the clock of ``time.monotonic``; None without one."""
    parent: ParentRun
    """The search's own run in MLflow."""
    tracking: MlflowCallback
    coordinator: Coordinator
    watch: Watch
    displays: ExitStack = field(default_factory=ExitStack)
    """Ends the display and closes TensorBoard's files."""

    def display(self, observers: CallbackList, callbacks: Sequence[SearchCallback]) -> None:
        """Add TensorBoard's files, the caller's ``callbacks`` and the display to the ``observers``."""
        setup, folder = self.setup, self.setup.store.folder
        if setup.options.tensorboard:
            observers.add(self.displays.enter_context(EventFiles(folder.tensorboard, setup.space)))
        for callback in callbacks:
            observers.add(callback)
        if setup.presentation is not None:
            display = setup.presentation.watching(self.snapshot, folder)
            observers.add(self.displays.enter_context(display))

    def snapshot(self) -> StudyResult:
        """Return the present result and send MLflow a note of it, on the thread that runs the trials."""
        result = self.result(SearchState.RUNNING, None)
        assert self.setup.presentation is not None, "only a presentation asks"
        self.parent.note(self.setup.presentation.note(result))
        return result

    def result(self, state: SearchState, failure: str | None) -> StudyResult:
        """Return the present result; ``failure`` says why the search ended early, if it did."""
        setup = self.setup
        result = build_result(
            self.costs,
            setup.record.trials(),
            name=setup.options.name,
            folder=setup.store.folder.path,
            state=state,
            tracking_uri=setup.writer.uri,
            url=setup.store.url,
            slots=self.planned_slots,
        )
        result = dataclasses.replace(result, study_url=setup.options.study_url)
        return with_record(result, setup.record, setup.versions, failure=failure)

    def gauges(self, cluster: Callable[[], ClusterSize | None]) -> Gauges:
        """Return the gauges that can be read while the trials run."""
        return Gauges(
            slots=self.setup.slots,
            deadline=self.deadline,
            waiting=lambda: self.setup.writer.pending_updates,
            cluster=cluster,
        )

    def run(
        self,
        trainable: Callable[[dict[str, Any]], None],
        on_result: Callable[[StudyResult], object] | None,
    ) -> StudyResult:
        """Run the trials, write the search's files from the record, and return the result.

        The files are written whatever ends the trials, unless the lease is lost or the record cannot be
        written. The caller must call :meth:`send_remaining` next.
        """
        setup = self.setup
        record_run(setup.record, self.costs.datasets, setup.options.tracking_uri)
        record_images(setup.record, setup.data.digests)
        with usable_directory(setup.store.folder.storage):
            write_atomically(
                setup.store.folder.space_yaml, with_id(dump_space(setup.space), self.identity.id)
            )
        setup.store.begin(trial.number for trial in setup.record.trials())
        lock = DriverLock(setup.lease.ensure_held)

        def work() -> None:
            # Imported here because it imports Ray; a search imports this module before it checks its options.
            from tune_rescon.tuning.ray.tune_adapter import execute, trial_task

            execute(
                self.coordinator,
                make_task=functools.partial(
                    trial_task,
                    space=setup.space,
                    options=setup.options,
                    store=setup.store,
                    digests=setup.data.digests,
                ),
                trainable=trainable,
                resources=setup.space.resources_per_trial,
                concurrent=setup.slots,
                lock=lock,
            )

        try:
            run_in_thread(work, should_abort=self.watch.should_abort, lock=lock)
        except (LeaseLostError, RecordError):
            # Another driver owns the record, or the record cannot be written.
            setup.store.abandon()
            setup.writer.close(HURRIED_TIMEOUT)
            raise
        except Exception:
            # When Ray dies, Tune may raise any exception. The search reports Ray's death instead.
            if not self.watch.ray_is_gone:
                self.send_remaining(self._conclude(SearchState.FAILED, None))
                raise
        state = SearchState.INTERRUPTED if self.watch.interrupted else SearchState.FINISHED
        failed = self.watch.failure or self.coordinator.failure
        return self._conclude(SearchState.FAILED if failed else state, on_result)

    def send_remaining(self, result: StudyResult) -> StudyResult:
        """Wait for MLflow, and for a storage at a URL, to accept the remaining updates.

        Return ``result`` with the current trials and the updates that were not accepted.
        """
        setup = self.setup
        pending_updates = self.watch.with_timeout(setup.writer.close, TRACKING_TIMEOUT, HURRIED_TIMEOUT)
        self.tracking.record_runs()
        pending_uploads = self.watch.with_timeout(setup.store.close, STORAGE_TIMEOUT, HURRIED_TIMEOUT)
        return dataclasses.replace(
            result,
            trials=setup.record.trials(),
            pending_updates=pending_updates,
            pending_reason=presentable(setup.writer.reason) if pending_updates else "",
            pending_uploads=pending_uploads,
        )

    def log_why_it_ended(self, result: StudyResult) -> None:
        """Report a budget that ended the search early, an exhausted space, and enqueued trials that wait."""
        if result.interrupted or result.failure is not None:
            return
        setup, elapsed = self.setup, self.setup.lease.elapsed_seconds
        exhausted = self.coordinator.space_is_exhausted
        for message in (
            spent_message(result, elapsed, space_is_exhausted=exhausted),
            waiting_message(setup.record, setup.space, result.name, elapsed_seconds=elapsed),
        ):
            if message is not None:
                _PROGRESS.info(message)

    def _conclude(self, state: SearchState, on_result: Callable[[StudyResult], object] | None) -> StudyResult:
        """Record how the search ended, pass the result to ``on_result``, and complete the search."""
        self.watch.trials_ended()
        self.coordinator.interrupt_remaining()
        self.setup.record.read_foreign()
        record_code(self.setup.record, code_digests(self.setup.space), before_trials=False)
        result = self.result(state, self.watch.failure or self.coordinator.failure)
        record_outcome(self.setup.record, state, result.failure)
        files = write_tables(result, self.setup.store.folder)
        try:
            if on_result is not None:
                on_result(result)
        except Exception:
            # In spite of the caller's error, write the report and send what MLflow and the storage lack.
            self.send_remaining(self._complete(result, files))
            raise
        return self._complete(result, files)

    def _complete(self, result: StudyResult, files: Sequence[Path]) -> StudyResult:
        """Write the report of an ended search, and queue the last updates for MLflow."""
        if (missing := missing_winner(result)) is not None:
            _PROGRESS.info(missing)
        _PROGRESS.info(closing_message(self.parent.champion(result), self.setup.options))
        self.displays.close()
        note, pages = write_report(self.setup.presentation, result, self.setup.store.folder)
        self.parent.end(result, [*files, *pages], note)
        # The writer stops delaying updates now. The driver waits for it only after Ray has ended.
        self.setup.writer.flush()
        return result


def write_tables(result: StudyResult, folder: SearchFolder) -> list[Path]:
    """Write ``trials.csv`` and ``best.yaml``, and return the search's files that exist.

    An error such as a full disk is reported, not raised.
    """
    try:
        folder.write_trials(result.trials, result.space.parameters, at_url=result.url is not None)
        if result.best is not None:
            folder.write_best(best_file(result))
    except OSError as error:
        _PROGRESS.info(
            f"trials.csv or best.yaml could not be written ({error.strerror}). Free space on the disk and"
            " resume the search to write them: the record is complete."
        )
    return [file for file in (folder.space_yaml, folder.trials_csv, folder.best_yaml) if file.is_file()]


def write_report(
    presentation: Presentation | None, result: StudyResult, folder: SearchFolder
) -> tuple[str, Sequence[Path]]:
    """Write the report of a search that has ended, and return its note and its files.

    An error in writing is logged and does not fail the search.

    Args:
        presentation: Displays the search; None writes no report.
        result: The result of the search.
        folder: The search's files.
    """
    if presentation is None:
        return "", ()
    try:
        return presentation.note(result), presentation.conclude(result, folder)
    except Exception as error:
        _LOGGER.exception("the report could not be written")
        _PROGRESS.info(f"The report could not be written ({folder.log} has more): {error}")
        return "", ()
