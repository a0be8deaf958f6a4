"""The durable record of a search: one Optuna study, and the functions that read it.

The driver writes each epoch together with the stopping rule's decision on it, before it acts on that
decision. A driver that dies therefore loses no epoch: one that it had not recorded yet is in the trial's
checkpoint, and is reported again from there. The next driver carries out the decisions that the record
holds. The rungs, the sampler's view, tables, reports and MLflow runs can all be rebuilt from the record.

Optuna's trial state follows the contract: COMPLETE if a trial reached the last epoch, PRUNED if it was
stopped, FAIL if it diverged or failed, and RUNNING while it runs, is paused, or waits to be resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.errors import presentable
from tune_rescon.metric_names import MetricAt
from tune_rescon.tuning.database import create_study, find_study, name_objectives, open_database
from tune_rescon.tuning.folder import recorded_checkpoint
from tune_rescon.tuning.stopping.rule import Decision, Verdict
from tune_rescon.tuning.trial import Enqueued, Proposal, TrialOrigin, TrialRecord, by_epoch

if TYPE_CHECKING:
    from tune_rescon.tuning.study_writer import StudyWriter

__all__ = ["EPOCH_KEY_PREFIX", "FIXED_PARAMS", "METRIC", "METRIC_AT", "STOP_REQUESTED", "StudyRecord"]

#: Seconds a writer waits for another writer's transaction on a local SQLite file.
SQLITE_BUSY_SECONDS: Final = 60

_OPTUNA_STATE: Final = {
    TrialState.FINISHED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.DIVERGED: OptunaState.FAIL,
    TrialState.OUT_OF_MEMORY: OptunaState.FAIL,
    TrialState.FAILED: OptunaState.FAIL,
}

_STATES: Final = frozenset(state.value for state in TrialState)

#: Prefix of this package's system attributes, one of which is written for each epoch. The samplers' system
#: attributes lack it.
_PREFIX: Final = "tune_rescon:"
#: Optuna's system attribute that holds the given values of an enqueued trial.
FIXED_PARAMS: Final = "fixed_params"
#: User attribute of a trial that another program has requested to stop.
STOP_REQUESTED: Final = "stop_requested"
#: Key of the attribute with an epoch's details, before the epoch's number.
EPOCH_KEY_PREFIX: Final = _PREFIX + "epoch:"
_ORIGIN: Final = _PREFIX + "origin"

#: The study's attributes that hold ``metric.name`` and ``metric.at``. An earlier version wrote neither. It
#: kept each trial's best network, so the value of such a trial is the metric of its best epoch.
METRIC: Final = "metric"
METRIC_AT: Final = "metric_at"

#: The attributes that are kept when a new search uses an empty study that a dead driver has left: the lease
#: with the time of its last beat, and whose study it is (:mod:`tune_rescon.tuning.identity`).
_KEPT: Final = frozenset({"lease", "lease_beat", "id", "place"})


def _epoch_key(epoch: int) -> str:
    return f"{EPOCH_KEY_PREFIX}{epoch}"


class StudyRecord:
    """The study of one search: a write-through copy in memory.

    It is not thread-safe. While trials run, the thread that runs Tune writes it and holds the driver's lock
    (:class:`.DriverLock`); before and after, the main thread does. Reading (:meth:`trial`, :meth:`trials`)
    needs no query.
    """

    def __init__(
        self, writer: StudyWriter, *, metric: str, maximize: bool, now_ms: Callable[[], int] | None = None
    ) -> None:
        """Read the study that ``writer`` writes; see :meth:`create` and :meth:`load`.

        Args:
            writer: The writer of the study.
            metric: The objective, if the study does not record one.
            maximize: Whether larger is better.
            now_ms: Returns the current time in milliseconds since 1970; each new epoch is recorded with it.
        """
        attributes = writer.study_attributes()
        self._writer = writer
        self._metric = metric = attributes.get(METRIC, metric)
        self._at: MetricAt = attributes.get(METRIC_AT, "best")
        self.maximize = maximize
        self._now_ms = now_ms or _now_ms
        frozen = writer.trials()
        self._ids = {trial.number: trial._trial_id for trial in frozen}
        self._trials = {t.number: _to_record(t, metric, maximize, self._at) for t in frozen if _is_ours(t)}
        self._foreign = {trial.number: trial for trial in frozen if not _is_ours(trial)}
        self._next_number = max(self._ids, default=-1) + 1

    @classmethod
    def create(
        cls,
        url: str,
        name: str,
        *,
        metric: str,
        maximize: bool,
        space: str,
        against: str | None = None,
        at: MetricAt = "best",
        claim: Callable[[], object] = lambda: None,
    ) -> StudyRecord:
        """Create the record of a new search.

        A study without trials that a dead driver left in the database is used again, without its attributes.

        Args:
            url: The database's URL.
            name: The name of the search and of its study.
            metric: The objective.
            maximize: Whether larger is better.
            space: The resolved YAML of the space.
            against: A second objective to minimize, or None.
            at: The epoch whose metric is a trial's value, ``"best"`` or ``"last"``.
            claim: Called when the study exists, before it is written; raises if another driver has it.

        Raises:
            StorageError: If the database already has a study of that name, or cannot be reached.
        """
        directions = [StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE]
        if against is not None:
            directions.append(StudyDirection.MINIMIZE)
        storage = open_database(url, busy_seconds=SQLITE_BUSY_SECONDS, create=True)
        create_study(storage, name, directions)
        claim()
        # Again, because another driver may have run trials and ended before this one had its claim.
        writer = _writer(storage, create_study(storage, name, directions))
        left = writer.study_attributes()
        if left.get("space"):  # not a study that another program has made for this search
            for key in left.keys() - _KEPT:
                writer.set_study_attribute(key, None)
        writer.set_study_attribute("space", space)
        writer.set_study_attribute(METRIC, metric)
        writer.set_study_attribute(METRIC_AT, at)
        name_objectives(storage, name, [metric, *([] if against is None else [against])])
        return cls(writer, metric=metric, maximize=maximize)

    @classmethod
    def load(cls, url: str, name: str, *, metric: str, any_name: bool = False) -> StudyRecord:
        """Open the record of an earlier search.

        Args:
            url: The database's URL.
            name: The name of the study.
            metric: The objective, if the study does not record one.
            any_name: See :func:`.find_study`.

        Raises:
            StorageError: If the database has no such study, or cannot be reached.
        """
        storage = open_database(url, busy_seconds=SQLITE_BUSY_SECONDS)
        return cls.on_storage(storage, find_study(storage, name, any_name=any_name), metric=metric)

    @classmethod
    def on_storage(
        cls, storage: BaseStorage, study_id: int, *, metric: str, now_ms: Callable[[], int] | None = None
    ) -> StudyRecord:
        """Open the record of a study in any Optuna storage, such as the in-memory storage of a simulation.

        Args:
            storage: The Optuna storage.
            study_id: The id of the study.
            metric: The objective, if the study does not record one.
            now_ms: See the constructor.
        """
        maximize = storage.get_study_directions(study_id)[0] is StudyDirection.MAXIMIZE
        return cls(_writer(storage, study_id), metric=metric, maximize=maximize, now_ms=now_ms)

    def __len__(self) -> int:
        """Return the number of trials."""
        return len(self._trials)

    @property
    def foreign(self) -> tuple[int, ...]:
        """Numbers of the study's trials that this search neither created nor runs."""
        return tuple(self._foreign)

    def next_enqueued(self, fits: Callable[[Mapping[str, Any]], bool]) -> Enqueued | None:
        """Return the first enqueued trial whose values ``fits`` accepts; None if no trial matches."""
        return next((trial for trial in self.enqueued() if fits(trial.params)), None)

    def enqueued(self) -> Iterator[Enqueued]:
        """Yield the trials that another program enqueued and that have not run, ordered by number."""
        for number, trial in self._foreign.items():
            params = trial.system_attrs.get(FIXED_PARAMS)
            if trial.state is OptunaState.WAITING and params is not None:
                yield Enqueued(number=number, params=params)

    def read_foreign(self) -> None:
        """Read the trials that another program has added to the study."""
        for trial in self._writer.trials():
            if not _is_ours(trial):
                self._ids[trial.number] = trial._trial_id
                self._foreign[trial.number] = trial

    def stop_requested(self, number: int) -> bool:
        """Return whether another program has requested that a trial stops. This queries the database."""
        return bool(self._writer.trial_attribute(self._ids[number], STOP_REQUESTED))

    def attribute(self, name: str) -> Any:
        """Return an attribute of the study; None if the study has no attribute of that name."""
        return self.attributes().get(name)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the study that have a value."""
        attributes = self._writer.study_attributes()
        return {name: value for name, value in attributes.items() if value is not None}

    def set_attribute(self, name: str, value: Any) -> None:
        """Write an attribute of the study."""
        self._writer.set_study_attribute(name, value)

    def open(self, proposal: Proposal) -> TrialRecord:
        """Record the start of a new or enqueued trial.

        The number of a new trial may exceed the next number, because another program may have added trials.
        """
        enqueued = self._foreign.pop(proposal.enqueued.number) if proposal.enqueued else None
        origin = {} if proposal.origin is None else {_ORIGIN: proposal.origin.to_dict()}
        template = create_trial(
            state=OptunaState.RUNNING,
            params=dict(proposal.params),
            distributions=dict(proposal.distributions),
            user_attrs={"state": TrialState.RUNNING.value},
            system_attrs={**proposal.sampler_state, **origin},
        )
        waiting_id = enqueued._trial_id if enqueued else None
        trial_id, number, started = self._writer.open_trial(
            self._next_number, template, waiting_id=waiting_id
        )
        self._ids[number] = trial_id
        if number > self._next_number:
            self.read_foreign()
        self._next_number = max(self._next_number, number + 1)
        self._trials[number] = TrialRecord(
            number=number,
            state=TrialState.RUNNING,
            parameters=dict(proposal.params),
            metric=self._metric,
            maximize=self.maximize,
            values=(),
            started=started,
            sampler_state=proposal.sampler_state,
            origin=proposal.origin,
            at=self._at,
        )
        if enqueued is not None:
            self._trials = dict(sorted(self._trials.items()))
        return self._trials[number]

    def reopen(self, number: int) -> TrialRecord:
        """Record that a paused or interrupted trial is resumed; it keeps its number."""
        return self._mark(number, TrialState.RUNNING, {})

    def report(
        self,
        number: int,
        epoch: int,
        metrics: Mapping[str, float],
        verdict: Verdict,
        *,
        checkpoint: str | None = None,
        device: str | None = None,
        device_count: float | None = None,
    ) -> TrialRecord:
        """Write one epoch: the objective as intermediate value (step = epoch), the details as an attribute.

        Args:
            number: The trial's number.
            epoch: The epoch, counted from 1; it must be the one after the last recorded epoch.
            metrics: All metrics of the epoch.
            verdict: The scheduler's verdict on the epoch.
            checkpoint: The path or URL of the trial's checkpoint, or None.
            device: The kind of device on which the epoch ran, or None if it is not known.
            device_count: The number of devices that the trial had, or None if it is not known.
        """
        known, value = self._trials[number], metrics.get(self._metric, math.nan)
        assert epoch == known.epochs + 1, f"epoch {epoch} after {known.epochs}"
        now, checkpoint = self._now_ms(), recorded_checkpoint(number, checkpoint)
        details = {
            "metrics": dict(metrics),
            "decision": verdict.decision.value,
            "checkpoint": checkpoint,
            "time_ms": now,
            "device": device,
            "held": device_count,
        }
        self._writer.add_epoch(self._ids[number], epoch, value, key=_epoch_key(epoch), details=details)
        self._trials[number] = replace(
            known.extended(metrics),
            decision=verdict.decision,
            checkpoint=checkpoint,
            times_ms=(*known.times_ms, now),
            devices=(*known.devices, device),
            device_counts=(*known.device_counts, device_count),
        )
        return self._trials[number]

    def pause(self, number: int) -> TrialRecord:
        """Record that a trial is paused at its rung."""
        return self._mark(number, TrialState.PAUSED, {"checkpoint": self._trials[number].checkpoint})

    def interrupt(self, number: int) -> TrialRecord:
        """Record that a trial was interrupted and waits to be resumed."""
        return self._mark(number, TrialState.INTERRUPTED, {"checkpoint": self._trials[number].checkpoint})

    def close(
        self,
        number: int,
        state: TrialState,
        *,
        checkpoint: str | None,
        error: str | None = None,
        cost: float | None = None,
        version: int | None = None,
    ) -> TrialRecord:
        """Record the final state of a trial.

        Args:
            number: The trial's number.
            state: The final state.
            checkpoint: The path or URL of the checkpoint that the trial keeps, or None.
            error: The error that ended the trial, or None. Passwords in it are hidden.
            cost: The second objective, if the search has one.
            version: The version of the space that the trial ran with at its end, or None if it is not known.

        Returns:
            The updated trial.
        """
        known, checkpoint = self._trials[number], recorded_checkpoint(number, checkpoint)
        error = None if error is None else presentable(error)
        failed_in = version if state is TrialState.OUT_OF_MEMORY else None
        optional = {"error": error, "cost": cost, "failed_in": failed_in}
        given = {name: value for name, value in optional.items() if value is not None}
        user = {"state": state.value, "checkpoint": checkpoint, **given}
        values = None
        if state in (TrialState.FINISHED, TrialState.STOPPED) and math.isfinite(known.value):
            values = (known.value,) if cost is None else (known.value, cost)
        ended = self._writer.close_trial(self._ids[number], _OPTUNA_STATE[state], values, user)
        return self._update(number, state=state, checkpoint=checkpoint, ended=ended, **optional)

    def forget_checkpoint(self, number: int) -> TrialRecord:
        """Record that a closed trial no longer keeps a checkpoint."""
        self._writer.annotate(self._ids[number], {"checkpoint": None})
        return self._update(number, checkpoint=None)

    def note(self, number: int, text: str) -> TrialRecord:
        """Append a note for the user to a trial. Passwords in ``text`` are hidden."""
        notes = (*self._trials[number].notes, presentable(text))
        self._writer.annotate(self._ids[number], {"notes": list(notes)})
        return self._update(number, notes=notes)

    def set_run_id(self, number: int, run_id: str) -> None:
        """Record which MLflow run shows a trial, which may have ended before the server was reachable."""
        self._writer.annotate(self._ids[number], {"mlflow_run_id": run_id})
        self._update(number, mlflow_run_id=run_id)

    def fill_origin(self, number: int, origin: TrialOrigin) -> None:
        """Set the origin of an earlier version's trial, in memory only: the recorded space implies it."""
        self._update(number, origin=origin)

    def trial(self, number: int) -> TrialRecord:
        """Return one trial, as recorded."""
        return self._trials[number]

    def trials(self) -> tuple[TrialRecord, ...]:
        """Return all trials, ordered by number."""
        return tuple(self._trials.values())

    def _mark(self, number: int, state: TrialState, attributes: Mapping[str, Any]) -> TrialRecord:
        self._writer.annotate(self._ids[number], {"state": state.value, **attributes})
        return self._update(number, state=state)

    def _update(self, number: int, **changes: Any) -> TrialRecord:
        self._trials[number] = replace(self._trials[number], **changes)
        return self._trials[number]


