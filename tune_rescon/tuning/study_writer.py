"""Writes the record to an Optuna study, with one method for each event of a trial.

:class:`StudyWriter` works on any Optuna storage through its public methods; simulations use Optuna's
in-memory storage. On a database, :class:`SqlStudyWriter` makes each write one transaction of a few
statements. Optuna's storage needs a transaction for each parameter, attribute and value, and queries the
trial before each: 30 ms and more for a trial with six parameters on SQLite. The rows and tables are the same
(``optuna.storages._rdb.models``, whose schema Optuna versions and migrates), so Optuna and its dashboard can
read them. ``tests/tuning/test_study_writer.py`` checks that both writers have the same result.

Optuna's user attributes hold the values that users read (the contract's ``state``, ``mlflow_run_id`` and
``checkpoint``). Its system attributes hold the values that only this package and the samplers read.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, Final

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy import Connection, Insert, Select, Table, bindparam, select
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from tune_rescon.tuning.database import unwritable

__all__ = ["SqlStudyWriter", "StudyWriter"]


class StudyWriter:
    """Writes and reads the trials and attributes of one study."""

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        """Write to the study ``study_id`` of ``storage``."""
        self._storage = storage
        self._study_id = study_id

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, ordered by number."""
        return sorted(self._storage.get_all_trials(self._study_id, deepcopy=False), key=lambda t: t.number)

    def study_attributes(self) -> dict[str, Any]:
        """Return the study's user attributes."""
        return self._storage.get_study_user_attrs(self._study_id)

    def set_study_attribute(self, key: str, value: Any) -> None:
        """Write one of the study's user attributes."""
        self._storage.set_study_user_attr(self._study_id, key, value)

    def open_trial(
        self, number: int, trial: FrozenTrial, *, waiting_id: int | None = None
    ) -> tuple[int, int, datetime.datetime]:
        """Add a running trial, or start an enqueued one with its parameters and attributes.

        Args:
            number: The expected number; the trial gets another one if another program has added trials.
            trial: The parameters, their distributions, and the attributes.
            waiting_id: The id of an enqueued trial to start. If another program has taken that trial, a new
                one is added.

        Returns:
            The trial's id in the storage, its number, and its start.
        """
        if waiting_id is not None and self._start_waiting(waiting_id, trial):
            return self._opened(waiting_id)
        del number  # Optuna's storages count by themselves.
        return self._opened(self._storage.create_new_trial(self._study_id, template_trial=trial))

    def _start_waiting(self, trial_id: int, trial: FrozenTrial) -> bool:
        if not self._storage.set_trial_state_values(trial_id, OptunaState.RUNNING):
            return False
        for name, distribution in trial.distributions.items():
            internal = distribution.to_internal_repr(trial.params[name])
            self._storage.set_trial_param(trial_id, name, internal, distribution)
        for key, value in trial.user_attrs.items():
            self._storage.set_trial_user_attr(trial_id, key, value)
        for key, value in trial.system_attrs.items():
            self._storage.set_trial_system_attr(trial_id, key, value)
        return True

    def _opened(self, trial_id: int) -> tuple[int, int, datetime.datetime]:
        trial = self._storage.get_trial(trial_id)
        assert trial.datetime_start is not None
        return trial_id, trial.number, trial.datetime_start

    def add_epoch(self, trial_id: int, epoch: int, value: float, *, key: str, details: Any) -> None:
        """Write an epoch.

        Args:
            trial_id: The trial's id in the storage.
            epoch: The epoch, which is the step of the intermediate value.
            value: The objective, which is the intermediate value.
            key: The name of the system attribute that holds ``details``.
            details: The other values of the epoch.
        """
        self._storage.set_trial_system_attr(trial_id, key, details)
        # The value is written last, because a reader counts the epoch once its value exists.
        self._storage.set_trial_intermediate_value(trial_id, epoch, value)

    def trial_attribute(self, trial_id: int, key: str) -> Any:
        """Return a user attribute of a trial, which another program may have written; None if it has none."""
        return self._storage.get_trial(trial_id).user_attrs.get(key)

    def annotate(self, trial_id: int, user: Mapping[str, Any]) -> None:
        """Write user attributes. A closed trial gets none; :class:`SqlStudyWriter` writes them."""
        if self._storage.get_trial(trial_id).state.is_finished():
            return
        for key, value in user.items():
            self._storage.set_trial_user_attr(trial_id, key, value)

    def close_trial(
        self, trial_id: int, state: OptunaState, values: Sequence[float] | None, user: Mapping[str, Any]
    ) -> datetime.datetime:
        """Write the final state of a trial.

        Args:
            trial_id: The trial's id in the storage.
            state: Optuna's state of the trial.
            values: The objectives, or None if the trial has none.
            user: User attributes.

        Returns:
            The time at which the trial ended.
        """
        self.annotate(trial_id, user)
        self._storage.set_trial_state_values(trial_id, state, values)
        ended = self._storage.get_trial(trial_id).datetime_complete
        assert ended is not None
        return ended


