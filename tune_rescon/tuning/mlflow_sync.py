"""Sends MLflow the data of a search that it lacks, from the record and while holding the search's lease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tune_rescon.errors import hide_passwords, presentable
from tune_rescon.tracking import mlflow_writer
from tune_rescon.tuning.callbacks import Presentation
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.identity import check_not_copied, ensure_identity, write_id
from tune_rescon.tuning.input_digests import recorded_images
from tune_rescon.tuning.mlflow_callback import (
    MlflowCallback,
    ParentRun,
    destination,
    last_ms,
    logged_images,
)
from tune_rescon.tuning.options import RunOptions, SearchLocation
from tune_rescon.tuning.reader import known_datasets, result_from_study
from tune_rescon.tuning.result import StudyResult
from tune_rescon.tuning.search_run import write_report, write_tables
from tune_rescon.tuning.search_storage import open_store, search_lease
from tune_rescon.tuning.space_versions import open_recorded
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.study_attributes import read_run_attributes

__all__ = ["Synced", "sync_tracking"]


@dataclass(frozen=True, kw_only=True)
class Synced:
    """The result of :func:`sync_tracking`."""

    uri: str
    trials: int
    pending_updates: int
    """Number of updates that MLflow did not accept in time."""
    last_error: str
    """The error of the last call that failed; empty if no call failed."""


def sync_tracking(
    location: SearchLocation,
    name: str,
    *,
    timeout: float,
    present: Callable[[StudyResult], Presentation],
) -> Synced:
    """Send MLflow all data of a search that it does not show yet.

    The search's tables and pages are written again, because those of a run that was killed are outdated.

    Args:
        location: Where the search is.
        name: The search's name.
        timeout: Seconds to wait for MLflow to accept the data.
        present: Returns what writes the report of the search.

    Raises:
        StorageError: If no search has that name.
        LeaseError: If a driver has the search; it sends the data itself.
    """
    options = RunOptions(
        name=name,
        resume=True,
        storage=location.storage,
        study_url=location.study_url,
        cache_root=location.cache_root,
        data_root=location.data_root,
    )
    with open_store(options) as store, search_lease(options, store, drives=False):
        store.fetch()
        synced = _send(options, store, present=present, timeout=timeout)
        store.close(timeout)
        return synced


def _send(
    options: RunOptions,
    store: SearchStore,
    *,
    present: Callable[[StudyResult], Presentation],
    timeout: float,
) -> Synced:
    folder = store.folder
    shared = options.study_url is not None
    record, versions = open_recorded(options.study_of(folder), folder, shared=shared, writes=True)
    check_not_copied(record.attributes(), folder, url=store.url, study_url=options.study_of(folder))
    result = result_from_study(
        record,
        versions,
        folder=folder,
        url=store.url,
        study_url=options.study_url,
        data_root=options.data_root,
        alive=False,
    )
    attributes, space = read_run_attributes(record), versions.newest
    costs = CostModel(space=space, datasets=known_datasets(attributes, space, options.data_root))
    store.begin(trial.number for trial in result.trials)
    identity = ensure_identity(record, folder, url=store.url, study_url=options.study_url)
    write_id(folder.space_yaml, identity.id)
    with mlflow_writer(destination(space, folder, attributes.tracking_uri, record)) as writer:
        parent = ParentRun(
            writer,
            store,
            identity=identity,
            trials=result.trials,
            tracking_uri=attributes.tracking_uri,
            tags=attributes.provenance,
            images=logged_images(costs.datasets, recorded_images(record)),
        )
        parent.start()
        callback = MlflowCallback(writer, record, costs)
        callback.on_search_start(result.trials)
        tables = write_tables(result, folder)
        note, pages = write_report(present(result), result, folder)
        # The search may have ended long ago.
        ended_ms = max(map(last_ms, result.trials), default=None)
        parent.end(result, [*tables, *pages], note, ended_ms=ended_ms)
        pending_updates = writer.close(timeout)
        callback.record_runs()
        return Synced(
            uri=hide_passwords(writer.uri),
            trials=len(result.trials),
            pending_updates=pending_updates,
            last_error=presentable(writer.reason),
        )
