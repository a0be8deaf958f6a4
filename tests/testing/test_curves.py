"""Synthetic curves: what they promise for any numbers."""

from __future__ import annotations

import math
import statistics

from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.testing import SyntheticCurve

limits = st.floats(0.2, 1.0)
epochs = st.integers(1, 300)


@given(limits, st.floats(0.1, 50), epochs)
def test_a_plain_curve_rises_from_its_start_and_never_reaches_its_limit(
    limit: float, tau: float, epoch: int
) -> None:
    curve = SyntheticCurve(limit=limit, tau=tau)
    assert curve.expected(0) == curve.start
    assert curve.start < curve.at(epoch) < curve.at(epoch + 1) < limit


@given(limits, limits, st.floats(0.1, 50), epochs)
def test_curves_with_equal_tau_keep_their_order(a: float, b: float, tau: float, epoch: int) -> None:
    low, high = (SyntheticCurve(limit=limit, tau=tau).at(epoch) for limit in sorted((a, b)))
    assert low <= high


def test_a_slow_curve_with_a_higher_limit_overtakes_a_fast_one() -> None:
    fast, slow = SyntheticCurve(limit=0.8, tau=0.5), SyntheticCurve(limit=0.95, tau=10.0)
    assert fast.at(1) > slow.at(1)
    assert fast.at(81) < slow.at(81)


def test_over_fitting_peaks_and_falls() -> None:
    curve = SyntheticCurve(limit=0.9, tau=1.0, peak_epoch=20, fall=0.3)
    values = [curve.at(epoch) for epoch in range(1, 82)]
    assert values.index(max(values)) + 1 == 20
    assert values[19:] == sorted(values[19:], reverse=True)


def test_noise_depends_on_its_key_and_the_epoch_alone() -> None:
    curve, same = (SyntheticCurve(limit=0.9, noise=0.01, noise_key=(0, 7)) for _ in range(2))
    other = SyntheticCurve(limit=0.9, noise=0.01, noise_key=(0, 8))
    forwards = [curve.at(epoch) for epoch in range(1, 20)]
    backwards = [same.at(epoch) for epoch in reversed(range(1, 20))]
    assert forwards == backwards[::-1]
    assert not set(forwards) & {other.at(epoch) for epoch in range(1, 20)}


def test_noise_has_the_given_standard_deviation_and_is_larger_early() -> None:
    late, early = (
        statistics.stdev(
            SyntheticCurve(limit=0.5, noise=0.01, noise_key=(key,)).at(epoch) for key in range(400)
        )
        for epoch in (1000, 1)
    )
    assert 0.009 < late < 0.011
    assert 0.054 < early < 0.066


def test_noisy_values_stay_between_0_and_1() -> None:
    curve = SyntheticCurve(limit=1.0, start=1.0, noise=1.0)
    assert all(0 <= curve.at(epoch) <= 1 for epoch in range(1, 50))


def test_a_diverged_curve_stays_nan() -> None:
    curve = SyntheticCurve(limit=0.9, diverges_at=4, noise=0.01)
    assert [math.isnan(curve.at(epoch)) for epoch in range(1, 8)] == [False] * 3 + [True] * 4
