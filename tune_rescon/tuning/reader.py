"""Reads a search from its record alone: while it runs, after it was killed, or on another machine."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tune_rescon.config import TrialState
from tune_rescon.data import DatasetInfo, describe
from tune_rescon.errors import DataError, presentable
from tune_rescon.spaces import Space
from tune_rescon.storage import (
    RemoteFolder,
    SearchHome,
    SharedValue,
    StorageUrl,
    copy_database,
    sqlite_file,
    sqlite_url,
    usable,
)
from tune_rescon.tuning.cost_model import CostModel, datasets_of
from tune_rescon.tuning.database import holds_studies, missing_study
from tune_rescon.tuning.driver import lease_lives
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.input_digests import code_history, recorded_code, recorded_images, recorded_weights
from tune_rescon.tuning.options import SearchLocation
from tune_rescon.tuning.result import SearchState, StudyResult, build_result
from tune_rescon.tuning.resume import version_changes
from tune_rescon.tuning.search_storage import find_search
from tune_rescon.tuning.space_versions import SpaceVersions, open_recorded
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.study_attributes import RunAttributes, read_run_attributes
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "file_silent_seconds",
    "known_datasets",
    "lives_by_url",
    "read_search",
    "result_from_study",
    "search_state",
    "snapshot",
]


def read_search(location: SearchLocation, name: str, *, where: str = "NAME") -> StudyResult:
    """Return the current state and results of a search.

    A SQLite record is read from a copy (:func:`snapshot`), so that a running driver is not disturbed.

    Args:
        location: Where the search is.
        name: The search's name.
        where: The argument that names the search, used in error messages.

    Raises:
        StorageError: If no search has that name, or its record cannot be read.
    """
    folder = find_search(location, name, where=where, with_study=True)
    url = location.study_of(folder)
    with snapshot(url) as readable:
        record, versions = open_recorded(readable, folder, shared=location.study_url is not None)
        at_url = SearchHome.find(location.storage, name) if isinstance(location.storage, StorageUrl) else None
        if at_url is not None and location.study_url is None:
            with usable(at_url.storage):
                alive = lives_by_url(at_url.remote.folder("lease"))
        else:
            alive = lease_lives(record.attribute("lease"), _silent_seconds(url, name))
        return result_from_study(
            record,
            versions,
            folder=folder,
            url=at_url.remote.url if at_url else None,
            study_url=location.study_url,
            data_root=location.data_root,
            alive=alive,
        )


def result_from_study(
    record: StudyRecord,
    versions: SpaceVersions,
    *,
    folder: SearchFolder,
    url: str | None,
    study_url: str | None,
    data_root: Path,
    alive: bool,
) -> StudyResult:
    """Return the result of a search from its open record.

    Args:
        record: The record.
        versions: The spaces that the search has had.
        folder: The search's files on this machine.
        url: The folder's URL if the storage is a URL, or None.
        study_url: The URL of ``--study``, or None.
        data_root: The directory of the datasets on this machine.
        alive: Whether a driver is alive. If not, running trials count as interrupted.
    """
    trials, attributes, space = record.trials(), read_run_attributes(record), versions.newest
    ended = sum(trial.state.is_final for trial in trials)
    result = build_result(
        CostModel(space=space, datasets=known_datasets(attributes, space, data_root)),
        trials if alive else tuple(map(_as_interrupted, trials)),
        name=folder.name,
        folder=folder.path,
        state=search_state(alive=alive, outcome=attributes.outcome, ended=ended, total=space.budget.trials),
        tracking_uri=attributes.tracking_uri or folder.mlflow_uri,
        url=url,
        slots=attributes.slots,
    )
    has_outcome = attributes.outcome is not None and not alive
    result = replace(result, has_outcome=has_outcome, study_url=study_url)
    return with_record(result, record, versions, failure=None if alive else attributes.failure)


def with_record(
    result: StudyResult, record: StudyRecord, versions: SpaceVersions, *, failure: str | None
) -> StudyResult:
    """Return ``result`` with what the record holds besides the trials.

    Args:
        result: The result of :func:`.build_result`.
        record: The record.
        versions: The spaces that the search has had.
        failure: Why the search ended early, or None.
    """
    return replace(
        result,
        foreign=record.foreign,
        failure=None if failure is None else presentable(failure),
        space_history=(*version_changes(versions, result.trials), *code_history(record)),
        images=recorded_images(record),
        weights=recorded_weights(record),
        code=recorded_code(record),
    )


def _as_interrupted(trial: TrialRecord) -> TrialRecord:
    """Return the trial as interrupted if it is recorded as running: a killed driver could not record it."""
    running = trial.state is TrialState.RUNNING
    return replace(trial, state=TrialState.INTERRUPTED) if running else trial


def known_datasets(attributes: RunAttributes, space: Space, data_root: Path) -> Mapping[str, DatasetInfo]:
    """Return the description of each dataset, from the record or else from this machine.

    Args:
        attributes: What the last run recorded.
        space: The search's space.
        data_root: The directory of the datasets on this machine.
    """
    if attributes.datasets:
        return attributes.datasets
    datasets = {}
    for dataset in datasets_of(space):
        with suppress(DataError):
            datasets[dataset.name] = describe(dataset, data_root=data_root)
    return datasets


def search_state(*, alive: bool, outcome: SearchState | None, ended: int, total: int) -> SearchState:
    """Return the state of a search.

    If the driver was killed and recorded no outcome, the state follows from the number of ended trials.

    Args:
        alive: Whether the driver is alive.
        outcome: The state that the driver recorded when it ended, or None.
        ended: Number of trials in a final state.
        total: Number of trials in the budget.

    >>> search_state(alive=False, outcome=None, ended=3, total=12).value
    'interrupted'
    """
    if alive:
        return SearchState.RUNNING
    if outcome is not None:
        return outcome
    return SearchState.FINISHED if ended >= total else SearchState.INTERRUPTED


@contextmanager
def snapshot(url: str) -> Iterator[str]:
    """Yield the URL of a copy of a SQLite database, which exists for the duration of the block.

    The database is copied because reading a long study needs seconds, during which SQLite would prevent the
    driver from writing. Copying the file needs milliseconds. The copy rolls back a transaction that a killed
    driver left unfinished, as SQLite does for every reader. A database on a server is not copied: its own URL
    is yielded.

    Raises:
        StorageError: If the file does not exist, or it is not a database.
    """
    source = sqlite_file(url)
    if source is None:
        yield url
        return
    if not holds_studies(source):
        raise missing_study(source)
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        copy = Path(folder) / "study.db"
        try:
            copy_database(source, copy)
        except (sqlite3.Error, OSError) as error:
            raise missing_study(source, str(error)) from None
        yield sqlite_url(copy)


def lives_by_url(folder: RemoteFolder) -> bool:
    """Return whether the driver that holds the lease in ``folder`` of the search's URL is alive."""
    value = SharedValue(folder).read()
    names = folder.names()
    written = folder.modified(names[-1]) if names else None
    return lease_lives(value, 0.0 if written is None else time.time() - written)


def _silent_seconds(url: str, name: str) -> float:
    if (file := sqlite_file(url)) is not None:
        return file_silent_seconds(file)
    # Imported here because it imports SQLAlchemy.
    from tune_rescon.tuning.study_lease import StudyLeaseStore

    return StudyLeaseStore.open(url, name).silent_seconds()


def file_silent_seconds(database: Path) -> float:
    """Return the seconds since a study's SQLite file has changed; each beat of a lease in it changes it."""
    return time.time() - database.stat().st_mtime
