"""The expected epochs of future trials, compared with simulated ones."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.reporting.live.state import Survival, seconds_left


def observe(survival: Survival, epochs: int, *, ended: bool) -> None:
    for epoch in range(epochs + 1):
        survival.reached(epoch)
    if ended:
        survival.ended(epochs)


def test_without_stopping_all_epochs_lie_ahead() -> None:
    assert Survival((5,), reduction_factor=3).epochs_ahead() == [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def test_trials_that_still_run_count_as_far_as_they_came() -> None:
    """Half of them end after the first epoch, at once; a mean over the ended ones would say one epoch."""
    survival = Survival((9,), reduction_factor=3)
    for _ in range(50):
        observe(survival, 1, ended=True)
        observe(survival, 3, ended=False)
    assert survival.epochs_ahead()[0] == pytest.approx(1 + 0.5 * 8)


def test_observed_counts_replace_the_prior() -> None:
    survival = Survival((1, 9), reduction_factor=3)
    assert survival.epochs_ahead()[0] == pytest.approx(1 + 8 / 3)
    for _ in range(1000):
        observe(survival, 1, ended=False)
    assert survival.epochs_ahead()[0] == pytest.approx(9, rel=0.01)


def test_a_promoted_trial_has_not_ended_at_its_rung() -> None:
    survival = Survival((1, 9), reduction_factor=3)
    observe(survival, 1, ended=True)
    assert survival.at(1) == (1, 0)
    survival.continued(1)
    assert survival.at(1) == (1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_many_trials_is_found(seed: int) -> None:
    """Trials of which a third passes each rung, each of them seen at some moment."""
    chance = random.Random(seed)
    survival, trained = Survival((1, 3, 9, 27), reduction_factor=3), []
    for _ in range(2000):
        epochs = next((rung for rung in (1, 3, 9) if chance.random() > 1 / 3), 27)
        trained.append(epochs)
        # When we look has nothing to do with how long it will run.
        watched = chance.randint(0, 40)
        observe(survival, min(epochs, watched), ended=epochs <= watched)
    assert survival.epochs_ahead()[0] == pytest.approx(sum(trained) / len(trained), rel=0.1)


@given(
    running=st.lists(st.integers(0, 9), max_size=20),
    unstarted=st.integers(0, 100),
    slots=st.integers(1, 64),
)
def test_more_slots_are_never_slower_and_the_longest_trial_is_waited_for(
    running: list[int], unstarted: int, slots: int
) -> None:
    ahead = [float(9 - epoch) for epoch in range(10)]

    def left(slots: int) -> float:
        return seconds_left(ahead, running=running, unstarted=unstarted, slots=slots, seconds_per_epoch=2.0)

    assert left(slots + 1) <= left(slots)
    assert left(slots) >= 2 * max((ahead[epoch] for epoch in running), default=0)
    assert left(1) == pytest.approx(2 * (sum(ahead[epoch] for epoch in running) + 9 * unstarted))
