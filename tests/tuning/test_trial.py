"""One trial of the record as plain values: its best epoch, its value, its rank, its settings and its seed."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.config import TrialState
from tune_rescon.metric_names import MetricAt
from tune_rescon.tuning import TrialRecord
from tune_rescon.tuning.trial import TrialOrigin, trial_seed


def make_trial(*values: float, maximize: bool = True) -> TrialRecord:
    return TrialRecord(
        number=0,
        state=TrialState.STOPPED,
        parameters={},
        metric="val_accuracy",
        maximize=maximize,
        values=values,
    )


@pytest.mark.parametrize(
    ("trial", "epoch"),
    [
        (make_trial(), 0),
        (make_trial(math.nan), 0),
        (make_trial(0.5, 0.7, 0.6), 2),
        (make_trial(0.5, 0.7, 0.7), 2),
        (make_trial(0.5, math.nan, math.inf), 1),
        (make_trial(0.5, 0.3, 0.3, maximize=False), 2),
        (make_trial(-math.inf, 0.3, maximize=False), 2),
    ],
)
def test_the_best_epoch_is_the_first_of_the_finite_bests(trial: TrialRecord, epoch: int) -> None:
    assert trial.best_epoch == epoch
    assert trial.best_value == trial.values[epoch - 1] if epoch else math.isnan(trial.best_value)


def test_trials_rank_by_epochs_and_then_by_value() -> None:
    curves = ((0.1, 0.2, 0.3), (0.9, 0.8), (0.1, 0.7), (0.99,), (math.nan,))
    order = [make_trial(*values) for values in curves]
    shuffled = [order[index] for index in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=TrialRecord.rank_key) == order


@pytest.mark.parametrize(
    ("values", "at", "maximize", "epoch"),
    [
        ((), "best", True, 0),
        ((), "last", True, 0),
        ((0.5, 0.7, 0.6), "best", True, 2),
        ((0.5, 0.7, 0.6), "best", False, 1),
        ((0.5, 0.7, 0.6), "last", True, 3),
        ((0.5, 0.7, math.nan), "best", True, 3),  # diverged
        ((math.nan, 0.7, 0.6), "best", True, 2),
    ],
)
def test_a_trials_value_is_that_of_the_epoch_that_the_search_counts(
    values: tuple[float, ...], at: MetricAt, maximize: bool, epoch: int
) -> None:
    trial = dataclasses.replace(make_trial(*values, maximize=maximize), at=at)
    assert trial.value_epoch == epoch
    expected = values[epoch - 1] if epoch else math.nan
    assert repr(trial.value) == repr(expected)
    assert repr(trial.last_value) == repr(values[-1] if values else math.nan)


def test_minimised_trials_rank_by_the_lower_value() -> None:
    order = [
        make_trial(0.1, 0.2, 0.9, maximize=False),
        make_trial(0.9, 0.7, maximize=False),
        make_trial(0.1, 0.8, maximize=False),
        make_trial(0.3, math.nan, maximize=False),
    ]
    shuffled = [order[index] for index in (3, 2, 0, 1)]
    assert sorted(shuffled, key=TrialRecord.rank_key) == order


def test_a_hyperparameter_is_what_the_trial_ran_with() -> None:
    origin = TrialOrigin(
        config={"width": 0.5, "depth": 92, "drop_path": 0.0, "step_fractions": (40, 60)},
        space=1,
        seed=0,
        inactive=("drop_path",),
    )
    trial = dataclasses.replace(make_trial(), parameters={"width": 0.5}, origin=origin)
    names = ("width", "depth", "drop_path", "step_fractions", "unheard_of")
    assert [trial.setting(name, "none") for name in names] == [0.5, 92, "none", "[40, 60]", "none"]
    unknown = dataclasses.replace(trial, origin=None)
    assert [unknown.setting(name, "none") for name in names] == [0.5, *["none"] * 4]
    assert unknown.setting("depth") is None


def test_extending_a_trial_adds_an_epoch_to_every_series() -> None:
    trial = make_trial().extended({"val_accuracy": 0.5, "epoch_seconds": 2.0})
    trial = trial.extended({"val_accuracy": 0.7, "train_loss": 1.0})
    trial = trial.extended({"epoch_seconds": 0.5})
    assert repr(trial.values) == repr((0.5, 0.7, math.nan))
    assert repr(dict(trial.history)) == repr(
        {
            "val_accuracy": (0.5, 0.7, math.nan),
            "epoch_seconds": (2.0, math.nan, 0.5),
            "train_loss": (math.nan, 1.0, math.nan),
        }
    )
    assert trial.seconds == 2.5
    assert trial.device_seconds(4) == (8.0, 0.0, 2.0)


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 100_000))
def test_a_seed_is_reproducible_and_fits_every_generator(seed: int, number: int) -> None:
    assert trial_seed(seed, number) == trial_seed(seed, number)
    assert 0 <= trial_seed(seed, number) < 2**32


def test_trials_of_neighbouring_searches_have_different_seeds() -> None:
    seeds = {trial_seed(seed, number) for seed in range(20) for number in range(200)}
    assert len(seeds) == 20 * 200


def test_seeds_equal_those_of_earlier_versions() -> None:
    assert [trial_seed(0, number) for number in range(3)] == [2968811710, 3964924996, 3141116543]
