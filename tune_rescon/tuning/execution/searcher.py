"""Ray Tune's searcher: asks the coordinator for trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from tune_rescon.config import TrialState
from tune_rescon.tuning.coordination.coordinator import Coordinator
from tune_rescon.tuning.execution.trial import TrialTask
from tune_rescon.tuning.record.summary import TrialSummary

__all__ = ["CoordinatorSearcher"]


class CoordinatorSearcher(Searcher):
    """Hands the coordinator's trials to Tune.

    Results and deaths do not pass through here: Tune shows a searcher neither the result that stops a trial
    nor the node it ran on, so the scheduler takes them all. Tune's saving of searcher state is switched off
    by leaving it empty: the record is the state.
    """

    def __init__(self, coordinator: Coordinator, make_task: Callable[[TrialSummary], TrialTask]) -> None:
        """Wrap ``coordinator``; ``make_task`` says what a worker is told about a trial."""
        super().__init__()
        self._coordinator = coordinator
        self._make_task = make_task
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Tune pickles its parts for a restore this package does not use."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Tune's config of the next trial; Tune's word that there is none, or None to be asked again."""
        trial = self._coordinator.next_trial()
        if trial is None:
            return str(Searcher.FINISHED) if self._coordinator.exhausted else None
        self._numbers[trial_id] = trial.number
        return self._make_task(trial).to_dict()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close a trial whose function ended before its last epoch."""
        del result
        if not error:
            self._coordinator.close(self._numbers[trial_id], TrialState.FAILED, error="training ended early")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: resuming reads the record."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the record is the state."""
