"""The choice of the first rung from curves that no rung has selected."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.stats import norm, spearmanr

from tune_rescon.tuning.stopping.first_rung import (
    FINDS,
    choose_first_rung,
    expected_score,
    first_rungs,
    latest_candidate,
    rank_correlation,
    rungs_from,
)

pytestmark = pytest.mark.quick

CANDIDATES = (1, 3, 9)


def curves(*, early: float, trials: int = 12) -> list[list[float]]:
    """Nine epochs whose order after epoch 1 is that after epoch 9 (``early`` 1), or its reverse (-1)."""
    return [[early * n + (n - early * n) * (epoch / 8) ** 2 for epoch in range(9)] for n in range(trials)]


def test_the_rank_correlation_matches_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 15).astype(float), rng.normal(size=15)
        assert rank_correlation(list(first), list(second)) == pytest.approx(
            spearmanr(first, second).statistic
        )


def test_a_diverged_trial_ranks_last() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [-math.inf, 5.0, 6.0]) == pytest.approx(1.0)


def test_the_expected_score_is_bloms_approximation() -> None:
    expected = norm.ppf(1 - (np.arange(1, FINDS + 1) - 0.375) / 100.25).mean()
    assert expected_score(100) == pytest.approx(expected)
    assert expected_score(FINDS) < expected_score(FINDS + 1) < expected_score(50)


def test_an_informative_epoch_1_is_the_first_rung() -> None:
    choice = choose_first_rung(curves(early=1), CANDIDATES, epochs=300)
    assert (choice.first, choice.latest, choice.trials, choice.is_confirmed) == (1, 9, 12, True)
    assert choice.correlations == pytest.approx({1: 1.0, 3: 1.0})


def test_an_epoch_1_with_reversed_ranks_is_not_the_first_rung() -> None:
    choice = choose_first_rung(curves(early=-1), CANDIDATES, epochs=300)
    assert (choice.first, choice.is_confirmed) == (9, False)
    assert choice.correlations[1] == pytest.approx(-1.0)


def test_a_rung_is_trusted_no_more_than_those_above_it() -> None:
    values = curves(early=1)
    for number, curve in enumerate(values):
        curve[2] = -float(number)
    assert choose_first_rung(values, CANDIDATES, epochs=300).first == 9


def test_without_trials_the_latest_candidate_is_the_first_rung() -> None:
    choice = choose_first_rung([], CANDIDATES, epochs=300)
    assert (choice.first, choice.trials) == (9, 0)


def test_no_rung_is_used_if_neighbouring_epochs_disagree() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(10, 9)).tolist()
    choice = choose_first_rung(noise, (1, 2, 3, 5, 7, 9), epochs=300)
    assert choice.ranks_are_unstable
    assert not choose_first_rung(curves(early=1), (1, 2, 3, 5, 7, 9), epochs=300).ranks_are_unstable


def test_a_few_epochs_that_agree_by_chance_are_no_evidence() -> None:
    noise = np.random.default_rng(1).normal(size=(8, 9))
    noise[:, [4, 6]] = noise[:, [8]]
    choice = choose_first_rung(noise.tolist(), (1, 2, 3, 5, 7, 9), epochs=300)
    assert (choice.correlations[5], choice.correlations[7]) == (1.0, 1.0)
    pairs = [spearmanr(noise[:, a], noise[:, b]).statistic for a, b in combinations(range(4, 9), 2)]
    assert choice.steadiness == pytest.approx(np.mean(pairs))
    assert choice.ranks_are_unstable


def test_epochs_with_all_values_equal_agree_with_no_other() -> None:
    tied = [[0.1] * 8 + [float(n)] for n in range(8)]
    assert choose_first_rung(tied, (1, 2, 3, 5, 7, 9), epochs=300).steadiness == 0.0


def one_class(*, others: float) -> list[list[float]]:
    """Five networks that predict one class in all nine epochs, and five others with random ranks."""
    noise = np.random.default_rng(2).uniform(-0.003, 0.003, size=(5, 9)) + others
    return [[0.1] * 9] * 5 + [list(map(float, curve)) for curve in noise]


def test_constant_curves_are_no_evidence_until_all_others_are_better() -> None:
    candidates = (1, 2, 3, 5, 7, 9)
    assert choose_first_rung(one_class(others=0.096), candidates, epochs=300).ranks_are_unstable
    assert not choose_first_rung(one_class(others=0.2), candidates, epochs=300).ranks_are_unstable


def test_constant_curves_of_different_values_are_evidence() -> None:
    flat = [[float(number)] * 9 for number in range(10)]
    assert choose_first_rung(flat, (1, 2, 3, 5, 7, 9), epochs=300).steadiness == pytest.approx(1.0)


def test_a_single_epoch_has_undefined_steadiness() -> None:
    choice = choose_first_rung([[float(n)] for n in range(8)], (1,), epochs=300)
    assert math.isnan(choice.steadiness)
    assert not choice.ranks_are_unstable


def test_candidates_are_dense_and_end_at_a_quarter() -> None:
    for low, last in ((1, 1), (1, 4), (2, 54), (3, 81), (1, 228), (10, 20)):
        choice = first_rungs(low, last)
        assert choice[0] == low
        assert all(b <= max(a + 1, a * 1.5) for a, b in pairwise(choice))
        assert all(c <= last / 4 for c in choice[1:])


def test_a_small_budget_spends_more_on_the_first_trials() -> None:
    large, small, tiny = (latest_candidate(1, 140, pilots=8, epochs=epochs) for epochs in (1400, 560, 140))
    assert (large, small, tiny) == (7, 7, 2)
    assert 0.05 * 560 < 8 * small <= 0.13 * 560


def test_the_first_trials_take_a_tenth_of_the_hours() -> None:
    many_slots = latest_candidate(1, 140, pilots=8, epochs=1400, epochs_of_slot=1400 / 32)
    few_slots = latest_candidate(1, 140, pilots=8, epochs=1400, epochs_of_slot=1400 / 4)
    assert (many_slots, few_slots) == (4, 7)


@pytest.mark.parametrize("reach", [2, 9, 44, 140])
def test_rungs_end_at_the_last_epoch_and_the_others_are_within_reach(reach: int) -> None:
    rungs = rungs_from(2, 140, reach=reach)
    assert rungs[0] == 2
    assert rungs[-1] == 140
    assert all(rung <= max(2, reach) for rung in rungs[:-1])
    assert all(later / earlier < 7 for earlier, later in pairwise(rungs[:-1]))
