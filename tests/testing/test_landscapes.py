"""Landscapes: the best known value is the best one, and each landscape has its documented difficulty."""

from __future__ import annotations

from typing import Any

import pytest

from tune_rescon.spaces import Space, load_space, preview
from tune_rescon.testing import LANDSCAPES, Landscape

EPOCHS = 81
NEAR_OPTIMUM = {
    "depth": 128,
    "image_size": 96,
    "learning_rate": 0.05,
    "weight_decay": 4e-4,
    "drop_path": 0.09,
}


@pytest.fixture(scope="module")
def att92() -> Space:
    return load_space("att92", ["initial=[]"])


@pytest.fixture(scope="module")
def samples(att92: Space) -> list[dict[str, Any]]:
    return preview(att92, 400)


@pytest.fixture(scope="module")
def best_known(att92: Space) -> dict[str, float]:
    return {name: landscape.best_known(att92) for name, landscape in LANDSCAPES.items()}


@pytest.mark.parametrize("name", LANDSCAPES)
def test_no_sample_beats_the_best_known_and_a_good_one_comes_near(
    name: str, best_known: dict[str, float], samples: list[dict[str, Any]]
) -> None:
    landscape, best = LANDSCAPES[name], best_known[name]
    assert max(landscape.value(sample, EPOCHS) for sample in samples) <= best
    assert landscape.value(NEAR_OPTIMUM, EPOCHS) > 0.99 * best


@pytest.mark.parametrize("name", LANDSCAPES)
def test_good_trials_are_rare(name: str, best_known: dict[str, float], samples: list[dict[str, Any]]) -> None:
    landscape, best = LANDSCAPES[name], best_known[name]
    good_samples = sum(landscape.value(sample, EPOCHS) >= 0.99 * best for sample in samples)
    assert good_samples <= 0.05 * len(samples)


def misranked_share(landscape: Landscape, samples: list[dict[str, Any]], epoch: int) -> float:
    """Share of the pairs of trials whose order at ``epoch`` differs from their order at the end."""
    early = [landscape.curve(0, sample).expected(epoch) for sample in samples]
    final = [landscape.curve(0, sample).expected(EPOCHS) for sample in samples]
    pairs = [(i, j) for i in range(len(samples)) for j in range(i)]
    return sum((early[i] < early[j]) != (final[i] < final[j]) for i, j in pairs) / len(pairs)


def test_only_monotone_and_diverging_landscapes_keep_their_order(samples: list[dict[str, Any]]) -> None:
    misranked = {name: misranked_share(LANDSCAPES[name], samples[:150], epoch=1) for name in LANDSCAPES}
    assert misranked["monotone"] == misranked["diverging"] == 0
    assert misranked["crossing"] > 0.3
    assert misranked["overfitting"] > 0.15


def test_trials_diverge_earlier_the_further_they_are_beyond_the_cliff() -> None:
    landscape = LANDSCAPES["diverging"]
    rates = (0.05, 0.08, 0.1, 0.3)
    epochs = [landscape.curve(0, {**NEAR_OPTIMUM, "learning_rate": rate}).diverges_at for rate in rates]
    assert epochs == [0, 6, 4, 1]
    assert landscape.value({**NEAR_OPTIMUM, "learning_rate": 0.3}, EPOCHS) == 0.0
    assert not any(
        LANDSCAPES["monotone"].curve(0, {**NEAR_OPTIMUM, "learning_rate": r}).diverges_at for r in rates
    )


def test_epoch_seconds_scale_with_depth_and_squared_image_size() -> None:
    seconds = {
        (depth, size): LANDSCAPES["monotone"].curve(0, {"depth": depth, "image_size": size}).epoch_seconds
        for depth in (56, 112)
        for size in (32, 64)
    }
    first = seconds[56, 32]
    assert seconds == {(56, 32): first, (112, 32): 2 * first, (56, 64): 4 * first, (112, 64): 8 * first}


def test_two_trials_of_the_same_values_differ_in_noise_only() -> None:
    landscape = LANDSCAPES["crossing"]
    a, b = landscape.curve(1, NEAR_OPTIMUM), landscape.curve(2, NEAR_OPTIMUM)
    assert a.at(3) != b.at(3)
    assert a.expected(3) == b.expected(3)


@pytest.mark.parametrize("name", ["digits", "depth"])
def test_a_space_without_some_parameters_has_positive_values(name: str) -> None:
    space = load_space(name)
    assert all(LANDSCAPES["monotone"].value(sample, space.fidelity.max) > 0 for sample in preview(space, 5))
