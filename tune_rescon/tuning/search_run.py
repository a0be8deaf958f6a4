"""One run of a search that is open: its trials, the tables and pages at its end, and what MLflow receives."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.data import DatasetInfo
from tune_rescon.errors import LeaseLostError, RecordError, presentable
from tune_rescon.passwords import hide_passwords
from tune_rescon.spaces import dump_space
from tune_rescon.tracking import MlflowWriter
from tune_rescon.tuning.assembly import make_coordinator, make_plan
from tune_rescon.tuning.callbacks import CallbackList, ClusterSize, Gauges, Presentation, SearchCallback
from tune_rescon.tuning.coordinator import Coordinator
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.folder import usable_directory, write_atomically
from tune_rescon.tuning.identity import Identity, with_id
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.mlflow_callback import (
    MlflowCallback,
    ParentRun,
    closing_words,
)
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.prepare import (
    PreparedDataset,
    record_images,
)
from tune_rescon.tuning.ray.execute import TrialTaskFactory, execute
from tune_rescon.tuning.ray.session import RaySession
from tune_rescon.tuning.ray.shutdown import DriverLock, SignalState, Watch, run_in_thread
from tune_rescon.tuning.result import SearchState, StudyResult, best_file, build_result, missing_winner
from tune_rescon.tuning.resume import history_words
from tune_rescon.tuning.search_storage import SearchStore
from tune_rescon.tuning.space_versions import SpaceVersions
from tune_rescon.tuning.stopping.from_space import make_stopping_rule
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.study_attributes import (
    planned_slots,
    provenance,
    read_run_attributes,
    record_outcome,
    record_run,
)

__all__ = [
    "STORAGE_TIMEOUT",
    "OpenSearch",
    "SearchRun",
    "dataset_infos",
]


#: Seconds that a search waits at its end for MLflow, and for a storage at a URL, to accept the queued
#: updates. ``HURRIED_TIMEOUT`` applies instead when the user wants the search to stop at once.
TRACKING_TIMEOUT: Final = 60.0
STORAGE_TIMEOUT: Final = 60.0
HURRIED_TIMEOUT: Final = 2.0

_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")


def dataset_infos(prepared: Mapping[str, PreparedDataset]) -> dict[str, DatasetInfo]:
    """Return the description of each prepared dataset, by name."""
    return {name: dataset.info for name, dataset in prepared.items()}


@dataclass(frozen=True, kw_only=True)
class OpenSearch:
    """What a driver holds open while it runs a search."""

    options: RunOptions
    store: SearchStore
    record: StudyRecord
    identity: Identity
    lease: LeaseKeeper
    writer: MlflowWriter


class SearchRun:
    """One run of one search. It is assembled once Ray has started and the data are prepared."""

    _parent: ParentRun
    _tracking: MlflowCallback
    _coordinator: Coordinator
    _slots: int

    def __init__(
        self,
        opened: OpenSearch,
        versions: SpaceVersions,
        prepared: Mapping[str, PreparedDataset],
        presentation: Presentation | None,
    ) -> None:
        """Assemble the run; :meth:`start` must follow.

        Args:
            opened: What the driver holds open.
            versions: The spaces that the search has had, with the one to run as the newest.
            prepared: The prepared datasets, by name.
            presentation: Draws the search; None draws nothing.
        """
        self._options, self._store, self._record = opened.options, opened.store, opened.record
        self._identity, self._lease, self._writer = opened.identity, opened.lease, opened.writer
        self._versions, self._space = versions, versions.newest
        self._folder = self._store.folder
        self._prepared = prepared
        self._presentation = presentation
        self._drawing = ExitStack()
        # Trials of an earlier version of the space may have used other datasets as well.
        datasets = {**read_run_attributes(self._record).datasets, **dataset_infos(prepared)}
        self._costs = CostModel(space=self._space, datasets=datasets)
        self._plan = make_plan(
            self._costs,
            self._record,
            elapsed_seconds=self._lease.elapsed_seconds,
            now=time.monotonic(),
            check_lease=self._lease.ensure_held,
        )

    def start(
        self, callbacks: Sequence[SearchCallback], resources: Mapping[str, float], *, slots: int
    ) -> None:
        """Show the search in MLflow, begin to draw it, and carry out the decisions that the record holds.

        Args:
            callbacks: Receive every trial and every epoch.
            resources: The resources of the cluster, by Ray's names.
            slots: The number of trials that run at once.
        """
        url, record = self._store.url, self._record
        self._slots = planned_slots(record, slots)
        self._parent = ParentRun(
            self._writer,
            identity=self._identity,
            known_runs=[trial.mlflow_run_id for trial in record.trials() if trial.mlflow_run_id],
            tags={
                "tune_rescon.folder": hide_passwords(url or str(self._folder.path)),
                **provenance(resources),
            },
            datasets=self._prepared.values(),
            files=[self._folder.space_yaml],
            uploads=url is None or self._options.tracking_uri is not None,
        )
        self._parent.start()
        if self._presentation is not None:
            drawing = self._presentation.watching(self._snapshot, self._folder)
            callbacks = [*callbacks, self._drawing.enter_context(drawing)]
        self._tracking = MlflowCallback(
            self._writer, record, self._costs, preload_exporter=self._parent.preload_exporter
        )
        self._coordinator = make_coordinator(
            self._plan,
            record,
            make_stopping_rule(self._space, slots=self._slots),
            self._versions,
            callbacks=(self._tracking, *self._store.callbacks, CallbackList(callbacks, safe=True)),
            prune=self._store.prune,
        ).start()

    @property
    def space_is_exhausted(self) -> bool:
        """True if the search ended because every point of its space has run."""
        return self._coordinator.space_is_exhausted

    def gauges(self, slots: int, cluster: Callable[[], ClusterSize | None]) -> Gauges:
        """Return the gauges that can be read while the trials run."""
        return Gauges(
            slots=slots,
            deadline=self._plan.deadline,
            waiting=lambda: self._writer.pending_updates,
            cluster=cluster,
        )

    def watch(self, interruption: SignalState, ray: RaySession) -> Watch:
        """Return the watch over signals, Ray and the lease while the trials run."""
        return Watch(
            interruption,
            ray_gone=ray.gone,
            ensure_held=self._lease.ensure_held,
            interrupt=self._coordinator.interrupt,
        )

    def run(
        self,
        trainable: Callable[[dict[str, Any]], None],
        slots: int,
        watch: Watch,
        on_result: Callable[[StudyResult], object] | None,
    ) -> StudyResult:
        """Run the trials, write the search's files from the record, and return the result.

        The files are written whatever ends the trials, unless the lease is lost or the record cannot be
        written. The caller must call :meth:`hand_over` next.
        """
        record_run(self._record, self._costs.datasets, self._options.tracking_uri)
        digests = {name: each.digest for name, each in self._prepared.items()}
        record_images(self._record, digests)
        with usable_directory(self._folder.storage):
            write_atomically(self._folder.space_yaml, with_id(dump_space(self._space), self._identity.id))
        self._store.begin(trial.number for trial in self._record.trials())
        lock = DriverLock(self._lease.ensure_held)
        tasks = TrialTaskFactory(space=self._space, options=self._options, store=self._store, digests=digests)
        work = functools.partial(
            execute,
            self._coordinator,
            make_task=tasks.task,
            trainable=trainable,
            resources=self._space.resources_per_trial.by_name(),
            workers=self._space.resources_per_trial.workers,
            concurrent=slots,
            lock=lock,
        )
        try:
            run_in_thread(work, should_abort=watch.should_abort, lock=lock)
        except (LeaseLostError, RecordError):
            # Another driver owns the record, or the record cannot be written.
            self._drawing.close()
            self._store.abandon()
            self._writer.close(HURRIED_TIMEOUT)
            raise
        except Exception:
            # When Ray dies, Tune may raise any exception. The search reports Ray's death instead.
            if not watch.ray_is_gone:
                self.hand_over(self._conclude(SearchState.FAILED, watch, None), watch)
                raise
        state = SearchState.INTERRUPTED if watch.interrupted else SearchState.FINISHED
        failed = watch.failure or self._coordinator.failure
        return self._conclude(SearchState.FAILED if failed else state, watch, on_result)

    def hand_over(self, result: StudyResult, watch: Watch) -> StudyResult:
        """Wait for MLflow, and for a storage at a URL, to accept the remaining updates.

        Returns:
            ``result`` with the current trials and the updates that were not accepted.
        """
        pending_updates = watch.with_timeout(self._writer.close, TRACKING_TIMEOUT, HURRIED_TIMEOUT)
        self._tracking.note_runs()
        pending_uploads = watch.with_timeout(self._store.close, STORAGE_TIMEOUT, HURRIED_TIMEOUT)
        return dataclasses.replace(
            result,
            trials=self._record.trials(),
            pending_updates=pending_updates,
            pending_reason=presentable(self._writer.reason) if pending_updates else "",
            pending_uploads=pending_uploads,
        )

    def _conclude(
        self,
        state: SearchState,
        watch: Watch,
        on_result: Callable[[StudyResult], object] | None,
    ) -> StudyResult:
        """Pass the result to ``on_result``, then draw the pages and queue the last updates for MLflow."""
        watch.trials_ended()
        self._coordinator.interrupt_remaining()
        result = self._result(state, watch.failure or self._coordinator.failure)
        record_outcome(self._record, state, result.failure)
        files = self._write_tables(result)
        if on_result is not None:
            on_result(result)
        if (missing := missing_winner(result)) is not None:
            _PROGRESS.info(missing)
        _PROGRESS.info(closing_words(self._parent.champion(result), self._options))
        self._drawing.close()
        note, drawn = self._drawn(result)
        self._parent.end(result, [*files, *drawn], note)
        # The writer stops delaying updates now. The driver waits for it only after Ray has ended.
        self._writer.flush()
        return result

    def _write_tables(self, result: StudyResult) -> list[Path]:
        """Write ``trials.csv`` and ``best.yaml``, and return the search's files that exist.

        An error such as a full disk is reported, not raised.
        """
        folder = self._folder
        try:
            folder.write_trials(result.trials, self._space.parameters, at_url=self._store.url is not None)
            if result.best is not None:
                folder.write_best(best_file(result))
        except OSError as error:
            _PROGRESS.info(
                f"trials.csv or best.yaml could not be written ({error.strerror}). Free space on the disk and"
                " give the command to resume: the record has all of it."
            )
        return [file for file in (folder.space_yaml, folder.trials_csv, folder.best_yaml) if file.is_file()]

    def _drawn(self, result: StudyResult) -> tuple[str, Sequence[Path]]:
        """Return the note and the drawn pages.

        An error while drawing is logged and does not fail the search.
        """
        if self._presentation is None:
            return "", ()
        try:
            return self._presentation.note(result), self._presentation.conclude(result, self._folder)
        except Exception as error:
            _LOGGER.exception("the report could not be written")
            _PROGRESS.info(f"The report could not be written ({self._folder.log} has more): {error}")
            return "", ()

    def _snapshot(self) -> StudyResult:
        """Return the current state of the search and send MLflow a note of it.

        It is called on the thread that runs the trials.
        """
        result = self._result(SearchState.RUNNING, None)
        assert self._presentation is not None, "only a presentation asks"
        self._parent.note(self._presentation.note(result))
        return result

    def _result(self, state: SearchState, failure: str | None) -> StudyResult:
        result = build_result(
            self._costs,
            self._record.trials(),
            name=self._options.name,
            folder=self._folder.path,
            state=state,
            tracking_uri=self._writer.uri,
            url=self._store.url,
            slots=self._slots,
        )
        history = history_words(self._versions, self._record.trials())
        return dataclasses.replace(
            result,
            foreign=self._record.foreign,
            failure=None if failure is None else presentable(failure),
            space_history=history,
        )
