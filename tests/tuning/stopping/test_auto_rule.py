"""The rule ``auto`` as arithmetic: shares of the budget, the first rung, and the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import Assignment, SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning.budget import SCREENING, BudgetPlan, stage_shares
from tune_rescon.tuning.stopping.auto_rule import CLOSING, AutoRule
from tune_rescon.tuning.stopping.auto_words import plan_words, rungs_and_reasons
from tune_rescon.tuning.stopping.first_rung import PILOTS
from tune_rescon.tuning.stopping.rule import Decision, Observation
from tune_rescon.tuning.stopping.trial_table import TrialTable

pytestmark = pytest.mark.quick


def rule(
    *,
    low: int = 1,
    last: int = 50,
    trials: int = 1000,
    epochs: int | None = 500,
    seconds: float | None = None,
) -> AutoRule:
    plan = BudgetPlan(trials=trials, epochs=epochs, seconds=seconds, slots=4)
    return AutoRule(low=low, last=last, maximize=True, budget=plan)


def observation(
    number: int, epoch: int, value: float, *, tie: float = math.inf, seconds: float = 1.0
) -> Observation:
    return Observation(number=number, epoch=epoch, value=value, tie=tie, seconds=seconds)


Values = Callable[[int, int], float]


def by_number(number: float, epoch: int) -> float:
    """A metric by which later trials are better, from the first epoch on."""
    return number + epoch / 1000


def run_search(auto_rule: AutoRule, values: Values, *, slots: int = 4) -> Iterator[tuple[int, int]]:
    """Run a search on slots of equal speed; yield each epoch as (trial, epoch)."""
    running: list[list[int]] = []
    next_number = 0
    epochs_of: dict[int, int] = {}
    while True:
        while len(running) < slots:
            promoted = auto_rule.promote()
            if promoted is not None:
                auto_rule.started(promoted)
                running.append([promoted, epochs_of[promoted]])
            elif auto_rule.may_start():
                auto_rule.started(next_number)
                running.append([next_number, 0])
                next_number += 1
            else:
                break
        if not running:
            return
        current = running.pop(0)
        current[1] += 1
        epochs_of[current[0]] = current[1]
        decision = auto_rule.judge(
            observation(current[0], current[1], values(current[0], current[1]))
        ).decision
        yield current[0], current[1]
        if decision is Decision.CONTINUE:
            running.append(current)
        else:
            assert decision in (Decision.PAUSE, Decision.FINISH, Decision.DIVERGED)


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_the_shares_are_the_whole_budget(stages: int) -> None:
    shares = stage_shares(stages)
    assert len(shares) == stages
    assert sum(shares) == pytest.approx(1.0)
    assert stages == 1 or shares[0] == SCREENING


def test_an_informative_epoch_1_is_the_first_rung() -> None:
    of = rule()
    list(run_search(of, by_number))
    assert of.levels[0] == 1
    assert of.agreement is not None
    assert of.agreement.correlations[1] == pytest.approx(1.0)


def test_epochs_with_reversed_ranks_are_not_the_first_rung() -> None:
    def crossing(number: int, epoch: int) -> float:
        return number * (epoch - 2.5)

    of = rule(epochs=1500)
    list(run_search(of, crossing))
    assert of.agreement is not None
    assert of.agreement.correlations[2] == pytest.approx(-1.0)
    assert of.levels[0] == 3


def slow_and_noisy(number: int, epoch: int) -> float:
    """The ranks are reversed after epoch 2; those of later epochs correlate by about 0.6."""
    merit = (number * 7919 % 1009 - 504) / 290
    noise = float(np.random.default_rng((number, epoch)).normal())
    return -merit if epoch <= 2 else merit + 0.8 * noise


def test_more_trials_finish_if_the_first_rung_is_unconfirmed() -> None:
    def steady(number: int, epoch: int) -> float:
        return number * 7919 % 1009 + epoch / 1000

    finished: dict[Values, int] = {}
    for values in (slow_and_noisy, steady):
        of = rule(epochs=1500)
        epochs_run = list(run_search(of, values))
        assert of.is_unconfirmed == (values is slow_and_noisy)
        finished[values] = sum(epoch == 50 for _, epoch in epochs_run)
    assert finished[slow_and_noisy] >= 25
    assert finished[steady] < 20


def test_with_a_budget_of_trials_unconfirmed_ranks_do_not_change_the_shares() -> None:
    of = rule(trials=120, epochs=None)
    epochs_run = list(run_search(of, slow_and_noisy))
    assert of.agreement is not None
    assert not of.agreement.is_confirmed
    assert not of.is_unconfirmed
    assert {number for number, _ in epochs_run} == set(range(120))


@pytest.mark.parametrize(("rank", "continues"), [(1, True), (2, True), (3, False), (6, False)])
def test_only_a_trial_with_a_good_rank_is_promoted_to_a_later_stage(rank: int, continues: bool) -> None:
    of = rule(low=4)
    assert of.levels == (4, 14, 50)
    for number in range(12):
        for epoch in range(1, 15 if number < 8 else 5):
            of.replay(observation(number, epoch, -float(number)))
        of.ended(number)
    of.pause_again(rank - 1)
    assert (of.promote(), of.may_start()) == ((rank - 1, False) if continues else (None, True))


def test_noisy_early_values_leave_only_the_last_rung() -> None:
    def noise(number: int, epoch: int) -> float:
        return float(np.random.default_rng((number, epoch)).normal())

    of = rule(epochs=1000)
    reached = dict(run_search(of, noise))
    assert of.agreement is not None
    assert of.agreement.tells_nothing
    assert of.levels == (50,)
    assert sum(epoch == 50 for epoch in reached.values()) >= 16


@pytest.mark.parametrize("hours", [False, True])
def test_without_early_rungs_trials_with_constant_values_are_paused(hours: bool) -> None:
    def half_constant(number: int, epoch: int) -> float:
        return 0.1 if number % 2 else float(np.random.default_rng((number, epoch)).normal())

    of = rule(epochs=None, seconds=500.0) if hours else rule(epochs=1000)
    reached: dict[int, int] = {}
    for number, epoch in run_search(of, half_constant):
        reached[number] = epoch
        if sum(reached.values()) >= 900:
            break
    assert of.judges_none
    unchanged = {number for number, epoch in reached.items() if number % 2 and epoch > (of.latest or 0)}
    assert not unchanged
    assert sum(epoch == 50 for epoch in reached.values()) >= 10
    assert set(of.paused()) >= {1, 3, 5, 7}


def test_without_early_rungs_the_furthest_trials_continue_first() -> None:
    def noise(number: int, epoch: int) -> float:
        return float(np.random.default_rng((number, epoch)).normal())

    of = rule(epochs=1000)
    reached: dict[int, int] = {}
    gave_way = set()
    for number, epoch in run_search(of, noise):
        reached[number] = epoch
        paused = of.paused()
        if of.judges_none and number >= PILOTS and number % 6 != 1:  # not a probe
            assert number in paused or epoch >= max((reached[n] for n in paused), default=0)
            gave_way |= {number} & set(paused)
    assert gave_way


def test_a_budget_of_epochs_is_spent_and_not_overspent() -> None:
    epochs_run = list(run_search(rule(), by_number))
    assert 500 - 50 <= len(epochs_run) <= 500 + 4 * 50


def test_several_trials_are_finished_and_most_are_not() -> None:
    epochs_run = list(run_search(rule(), by_number))
    finished = {number for number, epoch in epochs_run if epoch == 50}
    assert 2 <= len(finished) <= 6
    assert len({number for number, _ in epochs_run}) > 60


def test_the_best_at_a_rung_continues_at_once_despite_a_full_next_stage() -> None:
    # With so small a budget no rung is chosen: epoch 1 is used.
    of = rule(epochs=70)
    for number in range(10):
        of.started(number)
        of.judge(observation(number, 1, -float(number)))
    while (promoted := of.promote()) is not None:
        of.started(promoted)
    of.started(10)
    assert of.judge(observation(10, 1, -0.5)).decision is Decision.PAUSE
    of.started(11)
    assert of.judge(observation(11, 1, 1.0)).decision is Decision.CONTINUE


def started_at_once(auto_rule: AutoRule, *, slots: int) -> int:
    """Start trials on free slots until none may start; return their number."""
    for number in range(slots):
        if not auto_rule.may_start():
            return number
        auto_rule.started(number)
    return slots


def test_an_epoch_budget_limits_the_number_of_concurrent_trials() -> None:
    assert started_at_once(rule(epochs=600), slots=32) == 12
    assert started_at_once(rule(epochs=50), slots=32) == PILOTS
    assert started_at_once(rule(epochs=None, seconds=600.0), slots=32) == 32


def test_slow_first_trials_do_not_delay_promotions() -> None:
    of = rule(epochs=None, seconds=1000.0)
    for number in range(PILOTS + 12):
        of.started(number)
    decisions = {
        of.judge(observation(number, 1, by_number(number, 1))).decision
        for number in range(PILOTS, PILOTS + 12)
    }
    assert of.latest is None
    assert decisions == {Decision.PAUSE, Decision.CONTINUE}


def test_where_few_epochs_fit_into_the_hours_the_rungs_are_within_them() -> None:
    few_trials, many_trials = (
        rule(last=140, epochs=None, seconds=30.0),
        rule(last=140, epochs=None, seconds=3000.0),
    )
    for of in (few_trials, many_trials):
        for number in range(PILOTS):
            of.started(number)
            of.judge(observation(number, 1, by_number(number, 1)))
    assert (few_trials.reach, many_trials.reach) == (30, 140)
    assert few_trials.levels[-2] < many_trials.levels[-2]
    assert few_trials.levels[-2] < 30
    assert few_trials.latest is not None
    assert few_trials.latest <= 3


def test_a_budget_of_trials_starts_them_all_and_finishes_three() -> None:
    epochs_run = list(run_search(rule(trials=40, epochs=None), by_number))
    assert {number for number, _ in epochs_run} == set(range(40))
    assert len({number for number, epoch in epochs_run if epoch == 50}) >= 3


def test_every_epoch_of_a_trial_comes_once_and_in_order() -> None:
    of: dict[int, list[int]] = {}
    for number, epoch in run_search(rule(), by_number):
        of.setdefault(number, []).append(epoch)
    assert all(epochs == list(range(1, len(epochs) + 1)) for epochs in of.values())


def test_the_first_trials_are_not_judged_before_the_latest_candidate() -> None:
    of = rule()
    assert of.levels[0] > 1
    reached = dict.fromkeys(range(PILOTS), 0)
    for number, epoch in run_search(of, lambda number, epoch: -by_number(number, epoch)):
        if number in reached:
            reached[number] = epoch
    assert of.agreement is not None
    assert min(reached.values()) >= of.agreement.latest


def test_ties_are_broken_by_the_smaller_loss_and_then_by_age() -> None:
    table = TrialTable(9)
    for number in range(12):
        table.add(observation(number, 1, 0.1, tie=1.0 if number == 7 else 2.3), maximize=True, timed=False)
    numbers = np.arange(12)
    assert table.best(numbers, 1) == 7
    assert table.best(numbers[numbers != 7], 1) == 0
    assert [table.rank(number, 1) for number in (7, 0, 11)] == [(1, 12), (2, 12), (12, 12)]


def test_less_than_half_of_many_equal_trials_pass_a_rung() -> None:
    # With so small a budget no rung is chosen: epoch 1 is used.
    epochs_run = list(run_search(rule(epochs=70), lambda *_: 0.1))
    beyond = {number for number, epoch in epochs_run if epoch > 9}
    assert len(beyond) < len({number for number, _ in epochs_run}) / 2


def test_no_trial_starts_when_little_time_is_left() -> None:
    of = rule(epochs=None, seconds=100.0)
    for number in range(30):
        of.started(number)
        for epoch in range(1, 60):
            if (
                of.judge(observation(number, epoch, by_number(number, epoch))).decision
                is not Decision.CONTINUE
            ):
                break
    assert of.paused()
    of.advance(100.0 - CLOSING * of.levels[1] / 2)
    assert not of.may_start()


def promotion_order(*, seconds: float) -> list[int]:
    """Promotion order of forty paused trials when a tenth of the hours is left.

    Trial 19 is the second best. Its epochs take ``seconds``, those of the others 1 second.
    """

    def value(number: int, epoch: int) -> float:
        return by_number(39.5 if number == 19 else 40 - number, epoch)

    of = rule(epochs=None, seconds=1000.0)
    for number in range(40):
        of.started(number)
        for epoch in range(1, 60):
            verdict = of.judge(
                observation(number, epoch, value(number, epoch), seconds=seconds if number == 19 else 1.0)
            )
            if verdict.decision is not Decision.CONTINUE:
                break
    of.no_new_trials()
    of.advance(900.0)
    order = []
    while (promoted := of.promote()) is not None:
        order.append(promoted)
        of.ended(promoted)
    return order


@pytest.mark.parametrize(("left", "is_promoted"), [(600.0, False), (400.0, True)])
def test_a_running_trial_counts_for_no_more_than_the_time_left(left: float, is_promoted: bool) -> None:
    """A slow trial has 27 epochs of 20 s left: they fill the final stage in 600 s and exceed 400 s."""
    of = rule(low=9, last=36, epochs=None, seconds=1000)
    for number in range(18):
        seconds = 20.0 if number == 0 else 1.0 if number < PILOTS else 1.6
        for epoch in range(1, 10):
            of.replay(observation(number, epoch, -float(number), seconds=seconds))
        of.pause_again(number)
    of.started(0)
    of.advance(1000 - left)
    assert (of.promote(), of.may_start()) == ((1, False) if is_promoted else (None, True))


def test_a_slow_trial_is_promoted_later_when_little_time_is_left() -> None:
    fast, slow = promotion_order(seconds=1.0), promotion_order(seconds=100.0)
    assert 19 in slow
    assert fast.index(19) < slow.index(19)


def test_a_diverged_trial_is_never_paused() -> None:
    of = rule()
    of.started(0)
    assert of.judge(observation(0, 1, math.nan)).decision is Decision.DIVERGED
    assert of.paused() == ()


def replay(epochs_run: list[tuple[int, int]], values: Values) -> AutoRule:
    of = rule()
    for number in sorted({number for number, _ in epochs_run}, reverse=True):
        for trial_number, epoch in epochs_run:
            if trial_number == number:
                of.replay(observation(number, epoch, values(number, epoch)))
    return of


def test_a_rule_that_is_replayed_in_another_order_decides_the_same() -> None:
    of = rule()
    epochs_run = []
    for step in run_search(of, by_number):
        epochs_run.append(step)
        if len(epochs_run) == 260:
            break
    replayed = replay(epochs_run, by_number)
    assert replayed.levels == of.levels
    assert replayed.agreement == of.agreement
    waiting = of.paused()
    for number in waiting:
        assert replayed.pause_again(number)
    for number in {n for n, _ in epochs_run} - set(waiting):
        if of._table.state(number) == 0:
            replayed.started(number)
    assert replayed.paused() == of.paused()
    for _ in range(6):
        promoted, replayed_promoted = of.promote(), replayed.promote()
        assert promoted == replayed_promoted
        assert of.may_start() == replayed.may_start()
        if promoted is None:
            break
        of.started(promoted)
        replayed.started(promoted)


def test_a_search_with_one_epoch_finishes_every_trial() -> None:
    epochs_run = list(run_search(rule(low=1, last=1, epochs=20), by_number))
    assert [epoch for _, epoch in epochs_run] == [1] * len(epochs_run)
    assert len(epochs_run) >= 20


def space(*overrides: str) -> Space:
    first = ("initial=[]", "scheduler={type: auto}", "sampler={type: random, seed: 3}")
    return load_space("att92", [*first, *overrides])


def test_a_search_of_hours_uses_them_on_every_worker() -> None:
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.5 + trial.number / 1e4), workers=4)
    hours = space("budget={trials: 1000, hours: 0.02}", "fidelity={min: 1, max: 20}")
    policy = SimulatedSearch(hours, clock=simulation.clock, slots=4).policy()
    simulation.drive(policy)
    assert simulation.trace.seconds == pytest.approx(72, abs=2)
    assert simulation.trace.utilisation > 0.97


def test_a_larger_budget_does_not_find_a_worse_trial() -> None:
    best = []
    for epochs in (200, 500):
        epochs_run = list(run_search(rule(epochs=epochs), by_number))
        best.append(max(number for number, epoch in epochs_run if epoch == 50))
    assert all(a <= b for a, b in pairwise(best))


@pytest.mark.parametrize("seconds", [None, 400.0])
def test_a_failed_first_trial_does_not_block_the_choice_of_the_first_rung(seconds: float | None) -> None:
    of = rule(epochs=None if seconds else 1500, seconds=seconds)
    of.started(0)
    of.ended(0)
    for number in range(1, 2 * PILOTS):
        of.started(number)
        for epoch in range(1, 50):
            of.advance(number + epoch / 100)
            if (
                of.judge(observation(number, epoch, by_number(number, epoch))).decision
                is not Decision.CONTINUE
            ):
                break
    assert of.agreement is not None


def test_paused_trials_get_the_rest_of_the_budget_of_an_exhausted_space() -> None:
    small = space(
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
        search = SimulatedSearch(space(budget, "fidelity={min: 1, max: 9}"))
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
    search_space = space(budget, f"fidelity={{min: {rng.integers(1, 3)}, max: {rng.integers(3, 30)}}}")
    search = SimulatedSearch(search_space, clock=simulation.clock, slots=workers)
    for reports in (int(rng.integers(1, 20)), int(rng.integers(1, 60))):
        simulation.drive(search.policy(), reports=reports)
    policy = search.policy()
    simulation.drive(policy)
    policy.interrupt_remaining()
    trials = search.trials()
    assert trials
    # Five failures in a row end a search early. Its paused trials stay paused for a resume.
    assert policy.failure or all(trial.state.is_final for trial in trials)
    if search_space.budget.hours is None and search_space.budget.epochs is None and not policy.failure:
        assert len(trials) == search_space.budget.trials
    if search_space.budget.epochs is not None:
        epochs = sum(trial.epochs for trial in trials)
        assert epochs <= search_space.budget.epochs + search_space.fidelity.max


def test_the_report_explains_the_chosen_rungs() -> None:
    search_space = space("budget={trials: 1000, epochs: 400}", "fidelity={min: 1, max: 27}")
    search = SimulatedSearch(search_space, slots=4)
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.3 + trial.number / 500), workers=4)
    simulation.drive(search.policy())
    levels, lines = rungs_and_reasons(search_space, search.trials(), slots=4)
    assert lines[0].startswith("First rung: epoch 1, chosen by 1")
    assert lines[0].endswith("Rungs: 1, 5, 27.")
    assert lines[1] == "Ranks at epoch 1 agree with those at epoch 2 by 1.00: it judges."
    assert levels == (1, 5, 27)


class SlowAndNoisyCurve(SyntheticCurve):
    """``slow_and_noisy`` for the trial whose number is the noise key."""

    def at(self, epoch: int) -> float:
        return slow_and_noisy(self.noise_key[0], epoch)


def test_the_report_and_the_plan_say_that_an_unconfirmed_rung_gets_less_screening() -> None:
    search_space = space("budget={trials: 1000, epochs: 1500}", "fidelity={min: 1, max: 50}")
    search = SimulatedSearch(search_space, slots=4)
    simulation = Simulation(lambda trial: SlowAndNoisyCurve(limit=1, noise_key=(trial.number,)), workers=4)
    simulation.drive(search.policy(), reports=400)
    _, lines = rungs_and_reasons(search_space, search.trials(), slots=4)
    assert lines[-1] == (
        "No later ranks confirm those at epoch 9: new trials get 20% of the budget instead of 45%,"
        " and more trials finish."
    )
    assert "if only the latest of them can judge, new trials get 20%" in next(plan_words(search_space))
    assert "can judge" not in next(plan_words(space("budget={trials: 60}")))


class NoiseCurve(SyntheticCurve):
    """A curve of noise, for which no rung is informative."""

    def at(self, epoch: int) -> float:
        return 0.5 + 0.01 * float(np.random.default_rng((self.noise_key[0], epoch)).normal())


def test_the_report_says_that_no_rung_judges_and_which_trials_pause() -> None:
    search_space = space("budget={trials: 1000, epochs: 1500}", "fidelity={min: 1, max: 50}")
    search = SimulatedSearch(search_space, slots=4)
    simulation = Simulation(lambda trial: NoiseCurve(limit=1, noise_key=(trial.number,)), workers=4)
    simulation.drive(search.policy(), reports=200)
    levels, (line,) = rungs_and_reasons(search_space, search.trials(), slots=4)
    assert levels == (50,)
    assert line.startswith(
        "No rung judges, and every trial trains to the end, but for trials whose value has never changed,"
        " which pause: up to epoch 9, the ranks of 8 trials"
    )


def test_the_report_says_that_a_small_budget_learns_no_rung() -> None:
    small = space("budget={trials: 6}", "fidelity={min: 1, max: 9}")
    levels, lines = rungs_and_reasons(small, (), slots=2)
    assert levels == (1, 3, 9)
    assert lines == ("Rungs: 1, 3, 9. The budget is too small to learn another first rung.",)


def test_the_report_and_the_plan_say_that_slots_stay_idle() -> None:
    short = space("budget={trials: 100, epochs: 54, concurrent: 8}", "fidelity={min: 1, max: 27}")
    _, lines = rungs_and_reasons(short, (), slots=8)
    assert lines[-1].startswith("After the first trials, at most 2 trials at once: ")
    assert any("at most 2 trials at once" in line for line in plan_words(short))


def test_the_report_says_how_many_epochs_fit_into_the_hours() -> None:
    search_space = space("budget={trials: 1000, hours: 0.002}", "fidelity={min: 1, max: 27}")
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.3 + trial.number / 500), workers=4)
    search = SimulatedSearch(search_space, clock=simulation.clock, slots=4)
    simulation.drive(search.policy())
    _, lines = rungs_and_reasons(search_space, search.trials(), slots=4)
    assert lines[-1].startswith("The hours allow about 7 of 27 epochs on each slot, ")


def test_other_schedulers_have_no_explanation_in_the_report() -> None:
    asha = space("scheduler={type: asha}", "fidelity={min: 1, max: 9}")
    assert rungs_and_reasons(asha, (), slots=2) == ((1, 3, 9), ())


def test_the_plan_counts_what_starts_and_finishes() -> None:
    first, first_rung_plan, reversed_ranks_plan = plan_words(
        space("budget={trials: 60}", "fidelity={min: 1, max: 27}")
    )
    assert "45% of the budget goes to new trials" in first
    assert first_rung_plan.startswith("auto, if epoch 1 ranks the trials as the last epoch does: 60 trials, ")
    assert reversed_ranks_plan.startswith("auto, if early epochs rank them in reverse: 60 trials, ")
    _, late_rung_plan, _ = plan_words(space("budget={trials: 60}", "fidelity={min: 2, max: 54}"))
    assert late_rung_plan.startswith("auto, if epoch 2 ranks the trials as the last epoch does: 60 trials, ")
    first, hours = plan_words(space("budget={trials: 60, hours: 2}"))
    assert hours.startswith("auto: 2 hours on each slot")


def test_one_trial_and_one_epoch_are_in_the_singular() -> None:
    one_trial = space("budget={trials: 1, epochs: 1, concurrent: 4}", "fidelity={min: 1, max: 1}")
    words = "\n".join(plan_words(one_trial))
    assert "at most 1 trial at once: the budget of epochs allows 1 full training," in words
    assert words.endswith("as the last epoch does: 1 trial, 1 finished and 0 paused, 1 epoch in all")
    assert list(plan_words(space("budget={trials: 9, hours: 1}")))[-1].startswith("auto: 1 hour on each slot")
    _, lines = rungs_and_reasons(one_trial, (), slots=4)
    assert lines[0] == "Rung: 1. The budget is too small to learn another first rung."


@pytest.mark.parametrize("budget", [{"epochs": None}, {"epochs": 200 * 9}])
def test_with_only_the_last_rung_every_trial_of_a_large_search_finishes(
    budget: dict[str, int | None],
) -> None:
    epochs_run = list(run_search(rule(low=9, last=9, trials=200, **budget), by_number))
    assert {number for number, _ in epochs_run} == set(range(200))
    assert len(epochs_run) == 200 * 9


def test_noisy_values_in_a_large_search_use_the_whole_epoch_budget() -> None:
    def noise(number: int, epoch: int) -> float:
        return float(np.random.default_rng((number, epoch)).normal())

    epochs_run = list(run_search(rule(last=20, trials=400, epochs=3000), noise))
    assert 3000 - 20 <= len(epochs_run) <= 3000 + 4 * 20


def test_noisy_values_with_a_trial_budget_cost_no_more_than_planned() -> None:
    def noise(number: int, epoch: int) -> float:
        return float(np.random.default_rng((number, epoch)).normal())

    of = rule(trials=120, epochs=None)
    epochs_run = list(run_search(of, noise))
    assert of.levels[0] < 50
    assert {number for number, _ in epochs_run} == set(range(120))
    assert len(epochs_run) < 120 * 50 / 3
