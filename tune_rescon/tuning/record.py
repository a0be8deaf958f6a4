"""The durable record of a search: one Optuna study, and what can be read back from it.

Every epoch is written before anything is decided on it, so a driver that dies loses at most the epoch it was
told about last, which the trial's checkpoint still holds. Everything else (rungs, tables, reports, MLflow)
can be rebuilt from here.

Optuna's own state follows the contract: COMPLETE if a trial reached the last epoch, PRUNED if it was stopped,
FAIL if it diverged or failed, and RUNNING while it runs or waits to be resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.errors import StorageError, explain

__all__ = ["StudyRecord", "TrialSummary"]

#: Seconds a writer waits for another one's transaction on a local SQLite file.
SQLITE_BUSY_SECONDS: Final = 60

_OPTUNA_STATE: Final = {
    TrialState.FINISHED: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.DIVERGED: OptunaState.FAIL,
    TrialState.OUT_OF_MEMORY: OptunaState.FAIL,
    TrialState.FAILED: OptunaState.FAIL,
}


@dataclass(frozen=True, kw_only=True)
class TrialSummary:
    """One trial as the record has it.

    ``parameters`` are the active ones, as Optuna holds them. ``values`` and each series of ``history`` are by
    epoch, the first being epoch 1.
    """

    number: int
    state: TrialState
    parameters: Mapping[str, Any]
    metric: str
    maximize: bool
    values: tuple[float, ...]
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    started: datetime | None = None
    ended: datetime | None = None
    mlflow_run_id: str | None = None
    checkpoint: str | None = None
    error: str | None = None

    @property
    def epochs(self) -> int:
        """Epochs reported so far."""
        return len(self.values)

    @property
    def value(self) -> float:
        """The metric after the last reported epoch; nan before the first."""
        return self.values[-1] if self.values else math.nan

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the best finite value, the first of equals; 0 if there is none."""
        finite = [(value, -epoch) for epoch, value in enumerate(self.values, 1) if math.isfinite(value)]
        if not finite:
            return 0
        chosen = max(finite) if self.maximize else min(finite, key=lambda pair: (pair[0], -pair[1]))
        return -chosen[1]

    @property
    def best_value(self) -> float:
        """The metric at :attr:`best_epoch`; nan if there is none."""
        return self.values[self.best_epoch - 1] if self.best_epoch else math.nan

    @property
    def seconds(self) -> float:
        """Seconds spent in the reported epochs (training, validation and checkpoint)."""
        return math.fsum(s for s in self.history.get("epoch_seconds", ()) if math.isfinite(s))

    def rank_key(self) -> tuple[int, float]:
        """Smaller is better: further first, then the better value (Optuna's order of PRUNED trials)."""
        if not math.isfinite(self.value):
            return (1, 0.0)
        return (-self.epochs, -self.value if self.maximize else self.value)


