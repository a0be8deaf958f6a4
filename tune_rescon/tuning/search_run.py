"""One run of a search: its trials, the files that it writes at its end, and its updates of MLflow."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tune_rescon.errors import LeaseLostError, RecordError, presentable
from tune_rescon.spaces import dump_space
from tune_rescon.tracking import MlflowWriter
from tune_rescon.tuning.assembly import make_coordinator, make_plan
from tune_rescon.tuning.budget import exhausted_words, spent_words
from tune_rescon.tuning.callbacks import CallbackList, ClusterSize, Gauges, Presentation, SearchCallback
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.folder import SearchFolder, usable_directory, write_atomically
from tune_rescon.tuning.identity import ensure_identity, with_id
from tune_rescon.tuning.input_digests import code_digests, record_code, record_images
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.mlflow_callback import MlflowCallback, ParentRun, closing_words, logged_images
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.prepare import PreparedDataset, dataset_digests, dataset_infos
from tune_rescon.tuning.ray.session import RaySession
from tune_rescon.tuning.ray.shutdown import DriverLock, SignalState, Watch, run_in_thread
from tune_rescon.tuning.reader import with_record
from tune_rescon.tuning.result import SearchState, StudyResult, best_file, build_result, missing_winner
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

__all__ = ["STORAGE_TIMEOUT", "SearchRun", "draw_report", "write_tables"]


#: Seconds that a search waits at its end for MLflow, and for a storage at a URL, to accept the queued
#: updates. ``HURRIED_TIMEOUT`` applies instead when the user wants the search to stop at once.
TRACKING_TIMEOUT: Final = 60.0
STORAGE_TIMEOUT: Final = 60.0
HURRIED_TIMEOUT: Final = 2.0

_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")


@dataclass(kw_only=True, eq=False)
class SearchRun:
    """One run of one search, once Ray has started and the data are prepared.

    It is a context manager, which ends the drawing and closes TensorBoard's files. Call :meth:`start`,
    :meth:`run` and :meth:`hand_over` in this order.
    """

    options: RunOptions
    store: SearchStore
    record: StudyRecord
    lease: LeaseKeeper
    writer: MlflowWriter
    versions: SpaceVersions
    """The spaces that the search has had, with the one to run as the newest."""
    prepared: Mapping[str, PreparedDataset]
    slots: int
    """Number of trials that run at once."""
    presentation: Presentation | None
    """Draws the search; None draws nothing."""
    _exits: ExitStack = field(init=False, default_factory=ExitStack)

    def __enter__(self) -> Self:
        """Return the run itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the drawing and close TensorBoard's files, also if the run ends by an error."""
        self._exits.close()

    def start(self, callbacks: Sequence[SearchCallback], interruption: SignalState, ray: RaySession) -> None:
        """Show the search in MLflow, begin to draw it, and carry out the decisions that the record holds.

        Args:
            callbacks: Called with the events of the search.
            interruption: The signals that end the search, watched from now on.
            ray: The session on which the trials run, watched from now on.
        """
        store, record, folder = self.store, self.record, self.store.folder
        self._space = self.versions.newest
        self._identity = ensure_identity(
            record, folder, url=store.url, own_study=self.options.study_url is None
        )
        # Trials of an earlier version of the space may have used other datasets as well.
        datasets = {**read_run_attributes(record).datasets, **dataset_infos(self.prepared)}
        self._costs = CostModel(space=self._space, datasets=datasets)
        self._plan = make_plan(
            self._costs,
            record,
            self.versions,
            elapsed_seconds=self.lease.elapsed_seconds,
            now=time.monotonic(),
            check_lease=self.lease.ensure_held,
        )
        # A resumed search plans with the number of its first run.
        self._planned_slots = planned_slots(record, self.slots)
        self._parent = self._parent_run(ray.resources)
        self._parent.start()
        if self.options.tensorboard:
            files = EventFiles(folder.tensorboard, self._space)
            callbacks = [self._exits.enter_context(files), *callbacks]
        if self.presentation is not None:
            drawing = self.presentation.watching(self._snapshot, folder)
            callbacks = [*callbacks, self._exits.enter_context(drawing)]
        self._tracking = MlflowCallback(
            self.writer, record, self._costs, preload_exporter=self._parent.preload_exporter
        )
        self._coordinator = make_coordinator(
            self._plan,
            record,
            make_stopping_rule(self._space, slots=self._planned_slots),
            self.versions,
            callbacks=(self._tracking, *store.callbacks, CallbackList(callbacks, safe=True)),
            prune=store.prune,
        ).start()
        self._watch = Watch(
            interruption,
            ray_gone=ray.gone,
            ensure_held=self.lease.ensure_held,
            interrupt=self._coordinator.interrupt,
        )

    def _parent_run(self, resources: Mapping[str, float]) -> ParentRun:
        """Return the search's own run in MLflow, the parent of its trials' runs."""
        tags = provenance(resources)
        record_provenance(self.record, tags)
        return ParentRun(
            self.writer,
            self.store,
            identity=self._identity,
            trials=self.record.trials(),
            tracking_uri=self.options.tracking_uri,
            tags=tags,
            images=logged_images(dataset_infos(self.prepared), dataset_digests(self.prepared)),
            files=[self.store.folder.space_yaml],
        )

    def gauges(self, cluster: Callable[[], ClusterSize | None]) -> Gauges:
        """Return the gauges that can be read while the trials run."""
        return Gauges(
            slots=self.slots,
            deadline=self._plan.deadline,
            waiting=lambda: self.writer.pending_updates,
            cluster=cluster,
        )

    def run(
        self,
        trainable: Callable[[dict[str, Any]], None],
        on_result: Callable[[StudyResult], object] | None,
    ) -> StudyResult:
        """Run the trials, write the search's files from the record, and return the result.

        The files are written whatever ends the trials, unless the lease is lost or the record cannot be
        written. The caller must call :meth:`hand_over` next.
        """
        record_run(self.record, self._costs.datasets, self.options.tracking_uri)
        digests = dataset_digests(self.prepared)
        record_images(self.record, digests)
        with usable_directory(self.store.folder.storage):
            write_atomically(
                self.store.folder.space_yaml, with_id(dump_space(self._space), self._identity.id)
            )
        self.store.begin(trial.number for trial in self.record.trials())
        lock = DriverLock(self.lease.ensure_held)

        def work() -> None:
            # Imported here because it imports Ray; a search imports this module before it checks its options.
            from tune_rescon.tuning.ray.tune_adapter import execute, trial_task

            resources = self._space.resources_per_trial
            execute(
                self._coordinator,
                make_task=functools.partial(
                    trial_task, space=self._space, options=self.options, store=self.store, digests=digests
                ),
                trainable=trainable,
                resources=resources.by_name(),
                workers=resources.workers,
                concurrent=self.slots,
                lock=lock,
            )

        try:
            run_in_thread(work, should_abort=self._watch.should_abort, lock=lock)
        except (LeaseLostError, RecordError):
            # Another driver owns the record, or the record cannot be written.
            self.store.abandon()
            self.writer.close(HURRIED_TIMEOUT)
            raise
        except Exception:
            # When Ray dies, Tune may raise any exception. The search reports Ray's death instead.
            if not self._watch.ray_is_gone:
                self.hand_over(self._conclude(SearchState.FAILED, None))
                raise
        state = SearchState.INTERRUPTED if self._watch.interrupted else SearchState.FINISHED
        failed = self._watch.failure or self._coordinator.failure
        return self._conclude(SearchState.FAILED if failed else state, on_result)

    def hand_over(self, result: StudyResult) -> StudyResult:
        """Wait for MLflow, and for a storage at a URL, to accept the remaining updates.

        Return ``result`` with the current trials and the updates that were not accepted.
        """
        pending_updates = self._watch.with_timeout(self.writer.close, TRACKING_TIMEOUT, HURRIED_TIMEOUT)
        self._tracking.record_runs()
        pending_uploads = self._watch.with_timeout(self.store.close, STORAGE_TIMEOUT, HURRIED_TIMEOUT)
        return dataclasses.replace(
            result,
            trials=self.record.trials(),
            pending_updates=pending_updates,
            pending_reason=presentable(self.writer.reason) if pending_updates else "",
            pending_uploads=pending_uploads,
        )

    def log_why_it_ended(self, result: StudyResult) -> None:
        """Report a budget that ended the search before all of its trials began, and an exhausted space."""
        trials, budget = len(result.trials), self._space.budget
        if not result.interrupted and result.failure is None:
            spent = spent_words(
                budget,
                name=result.name,
                trials=trials,
                epochs=sum(trial.epochs for trial in result.trials),
                elapsed_seconds=self.lease.elapsed_seconds,
            )
            if spent is not None:
                _PROGRESS.info(spent)
        if self._coordinator.space_is_exhausted:
            _PROGRESS.info(exhausted_words(trials, budget.trials))

    def _conclude(self, state: SearchState, on_result: Callable[[StudyResult], object] | None) -> StudyResult:
        """Record how the search ended, pass the result to ``on_result``, and complete the search."""
        self._watch.trials_ended()
        self._coordinator.interrupt_remaining()
        record_code(self.record, code_digests(self._space), before_trials=False)
        result = self._result(state, self._watch.failure or self._coordinator.failure)
        record_outcome(self.record, state, result.failure)
        files = write_tables(result, self.store.folder)
        try:
            if on_result is not None:
                on_result(result)
        except Exception:
            # In spite of the caller's error, write the report and send what MLflow and the storage lack.
            self.hand_over(self._complete(result, files))
            raise
        return self._complete(result, files)

    def _complete(self, result: StudyResult, files: Sequence[Path]) -> StudyResult:
        """Draw the pages of an ended search, and queue the last updates for MLflow."""
        if (missing := missing_winner(result)) is not None:
            _PROGRESS.info(missing)
        _PROGRESS.info(closing_words(self._parent.champion(result), self.options))
        self._exits.close()
        note, drawn = draw_report(self.presentation, result, self.store.folder)
        self._parent.end(result, [*files, *drawn], note)
        # The writer stops delaying updates now. The driver waits for it only after Ray has ended.
        self.writer.flush()
        return result

    def _snapshot(self) -> StudyResult:
        """Return the current state of the search and send MLflow a note of it.

        It is called on the thread that runs the trials.
        """
        result = self._result(SearchState.RUNNING, None)
        assert self.presentation is not None, "only a presentation asks"
        self._parent.note(self.presentation.note(result))
        return result

    def _result(self, state: SearchState, failure: str | None) -> StudyResult:
        result = build_result(
            self._costs,
            self.record.trials(),
            name=self.options.name,
            folder=self.store.folder.path,
            state=state,
            tracking_uri=self.writer.uri,
            url=self.store.url,
            slots=self._planned_slots,
        )
        return with_record(result, self.record, self.versions, failure=failure)


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


def draw_report(
    presentation: Presentation | None, result: StudyResult, folder: SearchFolder
) -> tuple[str, Sequence[Path]]:
    """Return the note and the drawn pages of a search that has ended.

    An error while drawing is logged and does not fail the search.

    Args:
        presentation: Draws the search; None draws nothing.
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
