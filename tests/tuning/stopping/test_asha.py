"""The decisions of ASHA, which stops or pauses trials at rungs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.tuning.stopping.asha import SuccessiveHalving, asha_rungs
from tune_rescon.tuning.stopping.rule import Decision, Observation, Verdict

bounds = st.tuples(st.integers(1, 50), st.integers(0, 400), st.integers(2, 5))
values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def make_rule(
    *, maximize: bool = True, rungs: tuple[int, ...] = (1, 3, 9), factor: int = 3
) -> SuccessiveHalving:
    return SuccessiveHalving(rungs=rungs, reduction_factor=factor, maximize=maximize)


def observation(
    epoch: int, value: float, number: int = 0, *, group: object = None, cost: float = 0.0
) -> Observation:
    return Observation(number=number, epoch=epoch, value=value, group=group, cost=cost)


def values_at_rungs(rule: SuccessiveHalving) -> dict[int, int]:
    """Return the number of values at each rung below the last. The rule is unusable afterwards."""
    return {rung: rule.judge(observation(rung, 0.0, 1000 + rung)).compared - 1 for rung in rule.rungs[:-1]}


@given(bounds)
def test_rungs_start_at_min_grow_by_the_factor_and_end_at_max(numbers: tuple[int, int, int]) -> None:
    low, more, factor = numbers
    rungs = asha_rungs(low, low + more, factor)
    assert (rungs[0], rungs[-1]) == (low, low + more)
    assert all(b == a * factor for a, b in pairwise(rungs[:-1]))
    assert all(a < b for a, b in pairwise(rungs))


@pytest.mark.parametrize(
    ("arrivals", "decisions"),
    [
        ([0.5, 0.4], "cc"),  # a rung stops no trial before it has three values
        ([0.5, 0.4, 0.3], "ccs"),
        ([0.3, 0.4, 0.5], "ccc"),
        ([0.5, 0.5, 0.5], "ccs"),  # of equal values the later one ranks lower
        ([0.1, 0.2, 0.3, 0.25, 0.26, 0.28], "cccssc"),  # of six values, two continue
    ],
)
def test_a_trial_below_the_top_fraction_of_its_rung_is_stopped(arrivals: list[float], decisions: str) -> None:
    rule = make_rule()
    letters = {Decision.CONTINUE: "c", Decision.STOP: "s"}
    judged = [rule.judge(observation(1, value, number)) for number, value in enumerate(arrivals)]
    assert "".join(letters[verdict.decision] for verdict in judged) == decisions


def test_a_value_between_rungs_is_not_judged_and_not_recorded() -> None:
    rule = make_rule()
    for number, value in enumerate((0.9, 0.8, 0.1, 0.05)):
        assert rule.judge(observation(2, value, number)) == Verdict(
            decision=Decision.CONTINUE, rung=0, rank=0, compared=0
        )
    assert values_at_rungs(rule) == {1: 0, 3: 0}


def test_a_value_of_the_last_rung_is_not_recorded_at_lower_rungs() -> None:
    rule = make_rule()
    rule.judge(observation(9, 0.99))
    assert values_at_rungs(rule) == {1: 0, 3: 0}


def test_the_last_rung_finishes_a_trial_with_any_value() -> None:
    assert make_rule().judge(observation(9, 0.0)).decision is Decision.FINISH


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epoch", [1, 2, 9])
def test_a_value_that_is_not_finite_always_ends_the_trial(value: float, epoch: int) -> None:
    rule = make_rule()
    assert rule.judge(observation(epoch, value)).decision is Decision.DIVERGED
    assert values_at_rungs(rule) == {1: 0, 3: 0}


def test_groups_are_not_compared() -> None:
    rule = make_rule()
    for number, value in enumerate((0.9, 0.8, 0.7)):
        rule.judge(observation(1, value, number, group=32))
    assert rule.judge(observation(1, 0.1, 3, group=224)).decision is Decision.CONTINUE


@given(values)
def test_the_best_so_far_is_never_stopped(arrivals: list[float]) -> None:
    rule = make_rule()
    for index, value in enumerate(arrivals):
        verdict = rule.judge(observation(1, value, index))
        if index == 0 or value > max(arrivals[:index]):
            assert verdict.decision is Decision.CONTINUE


@given(values)
def test_an_increasing_transform_changes_no_decision(arrivals: list[float]) -> None:
    original, transformed = make_rule(), make_rule()
    for number, value in enumerate(arrivals):
        # Doubling is exact for floats and preserves the order.
        assert original.judge(observation(1, value, number)) == transformed.judge(
            observation(1, 2 * value, number)
        )


@given(values)
def test_minimising_mirrors_maximising(arrivals: list[float]) -> None:
    high, low = make_rule(maximize=True), make_rule(maximize=False)
    for number, value in enumerate(arrivals):
        assert high.judge(observation(1, value, number)) == low.judge(observation(1, -value, number))


@given(values, st.integers(0, 39))
def test_replayed_values_are_judged_as_in_an_uninterrupted_search(
    arrivals: list[float], count_before: int
) -> None:
    uninterrupted, resumed = make_rule(), make_rule()
    for number, value in enumerate(arrivals[:count_before]):
        uninterrupted.judge(observation(1, value, number))
        resumed.replay(observation(1, value, number))
    for number, value in enumerate(arrivals[count_before:], len(arrivals[:count_before])):
        assert uninterrupted.judge(observation(1, value, number)) == resumed.judge(
            observation(1, value, number)
        )


def test_only_finite_values_at_rungs_below_the_last_are_replayed() -> None:
    rule = make_rule()
    for epoch in range(1, 10):
        rule.replay(observation(epoch, 0.5, number=0))
        rule.replay(observation(epoch, math.nan, number=1))
    assert rule.pause_again(0) is True
    assert rule.pause_again(1) is False
    assert values_at_rungs(rule) == {1: 1, 3: 1}


def make_promoting_rule(rungs: tuple[int, ...] = (1, 3, 9)) -> SuccessiveHalving:
    return SuccessiveHalving(rungs=rungs, reduction_factor=3, maximize=True, pauses=True)


def test_a_paused_trial_is_promoted_once_it_is_in_the_top_fraction() -> None:
    rule = make_promoting_rule()
    for number, value in enumerate((0.5, 0.9)):
        assert rule.judge(observation(1, value, number)).decision is Decision.PAUSE
    assert rule.promote() is None
    assert rule.judge(observation(1, 0.1, 2)).decision is Decision.PAUSE
    assert rule.promote() == 1
    assert rule.promote() is None
    assert rule.paused() == (0, 2)


def test_a_trial_in_the_top_fraction_continues_without_a_pause() -> None:
    rule = make_promoting_rule()
    for number, value in enumerate((0.5, 0.4)):
        rule.judge(observation(1, value, number))
    assert rule.judge(observation(1, 0.9, 2)).decision is Decision.CONTINUE
    assert rule.promote() is None


def test_promotion_starts_at_the_highest_rung_and_force_ignores_the_fraction() -> None:
    rule = make_promoting_rule()
    for number in range(6):
        rule.judge(observation(1, 1 - number / 10, number))
    assert [rule.promote() for _ in range(3)] == [0, 1, None]
    for number, value in ((0, 0.5), (1, 0.6)):
        assert rule.judge(observation(3, value, number)).decision is Decision.PAUSE
    assert rule.promote() is None
    assert rule.promote(force=True) == 1
    assert rule.paused() == (0, 2, 3, 4, 5)


@given(values, st.integers(0, 39))
def test_a_replayed_rule_promotes_the_same_trials(arrivals: list[float], count_before: int) -> None:
    uninterrupted, resumed = make_promoting_rule(), make_promoting_rule()
    paused = []
    for number, value in enumerate(arrivals[:count_before]):
        if uninterrupted.judge(observation(1, value, number)).decision is Decision.PAUSE:
            paused.append(number)
        resumed.replay(observation(1, value, number))
    for number in paused:
        resumed.pause_again(number)
    for number, value in enumerate(arrivals[count_before:], len(arrivals[:count_before])):
        assert uninterrupted.judge(observation(1, value, number)) == resumed.judge(
            observation(1, value, number)
        )
        assert uninterrupted.promote() == resumed.promote()
    assert uninterrupted.paused() == resumed.paused()


def test_a_replayed_rule_promotes_from_the_same_group() -> None:
    """The values of a resumed search come in the order of the numbers, not in that of their arrival."""
    uninterrupted, resumed = make_promoting_rule(), make_promoting_rule()
    arrivals = [(0.5, 2, "b"), (0.4, 0, "a"), (0.3, 1, "b")]
    values = [observation(1, value, number, group=group) for value, number, group in arrivals]
    for value in values:
        assert uninterrupted.judge(value).decision is Decision.PAUSE
    for value in sorted(values, key=lambda value: value.number):
        resumed.replay(value)
        resumed.pause_again(value.number)
    promoted = [0, 2, 1, None]
    assert [uninterrupted.promote(force=True) for _ in promoted] == promoted
    assert [resumed.promote(force=True) for _ in promoted] == promoted


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30, unique=True)


@given(points)
def test_with_two_objectives_no_trial_on_the_pareto_front_is_stopped(arrivals: list[tuple[int, int]]) -> None:
    rule = make_rule()
    for number, (value, cost) in enumerate(arrivals):
        verdict = rule.judge(observation(1, value, number, cost=cost))
        dominated = any(
            v >= value and c <= cost and (v, c) != (value, cost) for v, c in arrivals[: number + 1]
        )
        if not dominated:
            assert verdict.rank == 1
            assert verdict.decision is Decision.CONTINUE


@given(points)
def test_with_two_objectives_the_rank_counts_dominating_trials(
    arrivals: list[tuple[int, int]],
) -> None:
    rule = make_rule()
    for number, (value, cost) in enumerate(arrivals):
        verdict = rule.judge(observation(1, value, number, cost=cost))
        before = arrivals[:number]
        rank = 1 + sum(v >= value and c <= cost and (v, c) != (value, cost) for v, c in before)
        assert (verdict.rank, verdict.compared) == (rank, number + 1)
        stops = number + 1 >= 3 and rank > (number + 1) // 3
        assert verdict.decision is (Decision.STOP if stops else Decision.CONTINUE)


@given(points)
def test_with_two_objectives_the_lowest_rank_then_the_oldest_is_promoted(
    arrivals: list[tuple[int, int]],
) -> None:
    rule = make_promoting_rule()
    for number, (value, cost) in enumerate(arrivals):
        rule.judge(observation(1, value, number, cost=cost))
    ranks = {
        number: sum(v >= value and c <= cost and (v, c) != (value, cost) for v, c in arrivals)
        for number, (value, cost) in enumerate(arrivals)
    }
    waiting = sorted(rule.paused(), key=lambda number: (ranks[number], number))
    assert [rule.promote(force=True) for _ in waiting] == waiting
    assert rule.promote() is None
    assert rule.promote(force=True) is None


@pytest.mark.parametrize("pauses", [False, True])
def test_only_a_third_of_equal_trials_passes_a_rung(pauses: bool) -> None:
    # Failed networks report exactly chance level: 54 of 60 trials are equal.
    rule = SuccessiveHalving(rungs=(1, 3, 9), reduction_factor=3, maximize=True, pauses=pauses)
    values = [0.5 if number % 10 == 9 else 0.1 for number in range(60)]
    decided = [rule.judge(observation(1, value, number)).decision for number, value in enumerate(values)]
    continued = [
        value for value, decision in zip(values, decided, strict=True) if decision is Decision.CONTINUE
    ]
    assert len(continued) <= 60 // 3
    assert continued.count(0.5) == 6


def test_of_equal_values_the_smaller_loss_ranks_higher() -> None:
    rule = make_rule()
    for number, loss in enumerate((2.3, 1.7, math.inf)):
        verdict = rule.judge(Observation(number=number, epoch=1, value=0.1, tie_breaker=loss))
    assert verdict == Verdict(decision=Decision.STOP, rung=1, rank=3, compared=3)
    assert rule.judge(Observation(number=3, epoch=1, value=0.1, tie_breaker=1.0)).rank == 1
