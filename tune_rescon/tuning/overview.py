"""A list of all searches of a storage, one line each.

Each search needs a few small queries; no trial is read completely.
"""

from __future__ import annotations

import functools
import json
import math
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from sqlalchemy import ColumnElement, Connection, Engine, NullPool, Table, case, func, select

from tune_rescon.config import TrialState
from tune_rescon.errors import StorageError, UserError
from tune_rescon.metric_names import MetricAt
from tune_rescon.spaces import Goal, load_goal, parse_goal
from tune_rescon.storage import RemoteError, RemoteFolder, StorageUrl, needs_rollback, sqlite_file, usable
from tune_rescon.tuning.driver import lease_lives
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.identity import check_same_search
from tune_rescon.tuning.options import SearchLocation
from tune_rescon.tuning.reader import (
    file_silent_seconds,
    lives_by_url,
    search_state,
    snapshot,
)
from tune_rescon.tuning.result import SearchState, best_trial
from tune_rescon.tuning.search_storage import find_search
from tune_rescon.tuning.space_versions import open_recorded
from tune_rescon.tuning.study import EPOCH_KEY_PREFIX, METRIC, METRIC_AT
from tune_rescon.tuning.study_lease import silent_seconds
from tune_rescon.tuning.trial import FAILED_STATES

__all__ = ["SearchOverview", "list_searches"]


class StudyConnections:
    """Opens connections to studies' databases, from any thread.

    All SQLite files share one engine, so that each query is compiled only once.
    """

    def __init__(self) -> None:
        """Prepare the engine for SQLite files. The constructor opens no connection."""
        self._local = threading.local()
        self._files = sqlalchemy.create_engine("sqlite://", creator=self._open_file, poolclass=NullPool)
        self._server = cache(_server)

    @contextmanager
    def connect(self, url: str) -> Iterator[Connection]:
        """Connect to the database at ``url`` for the duration of the block.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: If the database is missing or cannot be opened. Creates no file.
            StorageError: If the database has an unfinished transaction and cannot be copied.
        """
        file = sqlite_file(url)
        with ExitStack() as opened:
            if file is not None:
                if needs_rollback(file):
                    file = sqlite_file(opened.enter_context(snapshot(url)))
                    assert file is not None, "a copy of a file"
                # With mode=rw, SQLite does not create a missing file.
                self._local.uri = f"{file.absolute().as_uri()}?mode=rw"
            engine = self._server(url) if file is None else self._files
            yield opened.enter_context(engine.connect())

    def _open_file(self) -> sqlite3.Connection:
        # The engine calls this method in the thread that requests the connection, so the URI is thread-local.
        return sqlite3.connect(self._local.uri, uri=True)


def _server(url: str) -> Engine:
    return sqlalchemy.create_engine(url, poolclass=NullPool)


#: Number of searches at a URL that are fetched concurrently.
CONNECTIONS: Final = 16

_STUDIES: Final[Table] = models.StudyModel.__table__
_STUDY_USER: Final[Table] = models.StudyUserAttributeModel.__table__
_DIRECTIONS: Final[Table] = models.StudyDirectionModel.__table__
_TRIALS: Final[Table] = models.TrialModel.__table__
_USER: Final[Table] = models.TrialUserAttributeModel.__table__
_SYSTEM: Final[Table] = models.TrialSystemAttributeModel.__table__
_STEPS: Final[Table] = models.TrialIntermediateValueModel.__table__
_FINITE: Final = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE

#: Selects the state attributes of the search's trials. Trials of other programs may also have an attribute of
#: this name, so its value is checked too.
_OURS: Final = (_USER.c.key == "state") & _USER.c.value_json.in_([json.dumps(s.value) for s in TrialState])
_FAILED: Final = _USER.c.value_json.in_([json.dumps(state.value) for state in FAILED_STATES])


@dataclass(frozen=True, kw_only=True)
class SearchOverview:
    """The summary of one search, which fits into a line."""

    name: str
    metric: str = ""
    state: SearchState | None = None
    """None if the search cannot be read; see :attr:`problem`."""
    best: float = math.nan
    """The best value among the trials with the most epochs that did not fail, or among all if all failed. For
    final trainings, the winner's value. May be nan."""
    ended: int = 0
    """Number of trials in a final state."""
    total: int = 0
    """Number of trials in the budget, or in the record if a resume has lowered the budget."""
    changed: datetime | None = None
    """When a trial last began, ended an epoch, or ended; None if no trial has begun."""
    problem: str = ""
    """The reason why the search cannot be read; empty if it was read."""


