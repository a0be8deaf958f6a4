"""Writes the record to an Optuna study, with one method for each event of a trial.

:class:`StudyWriter` works on any Optuna storage through its public methods; simulations use Optuna's
in-memory storage. On a database, :class:`.SqlStudyWriter` makes each write a single transaction.

Optuna's user attributes hold the values that users read (the contract's ``state``, ``mlflow_run_id`` and
``checkpoint``). Its system attributes hold the values that only this package and the samplers read.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

__all__ = ["StudyWriter"]


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
        """Write user attributes. Those of a closed trial are written only on a database."""
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
