"""ASHA as arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.tuning.rungs import Decision, RungLadder, rungs

bounds = st.tuples(st.integers(1, 50), st.integers(0, 400), st.integers(2, 5))
values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def ladder(*, maximize: bool = True, levels: tuple[int, ...] = (1, 3, 9), factor: int = 3) -> RungLadder:
    return RungLadder(levels=levels, reduction_factor=factor, maximize=maximize)


@given(bounds)
def test_rungs_start_at_min_grow_by_the_factor_and_end_at_max(numbers: tuple[int, int, int]) -> None:
    low, more, factor = numbers
    levels = rungs(low, low + more, factor)
    assert (levels[0], levels[-1]) == (low, low + more)
    assert all(b == a * factor for a, b in pairwise(levels[:-1]))
    assert all(a < b for a, b in pairwise(levels))


@pytest.mark.parametrize(
    ("arrivals", "decisions"),
    [
        ([0.5, 0.4], "cc"),  # a rung judges nobody before it holds three values
        ([0.5, 0.4, 0.3], "ccs"),
        ([0.3, 0.4, 0.5], "ccc"),
        ([0.5, 0.5, 0.5], "ccc"),  # equals are not worse than each other
        ([0.1, 0.2, 0.3, 0.25, 0.26, 0.28], "cccssc"),  # six values let two go on
    ],
)
def test_the_stopping_rule(arrivals: list[float], decisions: str) -> None:
    rung = ladder()
    words = {Decision.CONTINUE: "c", Decision.STOP: "s"}
    assert "".join(words[rung.judge(1, value).decision] for value in arrivals) == decisions


def test_between_rungs_nobody_is_judged_and_nothing_is_filed() -> None:
    rung = ladder()
    for value in (0.9, 0.8, 0.1, 0.05):
        assert rung.judge(2, value).decision is Decision.CONTINUE
    assert rung.population() == {1: 0, 3: 0}


def test_a_late_value_is_not_filed_under_lower_rungs() -> None:
    rung = ladder()
    rung.judge(9, 0.99)
    assert rung.population() == {1: 0, 3: 0}


def test_the_last_rung_finishes_whatever_the_value() -> None:
    assert ladder().judge(9, 0.0).decision is Decision.FINISH


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epoch", [1, 2, 9])
def test_a_value_that_is_not_finite_always_ends_the_trial(value: float, epoch: int) -> None:
    rung = ladder()
    assert rung.judge(epoch, value).decision is Decision.DIVERGED
    assert rung.population() == {1: 0, 3: 0}


def test_groups_are_not_compared() -> None:
    rung = ladder()
    for value in (0.9, 0.8, 0.7):
        rung.judge(1, value, group=(32,))
    assert rung.judge(1, 0.1, group=(224,)).decision is Decision.CONTINUE


@given(values)
def test_the_best_so_far_is_never_stopped(arrivals: list[float]) -> None:
    rung = ladder()
    for index, value in enumerate(arrivals):
        verdict = rung.judge(1, value)
        if value >= max(arrivals[: index + 1]):
            assert verdict.decision is Decision.CONTINUE


@given(values)
def test_an_increasing_transform_changes_no_decision(arrivals: list[float]) -> None:
    plain, transformed = ladder(), ladder()
    for value in arrivals:
        # Exact for any float: doubling keeps every order.
        assert plain.judge(1, value) == transformed.judge(1, 2 * value)


@given(values)
def test_minimising_mirrors_maximising(arrivals: list[float]) -> None:
    high, low = ladder(maximize=True), ladder(maximize=False)
    for value in arrivals:
        assert high.judge(1, value) == low.judge(1, -value)


@given(values, st.integers(0, 39))
def test_refilled_rungs_judge_like_the_ones_that_were_lost(arrivals: list[float], cut: int) -> None:
    lived, resumed = ladder(), ladder()
    for value in arrivals[:cut]:
        lived.judge(1, value)
        resumed.file(1, value)
    for value in arrivals[cut:]:
        assert lived.judge(1, value) == resumed.judge(1, value)