def list_searches(location: SearchLocation) -> tuple[SearchOverview, ...]:
    """Return the searches that have begun, the most recently changed first.

    The entry of a search that cannot be read contains the reason (:attr:`SearchOverview.problem`).

    Raises:
        StorageError: If the storage cannot be read at all.
    """
    storage = location.storage
    searches = (
        _list_url(location, storage)
        if isinstance(storage, StorageUrl)
        else _list_directory(location, storage)
    )
    oldest = datetime.min.replace(tzinfo=UTC)
    by_name = sorted(searches, key=lambda search: search.name)
    return tuple(sorted(by_name, key=lambda search: search.changed or oldest, reverse=True))


def _list_directory(location: SearchLocation, storage: Path) -> list[SearchOverview]:
    storage = storage.resolve()
    names = sorted(path.parent.name for path in storage.glob("*/space.yaml"))
    studies = StudyConnections()
    return [
        _overview(SearchFolder(storage=storage, name=name), studies, location.study_url, None)
        for name in names
    ]


def _list_url(location: SearchLocation, storage: StorageUrl) -> list[SearchOverview]:
    root = RemoteFolder.connect(storage)
    with usable(storage):
        names = root.folders_with("space.yaml")
    studies = StudyConnections()

    def read(name: str) -> SearchOverview:
        try:
            folder = find_search(location, name, where="--list", with_study=True)
            # If the studies have a separate database, it holds the lease too.
            lease = None if location.study_url else root.folder(f"{name}/lease")
            return _overview(folder, studies, location.study_url, lease)
        except StorageError as error:
            return SearchOverview(name=name, problem=str(error))

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(read, names))


