"""The median rule as arithmetic."""

from __future__ import annotations

import math

import pytest

from tune_rescon.tuning import Decision, MedianRule, Observation, Verdict


def make_rule(*, first: int = 2, maximize: bool = True) -> MedianRule:
    return MedianRule(first=first, last=5, maximize=maximize)


def run(rule: MedianRule, number: int, *values: float, group: object = None) -> list[Decision]:
    return [
        rule.judge(Observation(number=number, epoch=epoch, value=value, group=group)).decision
        for epoch, value in enumerate(values, 1)
    ]


C, S, F, D = Decision.CONTINUE, Decision.STOP, Decision.FINISH, Decision.DIVERGED


def add_three_trials(rule: MedianRule) -> None:
    # Running averages after the second epoch: 0.3, 0.5, 0.7; their median: 0.5.
    for number, level in enumerate((0.3, 0.5, 0.7)):
        assert run(rule, number, level, level) == [C, C]


@pytest.mark.parametrize(
    ("values", "decisions"),
    [
        ((0.1, 0.2), [C, S]),
        ((0.1, 0.51), [C, C]),
        ((0.1, 0.5), [C, S]),  # of equal values the later one ranks lower
        ((0.6, 0.1), [C, C]),  # its best value counts, not the last one
        ((0.1,), [C]),  # before the first epoch no trial is stopped
        ((0.9, 0.9, 0.1, 0.1, 0.1), [C, C, C, C, F]),
        ((0.9, math.nan), [C, D]),
    ],
)
def test_a_trial_below_the_median_of_running_averages_is_stopped(
    values: tuple[float, ...], decisions: list[Decision]
) -> None:
    rule = make_rule()
    add_three_trials(rule)
    assert run(rule, 9, *values) == decisions


def test_no_trial_is_stopped_with_only_two_others() -> None:
    rule = make_rule()
    for number in range(2):
        run(rule, number, 0.9, 0.9)
    assert run(rule, 9, 0.1, 0.1) == [C, C]


def test_trials_of_other_groups_are_not_compared() -> None:
    rule = make_rule()
    add_three_trials(rule)
    assert run(rule, 9, 0.1, 0.1, group=224) == [C, C]


def test_minimising_mirrors_maximising() -> None:
    rule = make_rule(maximize=False)
    for number, level in enumerate((0.3, 0.5, 0.7)):
        run(rule, number, level, level)
    assert run(rule, 9, 0.9, 0.8) == [C, S]


def test_replayed_values_are_judged_as_in_an_uninterrupted_search() -> None:
    uninterrupted, resumed = make_rule(), make_rule()
    add_three_trials(uninterrupted)
    for number, level in enumerate((0.3, 0.5, 0.7)):
        for epoch in (1, 2):
            resumed.replay(Observation(number=number, epoch=epoch, value=level))
    assert run(uninterrupted, 9, 0.1, 0.2) == run(resumed, 9, 0.1, 0.2) == [C, S]


@pytest.mark.parametrize(("value", "rank"), [(0.4, 3), (0.3, 4), (0.2, 4)])
def test_a_verdict_has_the_rank_among_the_other_trials_averages(value: float, rank: int) -> None:
    rule = make_rule()
    add_three_trials(rule)
    run(rule, 9, 0.1)
    verdict = rule.judge(Observation(number=9, epoch=2, value=value))
    assert verdict == Verdict(decision=S, rung=2, rank=rank, compared=4)


def test_no_trial_is_paused_or_promoted() -> None:
    rule = make_rule()
    add_three_trials(rule)
    assert rule.pause_again(0) is False
    assert rule.promote(force=True) is None
    assert rule.paused() == ()
