"""Tune's controller in small, with Tune's own searchers and schedulers: what plain Ray Tune does."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState as OptunaState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune_rescon.testing import Assignment, SyntheticCurve, TunePolicy, simulate
from tune_rescon.tuning import Decision

EPOCHS = 9


class RecordingSearcher(Searcher):
    """Suggests ``answers`` and then x = 0, 1, 2, ..., and records its calls."""

    def __init__(self, *, suggestions: list[Any] | None = None) -> None:
        super().__init__(metric="val_accuracy", mode="max")
        self.suggestions = suggestions or []
        self.calls: list[str] = []
        self._count = -1

    def suggest(self, trial_id: str) -> Any:
        self.calls.append(f"suggest {trial_id}")
        self._count += 1
        return self.suggestions.pop(0) if self.suggestions else {"x": self._count}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.calls.append(f"result {trial_id} {result['training_iteration']}")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.calls.append(f"complete {trial_id} {result['training_iteration'] if result else error}")

    # Searcher requires both methods. A simulation must not call them.
    def save(self, checkpoint_path: str) -> None:
        raise AssertionError(f"a simulated searcher is not saved, but was to {checkpoint_path}")

    def restore(self, checkpoint_path: str) -> None:
        raise AssertionError(f"a simulated searcher is not restored, but was from {checkpoint_path}")


class StopAt(FIFOScheduler):
    """Stops every trial at the given epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epoch = epoch

    def on_trial_result(self, tune_controller: object, trial: object, result: dict[str, Any]) -> str:
        del tune_controller, trial
        stops = result["training_iteration"] >= self._epoch
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)


def rising(trial: Assignment) -> SyntheticCurve:
    return SyntheticCurve(limit=0.5 + 0.04 * trial.number)


def test_the_searcher_gets_the_last_result_only_on_completion() -> None:
    searcher = RecordingSearcher()
    simulate(TunePolicy(searcher, StopAt(2), num_samples=1), rising)
    assert searcher.calls == ["suggest 00000000", "result 00000000 1", "complete 00000000 2"]


def test_trials_are_requested_until_the_searcher_is_finished() -> None:
    searcher = RecordingSearcher(suggestions=[{"x": 1}, Searcher.FINISHED])
    policy = TunePolicy(searcher, StopAt(1))
    trace = simulate(policy, rising, workers=1)
    assert policy.no_more_trials
    assert trace.epochs_spent == 1


def test_a_searcher_without_a_suggestion_is_asked_again() -> None:
    policy = TunePolicy(RecordingSearcher(suggestions=[None, {"x": 1}]), StopAt(1))
    assert policy.next_trial() is None
    assert not policy.no_more_trials
    assert policy.next_trial() is not None


def test_an_error_is_passed_to_the_searcher() -> None:
    searcher = RecordingSearcher()
    policy = TunePolicy(searcher, StopAt(9), num_samples=1)
    simulate(policy, lambda _: SyntheticCurve(limit=0.9, crashes_at=2))
    assert searcher.calls[-1] == "complete 00000000 True"


def rising_with_x(trial: Assignment) -> SyntheticCurve:
    return SyntheticCurve(limit=0.5 + 0.4 * trial.parameters["x"])


def tune_with_asha(*, trials: int) -> tuple[TunePolicy, OptunaSearch]:
    """Ray's own searcher and scheduler, configured as in its documentation."""
    searcher = OptunaSearch(
        {"x": optuna.distributions.FloatDistribution(0.0, 1.0)},
        metric="val_accuracy",
        mode="max",
        sampler=optuna.samplers.RandomSampler(seed=0),
        study_name="plain",
    )
    scheduler = ASHAScheduler(metric="val_accuracy", mode="max", max_t=EPOCHS, reduction_factor=3)
    return TunePolicy(searcher, scheduler, num_samples=trials), searcher


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
def test_plain_asha_trains_a_diverged_trial_to_its_last_epoch() -> None:
    policy, _ = tune_with_asha(trials=2)
    trace = simulate(policy, lambda _: SyntheticCurve(limit=0.9, diverges_at=2), workers=1)
    assert trace.epochs_of(0) == tuple(range(1, EPOCHS + 1))
    assert math.isnan(trace.runs[-1].value)


def test_plain_optuna_search_calls_a_stopped_trial_complete() -> None:
    policy, searcher = tune_with_asha(trials=30)
    trace = simulate(policy, rising_with_x)
    stopped = [run for run in trace.runs if run.decision is Decision.STOP and run.epoch < EPOCHS]
    assert stopped
    states = {trial.number: trial.state for trial in searcher._ot_study.trials}
    assert {states[run.number] for run in stopped} == {OptunaState.COMPLETE}
