"""Who wins, what a trial has cost, and what is logged of it at its end."""

from __future__ import annotations

import math

import pytest

from tune_rescon.config import TrialState
from tune_rescon.tuning import TrialCost, TrialSummary, best_trial
from tune_rescon.tuning.result import compute_hours
from tune_rescon.tuning.tracking_listener import closing_metrics

FINISHED, STOPPED, FAILED = TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED
COST = TrialCost(params_m=0.85, gmacs=0.125)


def trial(
    number: int,
    state: TrialState,
    *values: float,
    metric: str = "val_accuracy",
    accuracy: tuple[float, ...] | None = None,
) -> TrialSummary:
    return TrialSummary(
        number=number,
        state=state,
        parameters={},
        metric=metric,
        maximize=metric == "val_accuracy",
        values=values,
        history={
            "val_accuracy": values if accuracy is None else accuracy,
            "epoch_seconds": (900.0,) * len(values),
        },
    )


@pytest.mark.parametrize(
    ("trials", "winner"),
    [
        ([], None),
        ([trial(0, FAILED)], None),
        ([trial(0, TrialState.DIVERGED, math.nan)], None),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, STOPPED, 0.9)], 0),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, FINISHED, 0.9, 0.6)], 1),
        ([trial(0, FINISHED, 0.9, 0.5), trial(1, FINISHED, 0.1, 0.6)], 1),
        ([trial(0, FINISHED, 0.5), trial(1, FINISHED, 0.5)], 0),
        ([trial(0, STOPPED, 0.9), trial(1, STOPPED, 0.1, 0.2)], 1),
        ([trial(0, FAILED, 0.1, 0.2, 0.3), trial(1, FINISHED, 0.1, 0.2)], 1),
        ([trial(0, TrialState.DIVERGED, 0.9, math.nan), trial(1, STOPPED, 0.1)], 1),
        (
            [trial(0, FINISHED, 0.5, metric="val_loss"), trial(1, FINISHED, 0.4, metric="val_loss")],
            1,
        ),
    ],
)
def test_the_winner(trials: list[TrialSummary], winner: int | None) -> None:
    best = best_trial(tuple(trials))
    assert (best and best.number) == winner


def test_compute_hours_count_every_device() -> None:
    assert compute_hours(trial(0, FINISHED, 0.1, 0.2), 4) == 2.0


def test_a_half_measured_epoch_costs_nothing() -> None:
    cut = TrialSummary(
        number=0,
        state=FAILED,
        parameters={},
        metric="val_loss",
        maximize=False,
        values=(1.0, math.nan),
        history={"epoch_seconds": (3600.0, math.nan)},
    )
    assert compute_hours(cut, 1) == 1.0


def test_closing_metrics() -> None:
    assert closing_metrics(trial(0, STOPPED, 0.5, 0.75, 0.625), COST, 2) == {
        "compute_hours": 1.5,
        "params_m": 0.85,
        "gmacs": 0.125,
        "best_epoch": 2.0,
        "best_val_accuracy": 0.75,
    }


def test_closing_metrics_of_another_objective_hold_the_accuracy_too() -> None:
    logged = closing_metrics(trial(0, STOPPED, 2.0, 1.0, metric="val_loss", accuracy=(0.25, 0.5)), COST, 1)
    assert (logged["best_val_loss"], logged["best_val_accuracy"], logged["best_epoch"]) == (1.0, 0.5, 2.0)


@pytest.mark.parametrize("values", [(), (math.nan,)])
def test_closing_metrics_of_a_trial_without_a_value_are_its_cost(values: tuple[float, ...]) -> None:
    assert set(closing_metrics(trial(0, FAILED, *values), COST, 1)) == {"compute_hours", "params_m", "gmacs"}


def test_closing_metrics_where_no_accuracy_is_finite() -> None:
    logged = closing_metrics(trial(0, STOPPED, 1.0, metric="val_loss", accuracy=(math.nan,)), COST, 1)
    assert logged["best_val_loss"] == 1.0
    assert "best_val_accuracy" not in logged
