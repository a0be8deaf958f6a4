"""The rule ``auto`` in simulated searches, and the sentences about it in the report and the dry run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.tuning.stopping.test_auto_rule import slow_and_noisy
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import Assignment, SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning.stopping import auto_messages, auto_rule
from tune_rescon.tuning.stopping.auto_messages import plan_messages, planned_epochs, rungs_and_reasons
from tune_rescon.tuning.stopping.first_rung import Agreement, choose_first_rung

pytestmark = pytest.mark.quick


def make_space(*overrides: str) -> Space:
    first = ("initial=[]", "scheduler={type: auto}", "sampler={type: random, seed: 3}")
    return load_space("att92", [*first, *overrides])


def test_a_search_of_hours_uses_them_on_every_worker() -> None:
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.5 + trial.number / 1e4), workers=4)
    hours = make_space("budget={trials: 1000, hours: 0.02}", "fidelity={min: 1, max: 20}")
    policy = SimulatedSearch(hours, clock=simulation.clock, slots=4).policy()
    simulation.drive(policy)
    assert simulation.trace.seconds == pytest.approx(72, abs=2)
    assert simulation.trace.utilisation > 0.97


def test_paused_trials_get_the_rest_of_the_budget_of_an_exhausted_space() -> None:
    small = make_space(
        "budget={trials: 500, epochs: 400}",
        "fidelity={min: 1, max: 27}",
        "parameters={depth: {type: categorical, choices: [56, 92]},"
        " batch_size: {type: categorical, choices: [32, 64, 128, 256]}}",
        "fixed={layout: cifar}",
    )
    search = SimulatedSearch(small)
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.5 + trial.number / 100), workers=2)
    policy = search.policy()
    simulation.drive(policy)
    trials = search.trials()
    assert policy.space_is_exhausted
    assert len(trials) == 8
    assert sum(trial.epochs == 27 for trial in trials) >= 2
    assert all(trial.state.is_final for trial in trials)


def test_a_search_of_one_trial_finishes_it() -> None:
    for budget in ("budget={trials: 1}", "budget={trials: 1, epochs: 500}", "budget={trials: 2}"):
        search = SimulatedSearch(make_space(budget, "fidelity={min: 1, max: 9}"))
        Simulation(lambda _: SyntheticCurve(limit=0.5), workers=2).drive(search.policy())
        assert search.trials()[0].epochs == 9


BUDGETS = (
    "budget={trials: 9}",
    "budget={trials: 40, epochs: 150}",
    "budget={trials: 40, epochs: 40}",
    "budget={trials: 60, hours: 0.02}",
    "budget={trials: 12, hours: 0.05}",
)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("seed", range(3))
def test_a_search_of_arbitrary_trials_ends_and_leaves_none_open(budget: str, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def workload(trial: Assignment) -> SyntheticCurve:
        draw = np.random.default_rng((seed, trial.number))
        return SyntheticCurve(
            limit=float(draw.uniform(0.2, 0.9)),
            noise=0.02,
            noise_key=(seed, trial.number),
            diverges_at=int(draw.integers(1, 12)) if draw.random() < 0.2 else 0,
            crashes_at=int(draw.integers(1, 12)) if draw.random() < 0.2 else 0,
            epoch_seconds=float(draw.uniform(0.3, 3.0)),
        )

    workers = int(rng.integers(1, 6))
    simulation = Simulation(workload, workers=workers)
    space = make_space(budget, f"fidelity={{min: {rng.integers(1, 3)}, max: {rng.integers(3, 30)}}}")
    search = SimulatedSearch(space, clock=simulation.clock, slots=workers)
    for reports in (int(rng.integers(1, 20)), int(rng.integers(1, 60))):
        simulation.drive(search.policy(), reports=reports)
    policy = search.policy()
    simulation.drive(policy)
    policy.interrupt_remaining()
    trials = search.trials()
    assert trials
    # Five failures in a row end a search early. Its paused trials stay paused for a resume.
    assert policy.failure or all(trial.state.is_final for trial in trials)
    if space.budget.hours is None and space.budget.epochs is None and not policy.failure:
        assert len(trials) == space.budget.trials
    if space.budget.epochs is not None:
        epochs = sum(trial.epochs for trial in trials)
        assert epochs <= space.budget.epochs + space.fidelity.max


def test_the_report_explains_the_chosen_rungs() -> None:
    space = make_space("budget={trials: 1000, epochs: 400}", "fidelity={min: 1, max: 27}")
    search = SimulatedSearch(space, slots=4)
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.3 + trial.number / 500), workers=4)
    simulation.drive(search.policy())
    rungs, lines = rungs_and_reasons(space, search.trials(), slots=4)
    assert lines[0].startswith("First rung: epoch 1, chosen by 1")
    assert lines[0].endswith("Rungs: 1, 5, 27.")
    correlation = "the values there have a rank correlation of 1.00 with those at epoch 2"
    assert lines[1] == f"Epoch 1 is a rung: {correlation}."
    assert rungs == (1, 5, 27)


class SlowAndNoisyCurve(SyntheticCurve):
    """``slow_and_noisy`` for the trial whose number is the noise key."""

    def at(self, epoch: int) -> float:
        return slow_and_noisy(self.noise_key[0], epoch)


def test_the_report_and_the_plan_say_that_an_unconfirmed_rung_gets_less_screening() -> None:
    space = make_space("budget={trials: 1000, epochs: 1500}", "fidelity={min: 1, max: 50}")
    search = SimulatedSearch(space, slots=4)
    simulation = Simulation(lambda trial: SlowAndNoisyCurve(limit=1, noise_key=(trial.number,)), workers=4)
    simulation.drive(search.policy(), reports=400)
    _, lines = rungs_and_reasons(space, search.trials(), slots=4)
    assert lines[-1] == (
        "No later ranks confirm those at epoch 9: new trials get 20% of the budget instead of 45%,"
        " and more trials finish."
    )
    assert "if only the latest of them can judge, new trials get 20%" in next(plan_messages(space))
    assert "can judge" not in next(plan_messages(make_space("budget={trials: 60}")))


class NoiseCurve(SyntheticCurve):
    """A curve of noise, for which no rung is informative."""

    def at(self, epoch: int) -> float:
        return 0.5 + 0.01 * float(np.random.default_rng((self.noise_key[0], epoch)).normal())


def test_the_report_says_that_no_rung_judges_and_which_trials_pause() -> None:
    space = make_space("budget={trials: 1000, epochs: 1500}", "fidelity={min: 1, max: 50}")
    search = SimulatedSearch(space, slots=4)
    simulation = Simulation(lambda trial: NoiseCurve(limit=1, noise_key=(trial.number,)), workers=4)
    simulation.drive(search.policy(), reports=200)
    rungs, (line,) = rungs_and_reasons(space, search.trials(), slots=4)
    assert rungs == (50,)
    assert line == (
        "No epoch before the last one is a rung, because up to epoch 9, the ranks of 8 trials that no rung"
        " had judged change from epoch to epoch. Every trial trains to the end; only one whose value has"
        " never changed pauses."
    )


def test_the_report_says_that_a_small_budget_learns_no_rung() -> None:
    small = make_space("budget={trials: 6}", "fidelity={min: 1, max: 9}")
    rungs, lines = rungs_and_reasons(small, (), slots=2)
    assert rungs == (1, 3, 9)
    assert lines == ("Rungs: 1, 3, 9. The budget is too small to learn another first rung.",)


def test_the_report_and_the_plan_say_that_slots_stay_idle() -> None:
    short = make_space("budget={trials: 100, epochs: 54, concurrent: 8}", "fidelity={min: 1, max: 27}")
    _, lines = rungs_and_reasons(short, (), slots=8)
    assert lines[-1].startswith("After the first trials, at most 2 trials at once: ")
    assert any("at most 2 trials at once" in line for line in plan_messages(short))


def test_the_report_says_how_many_epochs_fit_into_the_hours() -> None:
    space = make_space("budget={trials: 1000, hours: 0.002}", "fidelity={min: 1, max: 27}")
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.3 + trial.number / 500), workers=4)
    search = SimulatedSearch(space, clock=simulation.clock, slots=4)
    simulation.drive(search.policy())
    _, lines = rungs_and_reasons(space, search.trials(), slots=4)
    assert lines[-1].startswith("The hours allow about 7 of 27 epochs on each slot, ")


def test_other_schedulers_have_no_explanation_in_the_report() -> None:
    asha = make_space("scheduler={type: asha}", "fidelity={min: 1, max: 9}")
    assert rungs_and_reasons(asha, (), slots=2) == ((1, 3, 9), ())


def test_the_plan_counts_what_starts_and_finishes() -> None:
    first, first_rung_plan, reversed_ranks_plan = plan_messages(
        make_space("budget={trials: 60}", "fidelity={min: 1, max: 27}")
    )
    assert "45% of the budget goes to new trials" in first
    assert first_rung_plan.startswith("auto, if epoch 1 ranks the trials as the last epoch does: 60 trials, ")
    assert reversed_ranks_plan.startswith("auto, if early epochs rank them in reverse: 60 trials, ")
    _, late_rung_plan, _ = plan_messages(make_space("budget={trials: 60}", "fidelity={min: 2, max: 54}"))
    assert late_rung_plan.startswith("auto, if epoch 2 ranks the trials as the last epoch does: 60 trials, ")
    first, hours = plan_messages(make_space("budget={trials: 60, hours: 2}"))
    assert hours.startswith("auto: 2 hours on each slot")


def test_one_trial_and_one_epoch_are_in_the_singular() -> None:
    one_trial = make_space("budget={trials: 1, epochs: 1, concurrent: 4}", "fidelity={min: 1, max: 1}")
    text = "\n".join(plan_messages(one_trial))
    assert "at most 1 trial at once: the budget of epochs allows 1 full training," in text
    assert text.endswith("as the last epoch does: 1 trial, 1 finished and 0 stopped, 1 epoch in all")
    assert list(plan_messages(make_space("budget={trials: 9, hours: 1}")))[-1].startswith(
        "auto: 1 hour on each slot"
    )
    _, lines = rungs_and_reasons(one_trial, (), slots=4)
    assert lines[0] == "Rung: 1. The budget is too small to learn another first rung."


@pytest.mark.parametrize(
    "settings",
    [
        ("budget={trials: 60}", "fidelity={min: 1, max: 27}"),
        ("budget={trials: 20, concurrent: 3}", "fidelity={min: 2, max: 150}"),
        ("budget={trials: 100, epochs: 900, concurrent: 12}", "fidelity={min: 1, max: 81}"),
        ("budget={trials: 9, epochs: 54}", "fidelity={min: 1, max: 27}"),
        ("budget={trials: 1}", "fidelity={min: 1, max: 9}"),
    ],
)
def test_a_plan_that_skips_epochs_equals_one_that_judges_each(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space(*settings)
    skipping = (*plan_messages(space), planned_epochs(space))
    monkeypatch.setattr(auto_messages, "_next_decision", lambda _, epoch: epoch + 1)
    assert (*plan_messages(space), planned_epochs(space)) == skipping


def test_a_plan_of_thousands_of_epochs_takes_no_longer_than_a_dry_run_may() -> None:
    began = time.process_time()
    lines = list(plan_messages(make_space("budget={trials: 128}", "fidelity={min: 1, max: 5000}")))
    assert time.process_time() - began < 5
    assert len(lines) == 3


def test_later_epochs_of_the_first_trials_do_not_choose_the_first_rung_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each choice compares the values of all these trials at all epochs up to the latest candidate."""
    chosen: list[int] = []

    def choose(curves: Sequence[Sequence[float]], *arguments: Any, **options: Any) -> Agreement:
        chosen.append(len(curves))
        return choose_first_rung(curves, *arguments, **options)

    monkeypatch.setattr(auto_rule, "choose_first_rung", choose)
    space = make_space("budget={trials: 40}", "fidelity={min: 1, max: 81}")
    search = SimulatedSearch(space, slots=4)
    Simulation(lambda trial: SyntheticCurve(limit=0.3 + trial.number / 500), workers=4).drive(search.policy())
    assert chosen == sorted(set(chosen)), "only if another trial has reached the latest candidate"