class StudyRecord:
    """The study of one search, written through and mirrored in memory.

    The driver's main thread is its only writer. Reading (:meth:`trial`, :meth:`trials`) costs no query.
    """

    def __init__(self, study: optuna.Study, *, metric: str) -> None:
        """Wrap an existing study; see :meth:`create` and :meth:`load`."""
        self._study = study
        self._metric = metric
        self._open: dict[int, Trial] = {}
        self._late_run_ids: dict[str, str] = dict(study.user_attrs.get("mlflow_run_ids", {}))
        self._trials = {t.number: self._summary(t) for t in _handed_out(study)}

    @classmethod
    def create(
        cls, url: str, name: str, *, metric: str, maximize: bool, sampler: BaseSampler, space: str
    ) -> StudyRecord:
        """Begin the record of a new search; ``space`` is its resolved YAML.

        Raises:
            StorageError: the database already has a study of that name.
        """
        try:
            study = optuna.create_study(
                storage=_storage(url),
                # Always named: Optuna's default name would merge two searches on one database.
                study_name=name,
                direction="maximize" if maximize else "minimize",
                sampler=sampler,
                load_if_exists=False,
            )
        except optuna.exceptions.DuplicatedStudyError:
            hint = f"Go on with it by --resume {name}, or give another --name."
            rule = f"a study named {name!r} is already in the database"
            raise StorageError(explain(rule, where="--study", hint=hint)) from None
        study.set_user_attr("space", space)
        return cls(study, metric=metric)

    @classmethod
    def load(cls, url: str, name: str, *, metric: str) -> StudyRecord:
        """Open the record of an earlier search.

        Raises:
            StorageError: the database has no such study.
        """
        try:
            study = optuna.load_study(storage=_storage(url), study_name=name)
        except KeyError:
            rule = f"there is no study named {name!r} in the database"
            raise StorageError(explain(rule, where="--study")) from None
        return cls(study, metric=metric)

    @property
    def maximize(self) -> bool:
        """Whether larger values of the metric are better."""
        return self._study.direction == optuna.study.StudyDirection.MAXIMIZE

    def use(self, sampler: BaseSampler) -> None:
        """Have this sampler draw from now on."""
        self._study.sampler = sampler

    def enqueue(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Have the next trials take these parameters, in order, before the sampler is asked."""
        for row in rows:
            self._study.enqueue_trial(dict(row))

    def ask(self, suggest: Callable[[Trial], object]) -> TrialSummary:
        """Open the next trial; ``suggest`` draws its active parameters."""
        trial = self._study.ask()
        suggest(trial)
        trial.set_user_attr("state", TrialState.RUNNING.value)
        self._open[trial.number] = trial
        self._trials[trial.number] = TrialSummary(
            number=trial.number,
            state=TrialState.RUNNING,
            parameters=dict(trial.params),
            metric=self._metric,
            maximize=self.maximize,
            values=(),
            started=trial.datetime_start,
        )
        return self._trials[trial.number]

    def reopen(self, number: int, suggest: Callable[[Trial], object]) -> TrialSummary:
        """Go on with an unfinished trial under its own number.

        ``suggest`` draws what a driver that died amid :meth:`ask` had not drawn yet.
        """
        frozen = next(t for t in _handed_out(self._study) if t.number == number)
        # Optuna has no public way back to an open trial of another process: this is what its own
        # distributed optimisation does.
        trial = Trial(self._study, frozen._trial_id)
        if "state" not in frozen.user_attrs:
            suggest(trial)
        trial.set_user_attr("state", TrialState.RUNNING.value)
        self._open[number] = trial
        return self._update(number, state=TrialState.RUNNING, parameters=dict(trial.params))

    def report(self, number: int, epoch: int, metrics: Mapping[str, float]) -> TrialSummary:
        """Write one epoch: the objective as intermediate value (step = epoch), all metrics as history."""
        trial, known = self._open[number], self._trials[number]
        history = {name: (*known.history.get(name, ()), value) for name, value in metrics.items()}
        trial.set_user_attr("history", history)
        # Last: the epoch counts once its value is there. A driver that dies in between leaves a history
        # that is too long, which reading mends.
        trial.report(metrics[self._metric], step=epoch)
        return self._update(number, values=(*known.values, metrics[self._metric]), history=history)

    def finish(
        self, number: int, state: TrialState, *, checkpoint: str | None, error: str | None = None
    ) -> TrialSummary:
        """Close a trial. An interrupted one stays open in Optuna's eyes, to be resumed."""
        trial, known = self._open.pop(number), self._trials[number]
        trial.set_user_attr("state", state.value)
        # None too: there was none, or the one an interruption had noted is gone now.
        trial.set_user_attr("checkpoint", checkpoint)
        if error is not None:
            trial.set_user_attr("error", error)
        when = None
        if state.is_final:
            value = known.value if state is TrialState.FINISHED else None
            when = self._study.tell(trial, value, state=_OPTUNA_STATE[state]).datetime_complete
        return self._update(number, state=state, checkpoint=checkpoint, error=error, ended=when)

    def is_open(self, number: int) -> bool:
        """Whether this process handed the trial out and has not closed it."""
        return number in self._open

    def set_run_id(self, number: int, run_id: str) -> None:
        """Note which MLflow run shows a trial.

        A run made after its trial ended (the tracking server was away) is noted on the study instead,
        because Optuna lets nobody write to a closed trial.
        """
        if number in self._open:
            self._open[number].set_user_attr("mlflow_run_id", run_id)
        else:
            self._late_run_ids[str(number)] = run_id
            self._study.set_user_attr("mlflow_run_ids", self._late_run_ids)
        self._update(number, mlflow_run_id=run_id)

    def trial(self, number: int) -> TrialSummary:
        """One trial, as written."""
        return self._trials[number]

    def trials(self) -> tuple[TrialSummary, ...]:
        """Every trial that was handed out, by number; rows still in the queue are not trials yet."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    def _update(self, number: int, **changes: Any) -> TrialSummary:
        self._trials[number] = replace(self._trials[number], **changes)
        return self._trials[number]

    def _summary(self, frozen: FrozenTrial) -> TrialSummary:
        attrs = frozen.user_attrs
        values = tuple(value for _, value in sorted(frozen.intermediate_values.items()))
        return TrialSummary(
            number=frozen.number,
            state=TrialState(attrs.get("state", TrialState.RUNNING)),
            parameters=dict(frozen.params),
            metric=self._metric,
            maximize=self.maximize,
            values=values,
            history={name: tuple(series[: len(values)]) for name, series in attrs.get("history", {}).items()},
            started=frozen.datetime_start,
            ended=frozen.datetime_complete,
            mlflow_run_id=attrs.get("mlflow_run_id", self._late_run_ids.get(str(frozen.number))),
            checkpoint=attrs.get("checkpoint"),
            error=attrs.get("error"),
        )


def _handed_out(study: optuna.Study) -> list[FrozenTrial]:
    states = tuple(state for state in OptunaState if state is not OptunaState.WAITING)
    return study.get_trials(deepcopy=False, states=states)


def _storage(url: str) -> optuna.storages.RDBStorage:
    # Imported here: a dry run reads this module and opens no database.
    from sqlalchemy.exc import SQLAlchemyError

    wait = {"connect_args": {"timeout": SQLITE_BUSY_SECONDS}} if url.startswith("sqlite:") else {}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=wait)
    except (ImportError, SQLAlchemyError) as error:
        # The URL itself is not shown: it may hold a password.
        rule = "must be the URL of a database that can be reached"
        got = str(error).partition("\n")[0].strip(" .")
        hint = "For a local file give sqlite:///PATH/study.db."
        raise StorageError(explain(rule, got=got, where="--study", hint=hint)) from None
