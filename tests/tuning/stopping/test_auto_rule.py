"""The rule ``auto`` as arithmetic: shares of the budget, the first rung, and the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from tune_rescon.tuning.stopping.auto_rule import CLOSING, AutoRule
from tune_rescon.tuning.stopping.budget_plan import SCREENING, BudgetPlan, stage_shares
from tune_rescon.tuning.stopping.first_rung import PILOTS
from tune_rescon.tuning.stopping.rule import Decision, Observation
from tune_rescon.tuning.stopping.trial_table import TrialTable

pytestmark = pytest.mark.quick


def make_rule(
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
    number: int, epoch: int, value: float, *, tie_breaker: float = math.inf, seconds: float = 1.0
) -> Observation:
    return Observation(number=number, epoch=epoch, value=value, tie_breaker=tie_breaker, seconds=seconds)


Values = Callable[[int, int], float]


def train(rule: AutoRule, number: int, values: Values, *, seconds: float = 1.0) -> None:
    """Start a trial, and report its epochs until it pauses or ends."""
    rule.started(number)
    for epoch in range(1, 60):
        seen = observation(number, epoch, values(number, epoch), seconds=seconds)
        if rule.judge(seen).decision is not Decision.CONTINUE:
            return


def by_number(number: float, epoch: int) -> float:
    """A metric by which later trials are better, from the first epoch on."""
    return number + epoch / 1000


def run_search(rule: AutoRule, values: Values, *, slots: int = 4) -> Iterator[tuple[int, int]]:
    """Run a search on slots of equal speed; yield each epoch as (trial, epoch)."""
    running: list[list[int]] = []
    next_number = 0
    epochs_of: dict[int, int] = {}
    while True:
        while len(running) < slots:
            promoted = rule.promote()
            if promoted is not None:
                rule.started(promoted)
                running.append([promoted, epochs_of[promoted]])
            elif rule.may_start():
                rule.started(next_number)
                running.append([next_number, 0])
                next_number += 1
            else:
                break
        if not running:
            return
        current = running.pop(0)
        current[1] += 1
        epochs_of[current[0]] = current[1]
        decision = rule.judge(observation(current[0], current[1], values(current[0], current[1]))).decision
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
    rule = make_rule()
    list(run_search(rule, by_number))
    assert rule.rungs[0] == 1
    assert rule.agreement is not None
    assert rule.agreement.correlations[1] == pytest.approx(1.0)


def test_epochs_with_reversed_ranks_are_not_the_first_rung() -> None:
    def crossing(number: int, epoch: int) -> float:
        return number * (epoch - 2.5)

    rule = make_rule(epochs=1500)
    list(run_search(rule, crossing))
    assert rule.agreement is not None
    assert rule.agreement.correlations[2] == pytest.approx(-1.0)
    assert rule.rungs[0] == 3


def noise(number: int, epoch: int) -> float:
    return float(np.random.default_rng((number, epoch)).normal())


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
        rule = make_rule(epochs=1500)
        epochs_run = list(run_search(rule, values))
        assert rule.is_unconfirmed == (values is slow_and_noisy)
        finished[values] = sum(epoch == 50 for _, epoch in epochs_run)
    assert finished[slow_and_noisy] >= 25
    assert finished[steady] < 20


def test_with_a_budget_of_trials_unconfirmed_ranks_do_not_change_the_shares() -> None:
    rule = make_rule(trials=120, epochs=None)
    epochs_run = list(run_search(rule, slow_and_noisy))
    assert rule.agreement is not None
    assert not rule.agreement.is_confirmed
    assert not rule.is_unconfirmed
    assert {number for number, _ in epochs_run} == set(range(120))


@pytest.mark.parametrize(("rank", "continues"), [(1, True), (2, True), (3, False), (6, False)])
def test_only_a_trial_with_a_good_rank_is_promoted_to_a_later_stage(rank: int, continues: bool) -> None:
    rule = make_rule(low=4)
    assert rule.rungs == (4, 14, 50)
    for number in range(12):
        for epoch in range(1, 15 if number < 8 else 5):
            rule.replay(observation(number, epoch, -float(number)))
        rule.ended(number)
    rule.pause_again(rank - 1)
    assert (rule.promote(), rule.may_start()) == ((rank - 1, False) if continues else (None, True))


def test_noisy_early_values_leave_only_the_last_rung() -> None:
    rule = make_rule(epochs=1000)
    reached = dict(run_search(rule, noise))
    assert rule.agreement is not None
    assert rule.agreement.ranks_are_unstable
    assert rule.rungs == (50,)
    assert sum(epoch == 50 for epoch in reached.values()) >= 16


@pytest.mark.parametrize("hours", [False, True])
def test_without_early_rungs_trials_with_constant_values_are_paused(hours: bool) -> None:
    def half_constant(number: int, epoch: int) -> float:
        return 0.1 if number % 2 else float(np.random.default_rng((number, epoch)).normal())

    rule = make_rule(epochs=None, seconds=500.0) if hours else make_rule(epochs=1000)
    reached: dict[int, int] = {}
    for number, epoch in run_search(rule, half_constant):
        reached[number] = epoch
        if sum(reached.values()) >= 900:
            break
    assert rule.no_rung_judges
    unchanged = {number for number, epoch in reached.items() if number % 2 and epoch > (rule.latest or 0)}
    assert not unchanged
    assert sum(epoch == 50 for epoch in reached.values()) >= 10
    assert set(rule.paused()) >= {1, 3, 5, 7}


def test_without_early_rungs_the_furthest_trials_continue_first() -> None:
    rule = make_rule(epochs=1000)
    reached: dict[int, int] = {}
    gave_way = set()
    for number, epoch in run_search(rule, noise):
        reached[number] = epoch
        paused = rule.paused()
        if rule.no_rung_judges and number >= PILOTS and number % 6 != 1:  # not a probe
            assert number in paused or epoch >= max((reached[n] for n in paused), default=0)
            gave_way |= {number} & set(paused)
    assert gave_way


def test_a_budget_of_epochs_is_spent_and_not_overspent() -> None:
    epochs_run = list(run_search(make_rule(), by_number))
    assert 500 - 50 <= len(epochs_run) <= 500 + 4 * 50


def test_several_trials_are_finished_and_most_are_not() -> None:
    epochs_run = list(run_search(make_rule(), by_number))
    finished = {number for number, epoch in epochs_run if epoch == 50}
    assert 2 <= len(finished) <= 6
    assert len({number for number, _ in epochs_run}) > 60


def test_the_best_at_a_rung_continues_at_once_despite_a_full_next_stage() -> None:
    # With so small a budget no rung is chosen: epoch 1 is used.
    rule = make_rule(epochs=70)
    for number in range(10):
        rule.started(number)
        rule.judge(observation(number, 1, -float(number)))
    while (promoted := rule.promote()) is not None:
        rule.started(promoted)
    rule.started(10)
    assert rule.judge(observation(10, 1, -0.5)).decision is Decision.PAUSE
    rule.started(11)
    assert rule.judge(observation(11, 1, 1.0)).decision is Decision.CONTINUE


def started_at_once(rule: AutoRule, *, slots: int) -> int:
    """Start trials on free slots until none may start; return their number."""
    for number in range(slots):
        if not rule.may_start():
            return number
        rule.started(number)
    return slots


def test_an_epoch_budget_limits_the_number_of_concurrent_trials() -> None:
    assert started_at_once(make_rule(epochs=600), slots=32) == 12
    assert started_at_once(make_rule(epochs=50), slots=32) == PILOTS
    assert started_at_once(make_rule(epochs=None, seconds=600.0), slots=32) == 32


def test_slow_first_trials_do_not_delay_promotions() -> None:
    rule = make_rule(epochs=None, seconds=1000.0)
    for number in range(PILOTS + 12):
        rule.started(number)
    decisions = {
        rule.judge(observation(number, 1, by_number(number, 1))).decision
        for number in range(PILOTS, PILOTS + 12)
    }
    assert rule.latest is None
    assert decisions == {Decision.PAUSE, Decision.CONTINUE}


def test_where_few_epochs_fit_into_the_hours_the_rungs_are_within_them() -> None:
    few_trials, many_trials = (
        make_rule(last=140, epochs=None, seconds=30.0),
        make_rule(last=140, epochs=None, seconds=3000.0),
    )
    for rule in (few_trials, many_trials):
        for number in range(PILOTS):
            rule.started(number)
            rule.judge(observation(number, 1, by_number(number, 1)))
    assert (few_trials.reach, many_trials.reach) == (30, 140)
    assert few_trials.rungs[-2] < many_trials.rungs[-2]
    assert few_trials.rungs[-2] < 30
    assert few_trials.latest is not None
    assert few_trials.latest <= 3


def test_a_budget_of_trials_starts_them_all_and_finishes_three() -> None:
    epochs_run = list(run_search(make_rule(trials=40, epochs=None), by_number))
    assert {number for number, _ in epochs_run} == set(range(40))
    assert len({number for number, epoch in epochs_run if epoch == 50}) >= 3


def test_every_epoch_of_a_trial_comes_once_and_in_order() -> None:
    epochs_of: dict[int, list[int]] = {}
    for number, epoch in run_search(make_rule(), by_number):
        epochs_of.setdefault(number, []).append(epoch)
    assert all(epochs == list(range(1, len(epochs) + 1)) for epochs in epochs_of.values())


def test_the_first_trials_are_not_judged_before_the_latest_candidate() -> None:
    rule = make_rule()
    assert rule.rungs[0] > 1
    reached = dict.fromkeys(range(PILOTS), 0)
    for number, epoch in run_search(rule, lambda number, epoch: -by_number(number, epoch)):
        if number in reached:
            reached[number] = epoch
    assert rule.agreement is not None
    assert min(reached.values()) >= rule.agreement.latest


def test_ties_are_broken_by_the_smaller_loss_and_then_by_age() -> None:
    table = TrialTable(9)
    for number in range(12):
        table.add(
            observation(number, 1, 0.1, tie_breaker=1.0 if number == 7 else 2.3), maximize=True, timed=False
        )
    numbers = np.arange(12)
    assert table.best(numbers, 1) == 7
    assert table.best(numbers[numbers != 7], 1) == 0
    assert [table.rank(number, 1) for number in (7, 0, 11)] == [(1, 12), (2, 12), (12, 12)]


def test_less_than_half_of_many_equal_trials_pass_a_rung() -> None:
    # With so small a budget no rung is chosen: epoch 1 is used.
    epochs_run = list(run_search(make_rule(epochs=70), lambda *_: 0.1))
    beyond = {number for number, epoch in epochs_run if epoch > 9}
    assert len(beyond) < len({number for number, _ in epochs_run}) / 2


def test_no_trial_starts_when_little_time_is_left() -> None:
    rule = make_rule(epochs=None, seconds=100.0)
    for number in range(30):
        train(rule, number, by_number)
    assert rule.paused()
    rule.set_elapsed(100.0 - CLOSING * rule.rungs[1] / 2)
    assert not rule.may_start()


def promotion_order(*, seconds: float) -> list[int]:
    """Promotion order of forty paused trials when a tenth of the hours is left.

    Trial 19 is the second best. Its epochs take ``seconds``, those of the others 1 second.
    """

    def value(number: int, epoch: int) -> float:
        return by_number(39.5 if number == 19 else 40 - number, epoch)

    rule = make_rule(epochs=None, seconds=1000.0)
    for number in range(40):
        train(rule, number, value, seconds=seconds if number == 19 else 1.0)
    rule.no_new_trials()
    rule.set_elapsed(900.0)
    order = []
    while (promoted := rule.promote()) is not None:
        order.append(promoted)
        rule.ended(promoted)
    return order


@pytest.mark.parametrize(("left", "is_promoted"), [(600.0, False), (400.0, True)])
def test_a_running_trial_counts_for_no_more_than_the_time_left(left: float, is_promoted: bool) -> None:
    """A slow trial has 27 epochs of 20 s left: they fill the final stage in 600 s and exceed 400 s."""
    rule = make_rule(low=9, last=36, epochs=None, seconds=1000)
    for number in range(18):
        seconds = 20.0 if number == 0 else 1.0 if number < PILOTS else 1.6
        for epoch in range(1, 10):
            rule.replay(observation(number, epoch, -float(number), seconds=seconds))
        rule.pause_again(number)
    rule.started(0)
    rule.set_elapsed(1000 - left)
    assert (rule.promote(), rule.may_start()) == ((1, False) if is_promoted else (None, True))


def test_a_slow_trial_is_promoted_later_when_little_time_is_left() -> None:
    fast, slow = promotion_order(seconds=1.0), promotion_order(seconds=100.0)
    assert 19 in slow
    assert fast.index(19) < slow.index(19)


def test_a_diverged_trial_is_never_paused() -> None:
    rule = make_rule()
    rule.started(0)
    assert rule.judge(observation(0, 1, math.nan)).decision is Decision.DIVERGED
    assert rule.paused() == ()


def replay(epochs_run: list[tuple[int, int]], values: Values) -> AutoRule:
    rule = make_rule()
    for number in sorted({number for number, _ in epochs_run}, reverse=True):
        for trial_number, epoch in epochs_run:
            if trial_number == number:
                rule.replay(observation(number, epoch, values(number, epoch)))
    return rule


def test_a_rule_that_is_replayed_in_another_order_decides_the_same() -> None:
    rule = make_rule()
    epochs_run = []
    for step in run_search(rule, by_number):
        epochs_run.append(step)
        if len(epochs_run) == 260:
            break
    replayed = replay(epochs_run, by_number)
    assert replayed.rungs == rule.rungs
    assert replayed.agreement == rule.agreement
    waiting = rule.paused()
    for number in waiting:
        assert replayed.pause_again(number)
    for number in {n for n, _ in epochs_run} - set(waiting):
        if rule._table.state(number) == 0:
            replayed.started(number)
    assert replayed.paused() == rule.paused()
    for _ in range(6):
        promoted, replayed_promoted = rule.promote(), replayed.promote()
        assert promoted == replayed_promoted
        assert rule.may_start() == replayed.may_start()
        if promoted is None:
            break
        rule.started(promoted)
        replayed.started(promoted)


def test_a_search_with_one_epoch_finishes_every_trial() -> None:
    epochs_run = list(run_search(make_rule(low=1, last=1, epochs=20), by_number))
    assert [epoch for _, epoch in epochs_run] == [1] * len(epochs_run)
    assert len(epochs_run) >= 20


def test_a_larger_budget_does_not_find_a_worse_trial() -> None:
    best = []
    for epochs in (200, 500):
        epochs_run = list(run_search(make_rule(epochs=epochs), by_number))
        best.append(max(number for number, epoch in epochs_run if epoch == 50))
    assert all(a <= b for a, b in pairwise(best))


@pytest.mark.parametrize("seconds", [None, 400.0])
def test_a_failed_first_trial_does_not_block_the_choice_of_the_first_rung(seconds: float | None) -> None:
    rule = make_rule(epochs=None if seconds else 1500, seconds=seconds)
    rule.started(0)
    rule.ended(0)
    for number in range(1, 2 * PILOTS):
        rule.set_elapsed(float(number))
        train(rule, number, by_number)
    assert rule.agreement is not None


@pytest.mark.parametrize("budget", [{"epochs": None}, {"epochs": 200 * 9}])
def test_with_only_the_last_rung_every_trial_of_a_large_search_finishes(
    budget: dict[str, int | None],
) -> None:
    epochs_run = list(run_search(make_rule(low=9, last=9, trials=200, **budget), by_number))
    assert {number for number, _ in epochs_run} == set(range(200))
    assert len(epochs_run) == 200 * 9


def test_noisy_values_in_a_large_search_use_the_whole_epoch_budget() -> None:
    epochs_run = list(run_search(make_rule(last=20, trials=400, epochs=3000), noise))
    assert 3000 - 20 <= len(epochs_run) <= 3000 + 4 * 20


def test_noisy_values_with_a_trial_budget_cost_no_more_than_planned() -> None:
    rule = make_rule(trials=120, epochs=None)
    epochs_run = list(run_search(rule, noise))
    assert rule.rungs[0] < 50
    assert {number for number, _ in epochs_run} == set(range(120))
    assert len(epochs_run) < 120 * 50 / 3