_STUDIES: Final[Table] = models.StudyModel.__table__
_TRIALS: Final[Table] = models.TrialModel.__table__
_PARAMS: Final[Table] = models.TrialParamModel.__table__
_USER: Final[Table] = models.TrialUserAttributeModel.__table__
_SYSTEM: Final[Table] = models.TrialSystemAttributeModel.__table__
_VALUES: Final[Table] = models.TrialValueModel.__table__
_STEPS: Final[Table] = models.TrialIntermediateValueModel.__table__


class SqlStudyWriter(StudyWriter):
    """A :class:`.StudyWriter` that writes Optuna's tables directly. It can also annotate closed trials."""

    def __init__(self, storage: RDBStorage, study_id: int) -> None:
        """Write to the study ``study_id`` of ``storage``."""
        super().__init__(storage, study_id)
        self._url = str(storage.url)
        self._engine = storage.engine

    @override
    def set_study_attribute(self, key: str, value: Any) -> None:
        try:
            super().set_study_attribute(key, value)
        except StorageInternalError as error:
            raise unwritable(self._url, error) from error

    @override
    def open_trial(
        self, number: int, trial: FrozenTrial, *, waiting_id: int | None = None
    ) -> tuple[int, int, datetime.datetime]:
        now = datetime.datetime.now(datetime.UTC)
        with self._transaction() as connection:
            taken = None if waiting_id is None else _take_waiting(connection, waiting_id, now)
            trial_id, number = taken or self._insert_trial(connection, number, now)
            _insert(
                connection,
                _PARAMS,
                (
                    {
                        "trial_id": trial_id,
                        "param_name": name,
                        "param_value": distribution.to_internal_repr(trial.params[name]),
                        "distribution_json": _json_of(distribution),
                    }
                    for name, distribution in trial.distributions.items()
                ),
            )
            if taken is None:
                _insert(connection, _USER, _attributes(trial_id, trial.user_attrs))
            else:
                _replace_attributes(connection, trial_id, trial.user_attrs)
            _insert(connection, _SYSTEM, _attributes(trial_id, trial.system_attrs))
        return trial_id, number, _naive_local(now)

    def _insert_trial(self, connection: Connection, number: int, now: datetime.datetime) -> tuple[int, int]:
        """Insert a running trial and return its id and its number.

        The number differs from ``number`` if other programs have added trials.
        """
        if connection.dialect.name != "sqlite":
            # Lock the study as Optuna does, so that no other program adds a trial before this transaction
            # ends. SQLite needs no lock, because its first insert locks the whole file.
            connection.execute(_lock_query(), {"study": self._study_id})
        row = {
            "number": number,
            "study_id": self._study_id,
            "state": OptunaState.RUNNING,
            "datetime_start": _naive_utc(now),
        }
        (trial_id,) = connection.execute(_insert_statement(_TRIALS), row).inserted_primary_key or (None,)
        assert isinstance(trial_id, int)
        before = connection.execute(
            _last_number_query(), {"study": self._study_id, "trial": trial_id}
        ).scalar()
        next_number = 0 if before is None else before + 1
        if next_number != number:
            connection.execute(
                _TRIALS.update().where(_TRIALS.c.trial_id == trial_id).values({"number": next_number})
            )
        return trial_id, next_number

    @override
    def add_epoch(self, trial_id: int, epoch: int, value: float, *, key: str, details: Any) -> None:
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        step = {
            "trial_id": trial_id,
            "step": epoch,
            "intermediate_value": stored,
            "intermediate_value_type": kind,
        }
        with self._transaction() as connection:
            _insert(connection, _SYSTEM, _attributes(trial_id, {key: details}))
            _insert(connection, _STEPS, [step])

    @override
    def trial_attribute(self, trial_id: int, key: str) -> Any:
        # One row, because this is asked for each epoch, and Optuna would read the whole trial.
        with self._transaction() as connection:
            text = connection.execute(_attribute_query(), {"trial": trial_id, "key": key}).scalar()
        return None if text is None else json.loads(text)

    @override
    def annotate(self, trial_id: int, user: Mapping[str, Any]) -> None:
        with self._transaction() as connection:
            _replace_attributes(connection, trial_id, user)

    @override
    def close_trial(
        self, trial_id: int, state: OptunaState, values: Sequence[float] | None, user: Mapping[str, Any]
    ) -> datetime.datetime:
        now = datetime.datetime.now(datetime.UTC)
        with self._transaction() as connection:
            _replace_attributes(connection, trial_id, user)
            _insert(connection, _VALUES, _objectives(trial_id, values or ()))
            connection.execute(
                _TRIALS.update()
                .where(_TRIALS.c.trial_id == trial_id)
                .values({"state": state, "datetime_complete": _naive_utc(now)})
            )
        return _naive_local(now)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Run the block in one transaction.

        Raises:
            RecordError: If the database rejects the transaction.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise unwritable(self._url, error) from error


