"""Properties that hold for every search, whatever its stopping rule and its sampler.

A test class derives from :class:`SearchConformance`::

    class TestMyRule(SearchConformance):
        def begin(self) -> RecordedSearch:
            return MySearch()

Every property is a method ``test_...`` that pytest (or any other runner) can call. The searches are
simulated; all tests together last about a second.
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
    """A search and its record, which survives the policies that work on it."""

    def policy(self) -> SearchPolicy:
        """Return a driver's policy: new, or resuming the search if the record has trials already."""

    def trials(self) -> Sequence[TrialRecord]:
        """Return all trials of the record, read from where it is stored."""


class SearchConformance:
    """The properties. A subclass must define :meth:`begin`, and may change the class attributes."""

    trials: ClassVar[int] = 16
    """Number of trials in a search that :meth:`begin` returns."""
    epochs: ClassVar[int] = 9
    """The last epoch of a trial."""
    judged_epochs: ClassVar[tuple[int, ...]] = (1, 3)
    """The rungs below the last epoch; empty for a rule that never stops a trial."""
    ordinal: ClassVar[bool] = True
    """True if the rule only compares values. The median rule also averages them."""

    def begin(self) -> RecordedSearch:
        """Return a new search that maximizes ``val_accuracy``; equal on each call, with an empty record."""
        raise NotImplementedError

    def test_every_trial_ends_with_consecutive_epochs_from_1(self) -> None:
        """Each number 0..n-1 occurs once, no trial runs past the last epoch, none is left running.

        Record and trace agree.
        """
        for workers in (1, 5):
            search = self.begin()
            self._check(search, simulate(search.policy(), by_number, workers=workers))

    def test_a_value_that_is_not_finite_ends_its_trial(self) -> None:
        """The trial ends within the epoch, as diverged, at whichever epoch the value occurs."""
        for epoch in (1, 2, self.epochs):
            search = self.begin()
            trace = simulate(search.policy(), _always(SyntheticCurve(limit=0.9, diverges_at=epoch)))
            bad = [run for run in trace.runs if not math.isfinite(run.value)]
            assert bad, f"of trials that are all the same, some must get as far as epoch {epoch}"
            assert {run.decision for run in bad} == {Decision.DIVERGED}
            assert {search.trials()[run.number].state for run in bad} == {TrialState.DIVERGED}

    def test_an_increasing_transform_of_the_metric_changes_no_decision(self) -> None:
        """Accuracies in per cent, or their cubes, stop the same trials."""
        if not self.ordinal:
            return
        plain = simulate(self.begin().policy(), by_number, workers=4)
        cubed = simulate(self.begin().policy(), lambda t: _Cubed(limit=by_number(t).limit), workers=4)
        assert _decisions(plain) == _decisions(cubed)

    def test_the_best_trial_at_a_rung_is_never_stopped(self) -> None:
        """Neither the best trial so far when it arrives, nor the best of all trials at the end is stopped."""
        trace = simulate(self.begin().policy(), by_number, workers=4)
        for epoch in self.judged_epochs:
            arrived = [run for run in trace.runs if run.epoch == epoch]
            best = arrived[0]
            for run in arrived:
                best = max(best, run, key=lambda run: run.value)
                assert run is not best or run.decision is not Decision.STOP
            assert trace.epochs_of(best.number)[-1] > epoch

    def test_with_one_worker_an_interrupted_search_equals_an_uninterrupted_one(self) -> None:
        """Kill the driver at moments throughout the search; configurations and values are the same."""
        whole = self.begin()
        reports = len(simulate(whole.policy(), by_parameters, workers=1).runs)
        for cut in range(1, reports, max(1, reports // 4)):
            search, simulation = self.begin(), Simulation(by_parameters, workers=1)
            simulation.drive(search.policy(), reports=cut)
            simulation.drive(search.policy())
            assert _results(search) == _results(whole), f"killed after {cut} of {reports} reports"

    def test_no_trial_or_epoch_is_lost_when_workers_and_the_driver_die(self) -> None:
        """Several workers die, and the driver is killed repeatedly."""
        for seed in range(3):
            deaths = WorkerDeaths(rate=0.02, seed=seed)
            search, simulation = self.begin(), Simulation(by_number, workers=4, worker_deaths=deaths)
            for reports in (1, 7, 3 + 5 * seed, 20, None):
                simulation.drive(search.policy(), reports=reports)
            self._check(search, simulation.trace)

    def test_a_trial_that_fails_does_not_end_the_search(self) -> None:
        """The code of one trial raises; the other trials continue."""
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
    """Return curves that do not cross: good and bad in an order without pattern, no two equal."""
    return SyntheticCurve(limit=0.3 + 0.6 * (trial.number * 37 % 101) / 101)


def by_parameters(trial: Assignment) -> SyntheticCurve:
    """Return the same curve for the same configuration, whatever the trial's number."""
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
