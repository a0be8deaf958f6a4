"""The conformance suite passes for our rules and samplers and fails for faulty ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pytest

from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import SearchConformance, SimulatedSearch, simulate
from tune_rescon.testing.conformance import by_number
from tune_rescon.tuning import Decision, Observation, StoppingRule, SuccessiveHalving, Verdict

SMALL = ("initial=[]", "budget.trials=16", "fidelity={min: 1, max: 9}", "sampler={type: random, seed: 3}")


@lru_cache
def space(*overrides: str) -> Space:
    return load_space("att92", [*SMALL, *overrides])


@pytest.fixture(scope="module", autouse=True)
def _samplers() -> None:
    """Load Optuna's samplers, which are imported on first use, outside of the tests' time limits."""
    for create_search in (TestTpe().begin, TestCmaes().begin):
        simulate(create_search().policy(), by_number)


class TestAshaStop(SearchConformance):
    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space())


class TestAshaPromote(SearchConformance):
    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space("scheduler.variant=promote"))


class TestAuto(SearchConformance):
    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space("scheduler={type: auto}"))


class TestAutoEpochs(SearchConformance):
    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space("scheduler={type: auto}", "budget={trials: 16, epochs: 400}"))


class TestAutoFewEpochs(SearchConformance):
    """The budget is so small that workers stay idle."""

    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space("scheduler={type: auto}", "budget={trials: 16, epochs: 60}"))


class TestMedian(SearchConformance):
    ordinal = False

    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space("scheduler={type: median}"))


class TestNone(SearchConformance):
    rung_epochs = ()

    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space("scheduler={type: none}"))


class TestTpe(SearchConformance):
    trials = 12

    def begin(self) -> SimulatedSearch:
        return SimulatedSearch(space("sampler={type: tpe, seed: 3, n_startup_trials: 5}", "budget.trials=12"))


class TestCmaes(SearchConformance):
    def begin(self) -> SimulatedSearch:
        numbers = (
            "parameters={learning_rate: {type: float, low: 0.01, high: 1.0, log: true},"
            " weight_decay: {type: float, low: 0.0, high: 0.1}}"
        )
        return SimulatedSearch(space(numbers, "sampler={type: cmaes, seed: 3, n_startup_trials: 4}"))


FaultyDecision = Callable[[Observation, Verdict], Decision]


@dataclass(kw_only=True)
class FaultyRule(SuccessiveHalving):
    """ASHA with a mistake in its decisions."""

    decide: FaultyDecision

    def judge(self, seen: Observation) -> Verdict:
        return Verdict(decision=self.decide(seen, super().judge(seen)))


def keeps_nan(seen: Observation, verdict: Verdict) -> Decision:
    return verdict.decision if math.isfinite(seen.value) or seen.epoch == 9 else Decision.CONTINUE


def stops_the_best(seen: Observation, verdict: Verdict) -> Decision:
    return Decision.STOP if seen.epoch == 3 and verdict.rank == 1 else verdict.decision


def uses_the_value(seen: Observation, verdict: Verdict) -> Decision:
    return Decision.STOP if seen.value < 0.2 else verdict.decision


@pytest.mark.parametrize(
    ("decide", "failing_test"),
    [
        (keeps_nan, "test_a_value_that_is_not_finite_ends_its_trial"),
        (stops_the_best, "test_the_best_trial_at_a_rung_is_never_stopped"),
        (uses_the_value, "test_an_increasing_transform_of_the_metric_changes_no_decision"),
    ],
)
def test_a_faulty_rule_is_caught(decide: FaultyDecision, failing_test: str) -> None:
    def rule() -> StoppingRule:
        return FaultyRule(rungs=(1, 3, 9), reduction_factor=3, maximize=True, decide=decide)

    class Suite(SearchConformance):
        def begin(self) -> SimulatedSearch:
            return SimulatedSearch(space(), rule=rule)

    with pytest.raises(AssertionError):
        getattr(Suite(), failing_test)()
