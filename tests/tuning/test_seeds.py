"""A trial's seed depends on the search's seed and the trial's number alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.tuning.trial import trial_seed


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 100_000))
def test_a_seed_is_reproducible_and_fits_every_generator(seed: int, number: int) -> None:
    assert trial_seed(seed, number) == trial_seed(seed, number)
    assert 0 <= trial_seed(seed, number) < 2**32


def test_trials_of_neighbouring_searches_have_different_seeds() -> None:
    seeds = {trial_seed(seed, number) for seed in range(20) for number in range(200)}
    assert len(seeds) == 20 * 200


def test_seeds_equal_those_of_earlier_versions() -> None:
    assert [trial_seed(0, number) for number in range(3)] == [2968811710, 3964924996, 3141116543]
