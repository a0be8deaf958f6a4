"""What must hold of any search, whatever its rule and its sampler: a test class derives from this one.

::

    class TestMyRule(SearchConformance):
        def begin(self) -> RecordedSearch:
            return MySearch()

Every property is a method ``test_...`` that pytest (or anything else) can run. The searches are simulated, so
all of them together take about a second.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from tune_rescon.config import TrialState
from tune_rescon.testing.landscapes import SyntheticCurve
from tune_rescon.testing.policy import Assignment, SearchPolicy
from tune_rescon.testing.simulation import Simulation, WorkerDeaths, Workload, simulate
from tune_rescon.testing.trainables import Trace
from tune_rescon.tuning import Decision, TrialRecord

__all__ = ["RecordedSearch", "SearchConformance"]


class RecordedSearch(Protocol):
    """A search and its record, which outlives the policies that work on it."""

    def policy(self) -> SearchPolicy:
        """A driver's part: new, or, when the record holds trials already, one that goes on with them."""

    def trials(self) -> Sequence[TrialRecord]:
        """What the record holds, read back from where it is kept."""


class SearchConformance:
    """The properties. :meth:`begin` is the only thing to supply; the figures may be changed."""

    trials: ClassVar[int] = 16
    """Trials of a search that :meth:`begin` makes."""
    epochs: ClassVar[int] = 9
    """Its last epoch."""
    judged_epochs: ClassVar[tuple[int, ...]] = (1, 3)
    """Its rungs below the last epoch; none for a rule that stops nobody."""
    ordinal: ClassVar[bool] = True
    """Whether its rule only compares values. The median rule also takes averages of them."""

    def begin(self) -> RecordedSearch:
        """A new search for the largest ``val_accuracy``; each call the same one, with an empty record."""
        raise NotImplementedError

    def test_every_trial_ends_with_epochs_from_1_without_a_hole(self) -> None:
        """Numbers 0..n-1 each once, at most the last epoch, nothing left running; record and trace agree."""
        for workers in (1, 5):
            search = self.begin()
            self._check(search, simulate(search.policy(), by_number, workers=workers))

    def test_a_value_that_is_not_finite_ends_its_trial(self) -> None:
        """Within the epoch, as diverged, wherever it comes."""
        for epoch in (1, 2, self.epochs):
            search = self.begin()
            trace = simulate(search.policy(), _always(SyntheticCurve(limit=0.9, diverges_at=epoch)))
            bad = [run for run in trace.runs if not math.isfinite(run.value)]
            assert bad, f"of trials that are all the same, some must get as far as epoch {epoch}"
            assert {run.decision for run in bad} == {Decision.DIVERGED}
            assert {search.trials()[run.number].state for run in bad} == {TrialState.DIVERGED}

    def test_an_increasing_transform_of_the_metric_changes_no_decision(self) -> None:
        """Accuracies in per cent, or their cubes, have the same trials stopped."""
        if not self.ordinal:
            return
        plain = simulate(self.begin().policy(), by_number, workers=4)
        cubed = simulate(self.begin().policy(), lambda t: _Cubed(limit=by_number(t).limit), workers=4)
        assert _decisions(plain) == _decisions(cubed)

    def test_the_best_trial_at_a_rung_is_never_stopped(self) -> None:
        """Neither the best so far when it arrives, nor the best of all in the end."""
        trace = simulate(self.begin().policy(), by_number, workers=4)
        for epoch in self.judged_epochs:
            arrived = [run for run in trace.runs if run.epoch == epoch]
            best = arrived[0]
            for run in arrived:
                best = max(best, run, key=lambda run: run.value)
                assert run is not best or run.decision is not Decision.STOP
            assert trace.epochs_of(best.number)[-1] > epoch

    def test_one_at_a_time_an_interrupted_search_is_the_uninterrupted_one(self) -> None:
        """The driver is killed at moments all over the search; configurations and values are the same."""
        whole = self.begin()
        reports = len(simulate(whole.policy(), by_parameters, workers=1).runs)
        for cut in range(1, reports, max(1, reports // 4)):
            search, simulation = self.begin(), Simulation(by_parameters, workers=1)
            simulation.drive(search.policy(), reports=cut)
            simulation.drive(search.policy())
            assert _results(search) == _results(whole), f"killed after {cut} of {reports} reports"

    def test_whatever_dies_nothing_is_lost(self) -> None:
        """Several workers that die, a driver that is killed again and again."""
        for seed in range(3):
            deaths = WorkerDeaths(rate=0.02, seed=seed)
            search, simulation = self.begin(), Simulation(by_number, workers=4, worker_deaths=deaths)
            for reports in (1, 7, 3 + 5 * seed, 20, None):
                simulation.drive(search.policy(), reports=reports)
            self._check(search, simulation.trace)

    def test_a_trial_that_fails_does_not_end_the_search(self) -> None:
        """Its code raises; the others go on."""
        search = self.begin()
        broken = SyntheticCurve(limit=0.9, crashes_at=1)
        simulate(search.policy(), lambda trial: broken if trial.number == 2 else by_number(trial))
        states = [trial.state for trial in search.trials()]
        assert states[2] is TrialState.FAILED
        assert len(states) == self.trials
        assert states.count(TrialState.FAILED) == 1

    def _check(self, search: RecordedSearch, trace: Trace) -> None:
        trials = search.trials()
        assert [trial.number for trial in trials] == list(range(self.trials))
        for trial in trials:
            assert trial.state.is_final, f"trial {trial.number} is {trial.state.value}"
            assert 1 <= trial.epochs <= self.epochs
            assert trace.epochs_of(trial.number) == tuple(range(1, trial.epochs + 1))
            reported = {run.epoch: run.value for run in trace.runs if run.number == trial.number}
            assert all(reported[epoch] == value for epoch, value in enumerate(trial.values, 1))


def by_number(trial: Assignment) -> SyntheticCurve:
    """Curves that do not cross, good and bad in an order without pattern, no two alike."""
    return SyntheticCurve(limit=0.3 + 0.6 * (trial.number * 37 % 101) / 101)


def by_parameters(trial: Assignment) -> SyntheticCurve:
    """The same for the same configuration, whatever its number."""
    text = repr(sorted(trial.parameters.items()))
    return SyntheticCurve(limit=0.3 + 0.6 * zlib.crc32(text.encode()) / 2**32)


def _always(curve: SyntheticCurve) -> Workload:
    return lambda _: curve


class _Cubed(SyntheticCurve):
    def at(self, epoch: int) -> float:
        return super().at(epoch) ** 3


def _decisions(trace: Trace) -> list[tuple[int, int, Decision | None]]:
    return [(run.number, run.epoch, run.decision) for run in trace.runs]


def _results(search: RecordedSearch) -> list[tuple[dict[str, Any], tuple[float, ...], TrialState]]:
    return [(dict(trial.parameters), trial.values, trial.state) for trial in search.trials()]
