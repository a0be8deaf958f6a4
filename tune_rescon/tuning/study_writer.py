"""How the record's lines get into an Optuna study: one call for each thing that happens to a trial.

:class:`StudyWriter` works on any Optuna storage by its public calls; simulations run on Optuna's in-memory
one. On a database it is :class:`.SqlLedger`, which makes each of these calls a single transaction.

Optuna's user attributes hold what people look at (the contract's ``state``, ``mlflow_run_id`` and
``checkpoint``); its system attributes what only this package and the samplers read.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

__all__ = [
    "StudyWriter",
]


class StudyWriter:
    """The lines of one study."""

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        """Write to the study ``study_id`` of ``storage``."""
        self._storage = storage
        self._study_id = study_id

    def trials(self) -> list[FrozenTrial]:
        """Every trial, by number."""
        return sorted(self._storage.get_all_trials(self._study_id, deepcopy=False), key=lambda t: t.number)

    def study_attributes(self) -> dict[str, Any]:
        """The study's user attributes."""
        return self._storage.get_study_user_attrs(self._study_id)

    def set_study_attribute(self, key: str, value: Any) -> None:
        """Write one of the study's user attributes."""
        self._storage.set_study_user_attr(self._study_id, key, value)

    def open_trial(
        self,
        number: int,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        *,
        user: Mapping[str, Any],
        system: Mapping[str, Any],
        waiting_id: int | None = None,
    ) -> tuple[int, int, datetime.datetime]:
        """Add a running trial with all that is known of it; its id in the storage, its number, and its start.

        Args:
            number: the next one, unless another program has added trials to the study meanwhile.
            params: the values of its parameters.
            distributions: what they were drawn from.
            user: user attributes.
            system: system attributes.
            waiting_id: an enqueued trial that becomes this one, unless another program has taken it.
        """
        if waiting_id is not None and self._start_waiting(waiting_id, params, distributions):
            for key, value in user.items():
                self._storage.set_trial_user_attr(waiting_id, key, value)
            for key, value in system.items():
                self._storage.set_trial_system_attr(waiting_id, key, value)
            return self._opened(waiting_id)
        del number  # Optuna's storages count by themselves.
        template = create_trial(
            state=OptunaState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=dict(user),
            system_attrs=dict(system),
        )
        trial_id = self._storage.create_new_trial(self._study_id, template_trial=template)
        return self._opened(trial_id)

    def _start_waiting(
        self, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> bool:
        if not self._storage.set_trial_state_values(trial_id, OptunaState.RUNNING):
            return False
        for name, value in params.items():
            internal = distributions[name].to_internal_repr(value)
            self._storage.set_trial_param(trial_id, name, internal, distributions[name])
        return True

    def _opened(self, trial_id: int) -> tuple[int, int, datetime.datetime]:
        trial = self._storage.get_trial(trial_id)
        assert trial.datetime_start is not None
        return trial_id, trial.number, trial.datetime_start

    def add_epoch(self, trial_id: int, epoch: int, value: float, key: str, details: Any) -> None:
        """Write an epoch: ``value`` as intermediate value (step = epoch), ``details`` under ``key``."""
        self._storage.set_trial_system_attr(trial_id, key, details)
        # Last: the epoch counts once its value is there.
        self._storage.set_trial_intermediate_value(trial_id, epoch, value)

    def annotate(self, trial_id: int, user: Mapping[str, Any]) -> None:
        """Write user attributes. Of a closed trial, only a database takes them."""
        if self._storage.get_trial(trial_id).state.is_finished():
            return
        for key, value in user.items():
            self._storage.set_trial_user_attr(trial_id, key, value)

    def close_trial(
        self, trial_id: int, state: OptunaState, values: Sequence[float] | None, user: Mapping[str, Any]
    ) -> datetime.datetime:
        """End a trial for good; when that was."""
        self.annotate(trial_id, user)
        self._storage.set_trial_state_values(trial_id, state, values)
        ended = self._storage.get_trial(trial_id).datetime_complete
        assert ended is not None
        return ended