@cache
def _attribute_query() -> Select[Any]:
    ours = (_USER.c.trial_id == bindparam("trial"), _USER.c.key == bindparam("key"))
    return select(_USER.c.value_json).where(*ours)


def _insert(connection: Connection, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    if values := list(rows):
        connection.execute(_insert_statement(table), values)


def _take_waiting(connection: Connection, trial_id: int, now: datetime.datetime) -> tuple[int, int] | None:
    """Set an enqueued trial running; return its id and number, or None if another program has taken it."""
    taken = connection.execute(
        _TRIALS.update()
        .where(_TRIALS.c.trial_id == trial_id, _TRIALS.c.state == OptunaState.WAITING)
        .values({"state": OptunaState.RUNNING, "datetime_start": _naive_utc(now)})
    )
    if not taken.rowcount:
        return None
    number = connection.execute(select(_TRIALS.c.number).where(_TRIALS.c.trial_id == trial_id)).scalar_one()
    return trial_id, int(number)


@cache
def _lock_query() -> Select[Any]:
    return select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == bindparam("study")).with_for_update()


@cache
def _last_number_query() -> Select[Any]:
    """Return a query for the previous trial's number: Optuna numbers a study's trials in the order of ids."""
    return (
        select(_TRIALS.c.number)
        .where(_TRIALS.c.study_id == bindparam("study"), _TRIALS.c.trial_id < bindparam("trial"))
        .order_by(_TRIALS.c.trial_id.desc())
        .limit(1)
    )


@cache
def _insert_statement(table: Table) -> Insert:
    """Return the insert statement of a table.

    The statement is cached, because SQLAlchemy needs as long to create and recognise a statement as SQLite
    needs to run it.
    """
    return table.insert()


def _attributes(trial_id: int, values: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for key, value in values.items():
        yield {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}


def _replace_attributes(connection: Connection, trial_id: int, values: Mapping[str, Any]) -> None:
    # Delete and insert instead of an upsert, because the syntax of an upsert differs between databases.
    connection.execute(_USER.delete().where(_USER.c.trial_id == trial_id, _USER.c.key.in_(list(values))))
    _insert(connection, _USER, _attributes(trial_id, values))


def _objectives(trial_id: int, values: Sequence[float]) -> Iterable[dict[str, Any]]:
    for objective, value in enumerate(values):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        yield {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}


def _naive_utc(moment: datetime.datetime) -> datetime.datetime:
    """Convert a time to the form in Optuna's tables, naive UTC."""
    return moment.replace(tzinfo=None)


def _naive_local(moment: datetime.datetime) -> datetime.datetime:
    """Convert a time to the form in Optuna's trials, naive local time.

    In the hour that is repeated when summer time ends, ``fold`` is right; ``astimezone`` would not set it.
    """
    return datetime.datetime.fromtimestamp(moment.timestamp())


@lru_cache(maxsize=256)
def _json_of(distribution: BaseDistribution) -> str:
    return distribution_to_json(distribution)
