"""Run a search from beginning to end: check the input, prepare data, start Ray, run trials, write files."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.errors import counted
from tune_rescon.paths import ensure_home
from tune_rescon.spaces import Space, dump_space
from tune_rescon.tracking import MlflowWriter, check_tracking_uri, mlflow_writer
from tune_rescon.tuning.callbacks import Gauges, Presentation, SearchCallback
from tune_rescon.tuning.constraints import check_constraints
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.identity import ensure_identity
from tune_rescon.tuning.input_digests import (
    check_same_images,
    check_same_weights,
    code_digests,
    record_code,
    record_weights,
)
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.mlflow_callback import destination, record_experiment
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.prepare import (
    PreparedData,
    check_external_networks,
    check_metric_functions,
    check_weights,
    prepare_data,
    read_weights,
    with_absolute_paths,
    with_store_size,
)
from tune_rescon.tuning.ray.log_redirect import library_log, redirected_output
from tune_rescon.tuning.ray.session import is_running, ray_session, sampled_cluster
from tune_rescon.tuning.ray.shutdown import SignalState, signal_handlers
from tune_rescon.tuning.ray.staging import fit_to_cluster
from tune_rescon.tuning.ray.worker import run_trial
from tune_rescon.tuning.reader import result_from_study
from tune_rescon.tuning.resources import fit_to_machine
from tune_rescon.tuning.result import StudyResult
from tune_rescon.tuning.resume import (
    cost_message,
    is_finished,
    resume_record,
    tracking_message,
    unfit_message,
)
from tune_rescon.tuning.search_run import STORAGE_TIMEOUT, RunSetup, begin_run
from tune_rescon.tuning.search_storage import find_search, open_store, search_lease
from tune_rescon.tuning.space_versions import SpaceVersions, record_version
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.tensorboard_callback import check_tensorboard
from tune_rescon.tuning.warm_start import overlapping_trials, record_warm_start

if TYPE_CHECKING:
    from tune_rescon.training.initial_weights import InitialWeights

__all__ = ["run_search"]


#: Seconds before MLflow's process is started, unless an epoch is reported earlier. In that time the trials'
#: worker processes import their libraries on the same processors.
TRACKING_DELAY: Final = 20.0

_PROGRESS = logging.getLogger("tune_rescon.progress")


def run_search(
    space: Space,
    options: RunOptions,
    *,
    callbacks: Sequence[SearchCallback] = (),
    trainable: Callable[[dict[str, Any]], None] = run_trial,
    presentation: Presentation | None = None,
    on_start: Callable[[Gauges], object] | None = None,
    on_result: Callable[[StudyResult], object] | None = None,
) -> StudyResult:
    """Search ``space``, either as a new search or by resuming the search ``options.name``.

    Messages for the user, for example why the search waits or ends, go to the logger
    ``tune_rescon.progress``.

    Args:
        space: The space to search. Its ``budget.trials`` is the total over all runs of the search.
        options: Where the search runs and what it writes to.
        callbacks: Receive every trial and every epoch, one call at a time, on one of the search's threads.
            One that raises is not called again.
        trainable: The function that Ray runs for each trial. A test may pass a fake one.
        presentation: Displays the search while it runs, and writes its report. None writes only tables.
        on_start: Called before the first trial begins, with the gauges that can be read while the search
            runs.
        on_result: Called with the result as soon as the trials have ended, before the report is written and
            before MLflow has received the rest. It is not called if the search raises. If it raises an
            exception, the report and MLflow are completed first.

    Returns:
        The result, including the updates that MLflow and a storage at a URL did not accept.

    Raises:
        UserError: If an argument is invalid or another driver runs the search. Nothing is left behind.
        SearchError: If the search failed.
        KeyboardInterrupt: If a signal arrives before the first trial. Nothing new is left behind.
    """
    space = _check(space, options)
    weights = read_weights(space)
    interruption = SignalState(grace=options.grace_seconds, clock=time.monotonic)
    with (
        signal_handlers(interruption),
        open_store(options) as store,
        library_log(store.folder.log),
        # The lease is released last, when no worker process of this driver can touch a checkpoint any more.
        ExitStack() as held,
    ):
        lease = held.enter_context(search_lease(options, store)) if store.resumed else None
        store.fetch()
        # Check the changes before any costly step, so that a refused change leaves nothing behind.
        record, versions = resume_record(space, options, store) if store.resumed else (None, None)
        if options.resume_or_start:
            if (
                lease is not None
                and record is not None
                and versions is not None
                and is_finished(record, versions, space, elapsed_seconds=lease.elapsed_seconds)
            ):
                return _finish(record, versions, options, store, on_result=on_result)
            _PROGRESS.info(f"{'Resuming' if store.resumed else 'Starting'} {options.name}")
        space, data = _prepare(space, options, weights, record=record, versions=versions)
        with (
            redirected_output(store.folder.log) if options.divert_output else nullcontext(),
            _writer(space, options, store, record) as writer,
        ):
            with ray_session(options.address) as ray, sampled_cluster(ray.gone) as cluster:
                space, slots = fit_to_cluster(space, options, data, ray)
                if record is None or lease is None:
                    record, lease = _create_record(space, data, weights, options, store=store, held=held)
                record_weights(record, weights)
                record_code(record, code_digests(space), before_trials=True)
                setup = RunSetup(
                    options=options,
                    store=store,
                    record=record,
                    lease=lease,
                    writer=writer,
                    versions=record_version(record, versions, space),
                    data=data,
                    slots=slots,
                    presentation=presentation,
                )
                for message in (unfit_message(record, space), tracking_message(record, options.tracking_uri)):
                    if message is not None:
                        _PROGRESS.info(message)
                if (warning := cost_message(setup.versions)) is not None:
                    _PROGRESS.warning(warning)
                search = held.enter_context(begin_run(setup, callbacks, interruption, ray))
                if on_start is not None:
                    on_start(search.gauges(cluster))
                interruption.deferred = True
                result = search.run(trainable, on_result)
            # Ray has ended, so its processors are free to send MLflow the remaining updates.
            result = search.send_remaining(result)
        search.log_why_it_ended(result)
        return result


def _check(space: Space, options: RunOptions) -> Space:
    """Check everything that can be checked before anything is written or started.

    Returns:
        The space with absolute paths, and with the resources that a trial gets on this machine.
    """
    ensure_home()
    space = with_absolute_paths(space)
    if options.address is None and not is_running():
        space, message = fit_to_machine(space)
        if message:
            _PROGRESS.info(message)
    if options.tracking_uri is not None:
        check_tracking_uri(options.tracking_uri)
    if options.tensorboard:
        check_tensorboard()
    check_metric_functions(space)
    check_external_networks(space)
    return space


def _prepare(
    space: Space,
    options: RunOptions,
    weights: Mapping[str, InitialWeights],
    *,
    record: StudyRecord | None,
    versions: SpaceVersions | None,
) -> tuple[Space, PreparedData]:
    """Prepare the images, and check the settings that depend on them.

    Returns:
        The space with the size of its stored images, and the prepared datasets.
    """
    if record is None and options.warm_start is not None:
        # Only checks that the search exists. It is read when the record is created.
        find_search(options, options.warm_start, where="--warm-start")
    space = with_store_size(space, versions.newest if versions else None)
    data = prepare_data(space, options)
    if record is not None:
        check_same_images(record, data)
        check_same_weights(record, weights)
    check_external_networks(space, data.infos)
    check_weights(space, weights, data.infos)
    costs = CostModel(space=space, datasets=data.infos)
    if (message := check_constraints(costs, record)) is not None:
        _PROGRESS.info(message)
    return space, data


def _writer(
    space: Space, options: RunOptions, store: SearchStore, record: StudyRecord | None
) -> AbstractContextManager[MlflowWriter]:
    """Return the writer that sends the search to MLflow; ``record`` is that of a resumed search."""
    # On a cluster, worker processes import their libraries on other machines.
    delay = TRACKING_DELAY if options.address is None else 0.0
    return mlflow_writer(destination(space, store.folder, options.tracking_uri, record), delay=delay)


def _create_record(
    space: Space,
    data: PreparedData,
    weights: Mapping[str, InitialWeights],
    options: RunOptions,
    *,
    store: SearchStore,
    held: ExitStack,
) -> tuple[StudyRecord, LeaseKeeper]:
    """Create the record of a new search. Return it with the search's lease, which ``held`` releases.

    The lease is taken before anything is written, because a shared database may have the study of another
    search of this name, whose driver has not recorded a trial yet.
    """
    costs = CostModel(space=space, datasets=data.infos)
    cost = costs.second_objective if space.metric.against else None
    earlier = (
        overlapping_trials(space, options, digests=data.digests, weights=weights, cost=cost)
        if options.warm_start
        else []
    )
    leases: list[LeaseKeeper] = []
    record = StudyRecord.create(
        options.study_of(store.folder),
        options.name,
        metric=space.metric.name,
        maximize=space.metric.mode == "max",
        space=dump_space(space),
        against=space.metric.against,
        at=space.metric.at,
        claim=lambda: leases.append(held.enter_context(search_lease(options, store))),
    )
    record_warm_start(record, earlier)
    ensure_identity(record, store.folder, url=store.url, study_url=options.study_url)
    record_experiment(record, space)
    return record, leases[0]


def _finish(
    record: StudyRecord,
    versions: SpaceVersions,
    options: RunOptions,
    store: SearchStore,
    *,
    on_result: Callable[[StudyResult], object] | None,
) -> StudyResult:
    """Return the result of a search that has nothing left to do, from its record.

    Also send the files that the last run could not send to a storage at a URL.
    """
    result = result_from_study(
        record,
        versions,
        folder=store.folder,
        url=store.url,
        study_url=options.study_url,
        data_root=options.data_root,
        alive=False,
    )
    run, total = len(result.trials), result.space.budget.trials
    _PROGRESS.info(
        f"{options.name} is finished: {run} of {counted(total, 'trial')} have run, and nothing is left to do"
    )
    store.begin(trial.number for trial in result.trials)
    if on_result is not None:
        on_result(result)
    return dataclasses.replace(result, pending_uploads=store.close(STORAGE_TIMEOUT))