def _is_ours(frozen: FrozenTrial) -> bool:
    """Return whether this search opened the trial: its first write has the user attribute ``state``."""
    return frozen.user_attrs.get("state") in _STATES


def _to_record(frozen: FrozenTrial, metric: str, maximize: bool, at: MetricAt) -> TrialRecord:
    user, system = frozen.user_attrs, frozen.system_attrs
    # A process that reads while the driver writes may find the value of an epoch without its attribute: on a
    # database server, the queries of one read may see different states.
    steps = [step for step in sorted(frozen.intermediate_values) if _epoch_key(step) in system]
    epochs = [system[_epoch_key(step)] for step in steps]
    last = epochs[-1] if epochs else {"decision": None, "checkpoint": None}
    # If the trial has not ended, its attribute is from the last interruption or pause.
    ended = frozen.state.is_finished()
    checkpoint = user.get("checkpoint", last["checkpoint"]) if ended else last["checkpoint"]
    return TrialRecord(
        number=frozen.number,
        state=TrialState(user["state"]),
        parameters=dict(frozen.params),
        metric=metric,
        maximize=maximize,
        values=tuple(frozen.intermediate_values[step] for step in steps),
        history=by_epoch([epoch["metrics"] for epoch in epochs]),
        started=frozen.datetime_start,
        ended=frozen.datetime_complete,
        mlflow_run_id=user.get("mlflow_run_id"),
        checkpoint=recorded_checkpoint(frozen.number, checkpoint),
        error=user.get("error"),
        cost=user.get("cost"),
        failed_in=user.get("failed_in"),
        notes=tuple(user.get("notes", ())),
        decision=None if last["decision"] is None else Decision(last["decision"]),
        times_ms=tuple(epoch["time_ms"] for epoch in epochs),
        devices=tuple(epoch.get("device") for epoch in epochs),  # an earlier version wrote none
        device_counts=tuple(epoch.get("held") for epoch in epochs),
        sampler_state={
            key: value for key, value in system.items() if not key.startswith(_PREFIX) and key != FIXED_PARAMS
        },
        origin=TrialOrigin.from_dict(system[_ORIGIN]) if _ORIGIN in system else None,
        at=at,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _writer(storage: BaseStorage, study_id: int) -> StudyWriter:
    # Imported here: a dry run reads this module and opens no database.
    from tune_rescon.tuning.study_writer import SqlStudyWriter, StudyWriter

    if isinstance(storage, optuna.storages.RDBStorage):
        return SqlStudyWriter(storage, study_id)
    return StudyWriter(storage, study_id)
