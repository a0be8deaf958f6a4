"""Tune's searcher and scheduler as the working thread runs them: each call is a turn.

This is where the thread that may hang in Ray touches what the main thread may take away from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from tune_rescon.tuning.coordination.coordinator import Coordinator
from tune_rescon.tuning.execution.kept_processes import KeptProcesses
from tune_rescon.tuning.execution.scheduler import CoordinatorScheduler
from tune_rescon.tuning.execution.searcher import CoordinatorSearcher
from tune_rescon.tuning.execution.supervision import Turns
from tune_rescon.tuning.execution.trial import TrialTask
from tune_rescon.tuning.record.summary import TrialSummary

__all__ = ["LeavingCallback", "TurnTakingScheduler", "TurnTakingSearcher"]


class TurnTakingSearcher(CoordinatorSearcher):
    """Asks for trials, and closes them, in turn."""

    def __init__(
        self, coordinator: Coordinator, make_task: Callable[[TrialSummary], TrialTask], turns: Turns
    ) -> None:
        """Take ``turns``."""
        super().__init__(coordinator, make_task)
        self._turns = turns

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See :meth:`.CoordinatorSearcher.suggest`."""
        with self._turns.turn():
            return super().suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See :meth:`.CoordinatorSearcher.on_trial_complete`."""
        with self._turns.turn():
            super().on_trial_complete(trial_id, result, error)


class TurnTakingScheduler(CoordinatorScheduler):
    """Judges results in turn."""

    def __init__(self, coordinator: Coordinator, turns: Turns, processes: KeptProcesses) -> None:
        """Take ``turns``. Tune begins each round by asking its scheduler: then ``processes`` are kept."""
        super().__init__(coordinator)
        self._turns = turns
        self._processes = processes

    def choose_trial_to_run(self, tune_controller: object) -> Trial | None:
        """See :meth:`.CoordinatorScheduler.choose_trial_to_run`."""
        with self._turns.turn():
            self._processes.keep(tune_controller)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """See :meth:`.CoordinatorScheduler.on_trial_error`."""
        with self._turns.turn():
            super().on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        """See :meth:`.CoordinatorScheduler.on_trial_result`."""
        with self._turns.turn():
            return super().on_trial_result(tune_controller, trial, result)


class LeavingCallback(tune.Callback):
    """Ends Tune's loop when there are no turns left, also where an epoch takes an hour."""

    def __init__(self, turns: Turns) -> None:
        """Look at ``turns``."""
        self._turns = turns

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its parts for a restore this package does not use."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """About ten times a second."""
        del iteration, trials, info
        self._turns.check()