def _overview(
    folder: SearchFolder, studies: StudyConnections, study_url: str | None, lease: RemoteFolder | None
) -> SearchOverview:
    """Return the summary of one search; ``lease`` is the lease's folder unless the study holds the lease."""
    overview = SearchOverview(name=folder.name)
    try:
        goal = load_goal(folder.space_yaml)
        overview = replace(overview, metric=goal.metric.name, total=goal.budget.trials)
        return _read(overview, goal, studies, folder, url=study_url or folder.study_url, lease=lease)
    except (UserError, RemoteError, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        return replace(overview, problem=str(error).partition("\n")[0])


def _read(
    overview: SearchOverview,
    goal: Goal,
    studies: StudyConnections,
    folder: SearchFolder,
    *,
    url: str,
    lease: RemoteFolder | None,
) -> SearchOverview:
    with studies.connect(url) as connection:
        study = _study_id(connection, overview.name, any_name=url == folder.study_url)
        attributes = _attributes(connection, study)
        if url != folder.study_url:
            check_same_search(attributes, folder)
        # A record of an earlier version has no versions of the space, and its own may be older than the file.
        recorded = attributes["space"] if "space:1" in attributes else ""
        if recorded not in folder.space_yaml.read_text(encoding="utf-8"):
            # The file was edited for a resume. The record has the space that the search ran with.
            goal = parse_goal(recorded, source="the space in the study")
        states = _states(connection, study)
        metric, at = attributes.get(METRIC, goal.metric.name), attributes.get(METRIC_AT, "best")
        maximize = _maximizes(connection, study)
        if goal.metric.of_test_images:
            best = _winner_value(folder, url)
        else:
            values = functools.partial(_values, connection, study, at=at, maximize=maximize)
            best = _best(values(_OURS & ~_FAILED), maximize=maximize)
            if math.isnan(best):
                best = _best(values(_OURS), maximize=maximize)
        changed = _changed(connection, study)
        alive = lives_by_url(lease) if lease else _alive(connection, study, attributes.get("lease"), url)
    ended = sum(state.is_final for state in states)
    outcome = attributes.get("outcome") or {}
    state = search_state(
        alive=alive,
        outcome=SearchState(outcome["state"]) if outcome else None,
        ended=ended,
        total=goal.budget.trials,
    )
    return replace(
        overview,
        metric=metric,
        state=state,
        best=best,
        ended=ended,
        total=max(goal.budget.trials, len(states)),
        changed=changed,
    )


def _alive(connection: Connection, study: int, lease: Mapping[str, Any] | None, url: str) -> bool:
    file = sqlite_file(url)
    silent = file_silent_seconds(file) if file else silent_seconds(connection, study, lease)
    return lease_lives(lease, silent)


def _study_id(connection: Connection, name: str, *, any_name: bool) -> int:
    rows = connection.execute(select(_STUDIES.c.study_name, _STUDIES.c.study_id)).all()
    ids = {study: int(number) for study, number in rows}
    # The only study in a renamed folder still has the earlier name.
    if name not in ids and not (any_name and len(ids) == 1):
        raise StorageError(f"there is no study named {name!r} in its database.")
    return ids[name] if name in ids else next(iter(ids.values()))


def _attributes(connection: Connection, study: int) -> dict[str, Any]:
    columns = (_STUDY_USER.c.key, _STUDY_USER.c.value_json)
    wanted = _STUDY_USER.c.key.in_(["id", "place", "lease", "outcome", "space", "space:1", METRIC, METRIC_AT])
    rows = connection.execute(select(*columns).where(_STUDY_USER.c.study_id == study, wanted))
    return {key: json.loads(value) for key, value in rows}


def _maximizes(connection: Connection, study: int) -> bool:
    """Return whether larger is better. If the metric is a user's function, only the study knows."""
    query = select(_DIRECTIONS.c.direction).where(_DIRECTIONS.c.study_id == study)
    return connection.execute(query.order_by(_DIRECTIONS.c.objective)).scalar() is StudyDirection.MAXIMIZE


def _states(connection: Connection, study: int) -> list[TrialState]:
    joined = _USER.join(_TRIALS, _USER.c.trial_id == _TRIALS.c.trial_id)
    query = select(_USER.c.value_json).select_from(joined)
    rows = connection.execute(query.where(_TRIALS.c.study_id == study, _OURS))
    return [TrialState(json.loads(value)) for (value,) in rows]


def _values(
    connection: Connection, study: int, states: ColumnElement[bool], *, at: MetricAt, maximize: bool
) -> Iterator[tuple[int, float]]:
    """Yield the last epoch and the value of each trial in ``states`` whose last metric is finite."""
    finite = _STEPS.c.intermediate_value_type == _FINITE
    ours = (_STEPS.c.trial_id == _USER.c.trial_id) & states
    better = func.max if maximize else func.min
    ends = (
        select(
            _STEPS.c.trial_id,
            func.max(_STEPS.c.step).label("step"),
            better(case((finite, _STEPS.c.intermediate_value))).label("best"),
        )
        .select_from(_STEPS.join(_TRIALS, _STEPS.c.trial_id == _TRIALS.c.trial_id).join(_USER, ours))
        .where(_TRIALS.c.study_id == study)
        .group_by(_STEPS.c.trial_id)
        .subquery()
    )
    same = (_STEPS.c.trial_id == ends.c.trial_id) & (_STEPS.c.step == ends.c.step)
    columns = (_STEPS.c.step, _STEPS.c.intermediate_value, ends.c.best)
    rows = connection.execute(select(*columns).select_from(_STEPS.join(ends, same)).where(finite))
    for step, last, best in rows:
        yield step, best if at == "best" else last


def _best(values: Iterable[tuple[int, float]], *, maximize: bool) -> float:
    """Return the best value among the trials with the most epochs.

    >>> _best([(1, 0.9), (9, 0.7), (9, 0.8)], maximize=True)
    0.8
    """
    values = list(values)
    furthest = max((epoch for epoch, _ in values), default=0)
    finalists = [value for epoch, value in values if epoch == furthest]
    return (max if maximize else min)(finalists, default=math.nan)


def _winner_value(folder: SearchFolder, url: str) -> float:
    """Return the value of the trial that a report of final trainings names as the winner; may be nan.

    The trials are read completely, because the winner is chosen by the mean over the seeds. They are few.
    """
    with snapshot(url) as readable:
        record, _ = open_recorded(readable, folder, shared=url != folder.study_url)
        winner = best_trial(record.trials(), by_mean=True)
    return winner.value if winner else math.nan


def _changed(connection: Connection, study: int) -> datetime | None:
    """Return when a trial last began, ended an epoch, or ended."""
    times = (func.max(_TRIALS.c.datetime_start), func.max(_TRIALS.c.datetime_complete))
    ends = connection.execute(select(*times).where(_TRIALS.c.study_id == study)).one()
    # Optuna's tables store naive UTC.
    moments = [moment.replace(tzinfo=UTC) for moment in ends if moment is not None]
    if (epoch := _last_epoch(connection, study)) is not None:
        moments.append(datetime.fromtimestamp(epoch / 1000, UTC))
    return max(moments, default=None)


def _last_epoch(connection: Connection, study: int) -> int | None:
    """Return when the most recently recorded epoch ended, in milliseconds since 1970."""
    query = (
        select(_SYSTEM.c.value_json)
        .select_from(_SYSTEM.join(_TRIALS, _SYSTEM.c.trial_id == _TRIALS.c.trial_id))
        .where(_TRIALS.c.study_id == study, _SYSTEM.c.key.like(f"{EPOCH_KEY_PREFIX}%"))
        .order_by(_SYSTEM.c.trial_system_attribute_id.desc())
        .limit(1)
    )
    value = connection.execute(query).scalar()
    return None if value is None else int(json.loads(value)["time_ms"])
