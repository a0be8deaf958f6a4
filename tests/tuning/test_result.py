"""The winner, the cost of a trial, and the metrics that are logged when it ends."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.config import TrialState
from tune_rescon.metric_names import PEAK_MEMORY, MetricAt
from tune_rescon.spaces import load_space
from tune_rescon.tuning import SearchState, StudyResult, TrialCost, TrialRecord, best_trial, pareto_front
from tune_rescon.tuning.cost_model import compute_hours
from tune_rescon.tuning.ended_trials import top_k_checkpoints
from tune_rescon.tuning.mlflow_callback import closing_metrics
from tune_rescon.tuning.result import best_file, best_in_hand, repeated
from tune_rescon.tuning.trial import TrialOrigin

FINISHED, STOPPED, FAILED = TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED
COST = TrialCost(params_m=0.85, gmacs=0.125)


def trial(
    number: int,
    state: TrialState,
    *values: float,
    metric: str = "val_accuracy",
    accuracy: tuple[float, ...] | None = None,
) -> TrialRecord:
    return TrialRecord(
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
        # A trial that failed keeps no network.
        ([trial(0, FAILED, 0.1, 0.9), trial(1, STOPPED, 0.2)], 1),
        ([trial(0, TrialState.OUT_OF_MEMORY, 0.1, 0.9), trial(1, TrialState.INTERRUPTED, 0.2)], 1),
        ([trial(0, FAILED, 0.1), trial(1, FAILED, 0.9)], 1),
        (
            [trial(0, FINISHED, 0.5, metric="val_loss"), trial(1, FINISHED, 0.4, metric="val_loss")],
            1,
        ),
    ],
)
def test_the_winner_is_the_best_of_the_furthest_trials(trials: list[TrialRecord], winner: int | None) -> None:
    best = best_trial(tuple(trials))
    assert (best and best.number) == winner


PAUSED, DIVERGED = TrialState.PAUSED, TrialState.DIVERGED


@pytest.mark.parametrize(
    ("trials", "in_hand"),
    [
        ([], None),
        ([trial(0, FINISHED, 0.1, 0.5)], None),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, STOPPED, 0.4)], None),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, STOPPED, 0.5)], None),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, STOPPED, 0.9)], 1),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, STOPPED, 0.6), trial(2, PAUSED, 0.7)], 2),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, TrialState.INTERRUPTED, 0.7), trial(2, STOPPED, 0.7)], 1),
        ([trial(0, FINISHED, 0.1, 0.1, 0.5), trial(1, STOPPED, 0.7), trial(2, PAUSED, 0.1, 0.7)], 2),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, TrialState.RUNNING, 0.9)], 1),
        (
            [trial(0, FINISHED, 0.1, 0.5), trial(1, FAILED, 0.9), trial(2, TrialState.OUT_OF_MEMORY, 0.9)],
            None,
        ),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, DIVERGED, 0.9, math.nan)], None),
        ([trial(0, FINISHED, 0.1, 0.5), trial(1, FAILED, 0.9), trial(2, PAUSED, 0.6)], 2),
        ([trial(0, STOPPED, 0.9), trial(1, STOPPED, 0.1, 0.2)], 0),
        # A lower loss is better.
        ([trial(0, FINISHED, 0.5, metric="val_loss"), trial(1, STOPPED, 0.4, metric="val_loss")], 1),
        ([trial(0, FINISHED, 0.5, metric="val_loss"), trial(1, STOPPED, 0.6, metric="val_loss")], None),
    ],
)
def test_the_best_in_hand_is_a_trial_better_than_the_winner(
    trials: list[TrialRecord], in_hand: int | None
) -> None:
    best = best_in_hand(trials, best_trial(tuple(trials)))
    assert (best and best.number) == in_hand


@pytest.mark.parametrize(("at", "in_hand"), [("best", 1), ("last", None)])
def test_the_best_in_hand_is_compared_at_the_epoch_whose_network_is_kept(
    at: MetricAt, in_hand: int | None
) -> None:
    trials = [
        dataclasses.replace(each, at=at)
        for each in (trial(0, FINISHED, 0.1, 0.1, 0.5), trial(1, STOPPED, 0.9, 0.4))
    ]
    best = best_in_hand(trials, trials[0])
    assert (best and best.number) == in_hand


def test_every_trial_with_a_value_is_better_than_a_winner_without_one() -> None:
    diverged = trial(0, DIVERGED, 0.5, math.nan)
    assert best_in_hand([diverged, trial(1, STOPPED, 0.1)], diverged) == trial(1, STOPPED, 0.1)


def test_with_a_test_metric_no_trial_is_in_hand() -> None:
    trials = (trial(0, FINISHED, 0.1, 0.5), trial(1, STOPPED, 0.9))
    result = make_result(*trials, gmacs=(1.0, 1.0))
    assert result.in_hand is trials[1]
    space = load_space("digits")
    judged = space.model_copy(update={"metric": space.metric.model_copy(update={"name": "test_accuracy"})})
    assert dataclasses.replace(result, space=judged).in_hand is None


def test_compute_hours_count_every_device() -> None:
    assert compute_hours(trial(0, FINISHED, 0.1, 0.2), 4) == 2.0


def test_compute_hours_count_the_devices_that_each_epoch_had() -> None:
    """A resume may change the number of devices. Earlier versions did not record it."""
    moved = dataclasses.replace(trial(0, FINISHED, 0.1, 0.2, 0.3), device_counts=(1, None, 8))
    assert compute_hours(moved, 4) == 0.25 * (1 + 4 + 8)
    assert compute_hours(moved, 4, 2) == 0.25 * (1 + 4)


def test_an_epoch_without_a_measured_time_costs_nothing() -> None:
    interrupted = TrialRecord(
        number=0,
        state=FAILED,
        parameters={},
        metric="val_loss",
        maximize=False,
        values=(1.0, math.nan),
        history={"epoch_seconds": (3600.0, math.nan)},
    )
    assert compute_hours(interrupted, 1) == 1.0


def test_closing_metrics_are_the_cost_and_the_best_epoch() -> None:
    assert closing_metrics(trial(0, STOPPED, 0.5, 0.75, 0.625), COST, 2) == {
        "compute_hours": 1.5,
        "params_m": 0.85,
        "gmacs": 0.125,
        "best_epoch": 2.0,
        "best_val_accuracy": 0.75,
    }


def test_closing_metrics_use_only_epochs_with_a_measured_peak_and_rate() -> None:
    # 100 images in one second, in four seconds, and an epoch without a count.
    measured = {"images_per_second": (100.0, 25.0, math.nan), PEAK_MEMORY: (math.nan, 80.0, 120.0)}
    known = trial(0, STOPPED, 0.5, 0.75, 0.625)
    logged = closing_metrics(dataclasses.replace(known, history={**known.history, **measured}), COST, 1)
    assert logged["mean_images_per_second"] == pytest.approx(200 / 5)
    assert logged[PEAK_MEMORY] == 120.0


def test_closing_metrics_of_another_objective_hold_the_accuracy_too() -> None:
    logged = closing_metrics(trial(0, STOPPED, 2.0, 1.0, metric="val_loss", accuracy=(0.25, 0.5)), COST, 1)
    assert (logged["best_val_loss"], logged["best_val_accuracy"], logged["best_epoch"]) == (1.0, 0.5, 2.0)


@pytest.mark.parametrize("values", [(), (math.nan,)])
def test_closing_metrics_of_a_trial_without_a_value_are_its_cost(values: tuple[float, ...]) -> None:
    assert set(closing_metrics(trial(0, FAILED, *values), COST, 1)) == {"compute_hours", "params_m", "gmacs"}


def test_closing_metrics_omit_a_non_finite_accuracy() -> None:
    logged = closing_metrics(trial(0, STOPPED, 1.0, metric="val_loss", accuracy=(math.nan,)), COST, 1)
    assert logged["best_val_loss"] == 1.0
    assert "best_val_accuracy" not in logged


def make_result(*trials: TrialRecord, gmacs: tuple[float, ...] | None = None, **changes: Any) -> StudyResult:
    costs = [COST] * len(trials) if gmacs is None else [TrialCost(params_m=1, gmacs=value) for value in gmacs]
    values: dict[str, Any] = {
        "name": "s",
        "space": load_space("digits"),
        "folder": Path("runs/s"),
        "metric": trials[0].metric if trials else "val_accuracy",
        "maximize": trials[0].maximize if trials else True,
        "trials": trials,
        "costs": {trial.number: cost for trial, cost in zip(trials, costs, strict=True)},
        "devices_per_trial": 2,
        "device": "GPU",
        "rungs": (1, 2),
        "best": best_trial(trials),
        "best_config": {"depth": 56, "step_fractions": (40, 60)},
        "state": SearchState.FINISHED,
        "tracking_uri": "",
        "against": None if gmacs is None else "gmacs",
    }
    return StudyResult(**values | changes)


POINTS = st.dictionaries(
    st.integers(0, 99),
    # Few distinct values, so that many are equal.
    st.tuples(st.sampled_from([0.1, 0.2, 0.3, math.nan]), st.sampled_from([1.0, 2.0, 3.0, math.inf])),
)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_the_front_is_what_no_finite_point_dominates(points: dict[int, tuple[float, float]]) -> None:
    finite = {key: point for key, point in points.items() if all(map(math.isfinite, point))}
    front = pareto_front(points)
    assert set(front) == {
        key for key, point in finite.items() if not any(dominates(other, point) for other in finite.values())
    }
    assert [points[key] for key in front] == sorted(points[key] for key in front)


def test_the_winner_is_the_costliest_on_the_front_without_stopped_trials() -> None:
    trials = (
        trial(0, FINISHED, 0.1, 0.9),
        trial(1, FINISHED, 0.1, 0.8),
        trial(2, FINISHED, 0.1, 0.7),
        trial(3, STOPPED, 0.85),
        trial(4, FAILED),
    )
    result = make_result(*trials, gmacs=(4.0, 1.0, 2.0, 0.5, 0.1))
    assert [member.number for member in result.front] == [1, 0]
    assert result.best is trials[0]


def test_without_finished_trials_the_front_has_the_furthest_ones() -> None:
    trials = (trial(0, STOPPED, 0.1, 0.5), trial(1, STOPPED, 0.1, 0.4), trial(2, STOPPED, 0.9))
    assert [member.number for member in make_result(*trials, gmacs=(2.0, 1.0, 0.5)).front] == [1, 0]


def test_a_front_may_minimise_loss_and_compute_hours() -> None:
    trials = tuple(
        TrialRecord(
            number=number,
            state=FINISHED,
            parameters={},
            metric="val_loss",
            maximize=False,
            values=(loss,),
            history={"epoch_seconds": (seconds,)},
        )
        for number, (loss, seconds) in enumerate([(0.5, 3600.0), (0.4, 7200.0), (0.6, 5400.0)])
    )
    result = make_result(*trials, gmacs=(1, 1, 1), against="compute_hours")
    assert [(member.number, result.cost(member)) for member in result.front] == [
        (0, 2.0),
        (1, 4.0),
    ]


def test_a_front_by_hours_has_one_kind_of_device() -> None:
    """Half a GPU-hour is not less than two core-hours."""
    places = ((None,) * 2, ("CPU",) * 2, ("NVIDIA L4",) * 2, ("NVIDIA H100",) * 2, ("CPU", "NVIDIA L4"))
    trials = tuple(
        dataclasses.replace(trial(number, FINISHED, 0.1, value), devices=place, device_counts=(count, count))
        for number, (value, place, count) in enumerate(
            zip((0.9, 0.8, 0.7, 0.6, 0.5), places, (8, 4, 1, 0.5, 0.25), strict=True)
        )
    )
    result = make_result(*trials, gmacs=(1,) * 5, against="compute_hours", device="CPU")
    assert [member.number for member in result.front] == [1, 0]
    on_gpus = dataclasses.replace(result, best=trials[2])
    assert [member.number for member in on_gpus.front] == [3, 2]
    assert dataclasses.replace(result, best=trials[4]).front == (), "its hours have no unit"


def test_of_equal_trials_the_winner_is_the_cheaper_one() -> None:
    """The other one is not on the front."""
    trials = tuple(
        dataclasses.replace(trial(number, FINISHED, 0.9), cost=cost) for number, cost in enumerate((4, 1, 2))
    )
    result = make_result(*trials, gmacs=(4, 1, 2))
    assert result.best is trials[1]
    assert result.front == (trials[1],)
    assert top_k_checkpoints(trials, keep=1) == {1}


@pytest.mark.parametrize("changes", [{"against": None}, {"best": None}])
def test_without_a_second_objective_or_a_winner_there_is_no_front(changes: dict[str, Any]) -> None:
    assert make_result(trial(0, FINISHED, 0.5), gmacs=(1.0,), **changes).front == ()


def test_the_best_file_holds_the_front() -> None:
    result = make_result(trial(0, FINISHED, 0.9), trial(1, FINISHED, 0.8), gmacs=(4.0, 1.0))
    written = best_file(result)
    assert (written["trial"], written["against"]) == (0, "gmacs")
    assert written["front"] == [
        {"trial": 1, "value": 0.8, "gmacs": 1.0},
        {"trial": 0, "value": 0.9, "gmacs": 4.0},
    ]
    assert written["config"]["step_fractions"] == [40, 60]


def test_the_best_file_of_one_objective_has_no_front() -> None:
    written = best_file(make_result(trial(0, FINISHED, 0.9), gmacs=(4.0,), against=None))
    assert not {"against", "front"} & set(written)


def test_the_best_file_names_the_best_in_hand_if_there_is_one() -> None:
    interrupted = dataclasses.replace(
        trial(1, STOPPED, 0.8, 0.95, 0.9), at="best", checkpoint="checkpoints/b.ckpt"
    )
    written = best_file(
        make_result(trial(0, FINISHED, 0.1, 0.2, 0.7, 0.9), interrupted, gmacs=(4.0, 4.0), against=None)
    )
    assert (written["trial"], written["value"]) == (0, 0.9)
    assert written["in_hand"] == {
        "trial": 1,
        "state": "stopped",
        "value": 0.95,
        "value_epoch": 2,
        "epochs": 3,
        "best_value": 0.95,
        "best_epoch": 2,
        "checkpoint": "checkpoints/b.ckpt",
    }
    assert "in_hand" not in best_file(make_result(trial(0, FINISHED, 0.9), gmacs=(4.0,), against=None))


def test_trainings_of_other_configurations_are_no_repetitions() -> None:
    """A resume fixed another depth, after it was searched for a while: the parameters are the same."""
    trainings = [
        dataclasses.replace(
            trial(number, FINISHED, 0.5),
            parameters={"learning_rate": 0.1},
            origin=TrialOrigin(config={"depth": depth, "learning_rate": 0.1}, space=1, seed=number),
        )
        for number, depth in enumerate((56, 92, 56))
    ]
    assert [[each.number for each in group] for group in repeated(trainings)] == [[0, 2], [1]]


def test_of_repeated_trainings_the_best_mean_wins_and_no_lucky_seed() -> None:
    values = {0: (0.1, 0.90), 1: (0.2, 0.80), 2: (0.1, 0.70), 3: (0.2, 0.85)}
    trials = tuple(
        dataclasses.replace(trial(number, FINISHED, value), parameters={"learning_rate": rate})
        for number, (rate, value) in values.items()
    )
    assert [[trial.number for trial in group] for group in repeated(trials)] == [[0, 2], [1, 3]]
    assert best_trial(trials) is trials[0]
    assert best_trial(trials, by_mean=True) is trials[1]


def test_without_finished_trainings_the_furthest_wins() -> None:
    trials = (trial(0, STOPPED, 0.9), trial(1, STOPPED, 0.1, 0.2))
    assert best_trial(trials, by_mean=True) == trials[1]
    assert best_trial((), by_mean=True) is None


def test_closing_metrics_of_a_final_training_have_each_test_metric_once() -> None:
    judged = dataclasses.replace(
        trial(0, FINISHED, math.nan, 0.75, metric="test_accuracy"),
        maximize=True,
        history={"test_accuracy": (math.nan, 0.75), "test_loss": (math.nan, 0.5)},
    )
    logged = closing_metrics(judged, COST, 1)
    assert (logged["test_accuracy"], logged["test_loss"]) == (0.75, 0.5)
    assert "best_val_accuracy" not in logged


CURVE = (0.25, 0.75, 0.5)


@pytest.mark.parametrize(
    ("at", "values", "value", "epoch"),
    [
        ("last", CURVE, 0.5, 3),
        ("best", CURVE, 0.75, 2),
        ("best", (0.5, 0.5), 0.5, 1),
        ("last", (), math.nan, 0),
        ("best", (), math.nan, 0),
        # A diverged trial has no value, also if earlier epochs have one.
        ("best", (0.75, math.nan), math.nan, 2),
        ("last", (0.75, math.nan), math.nan, 2),
    ],
)
def test_the_value_is_that_of_the_epoch_that_counts(
    at: MetricAt, values: tuple[float, ...], value: float, epoch: int
) -> None:
    known = dataclasses.replace(trial(0, FINISHED, *values), at=at)
    assert (known.value == value) or (math.isnan(known.value) and math.isnan(value))
    assert known.value_epoch == epoch


@pytest.mark.parametrize(("at", "winner"), [("last", 1), ("best", 0)])
def test_the_winner_and_the_kept_network_are_chosen_by_the_same_rule(at: MetricAt, winner: int) -> None:
    """The first trial has the best epoch, the second one the better last epoch."""
    trials = tuple(
        dataclasses.replace(record, at=at, checkpoint=f"{record.number}.ckpt")
        for record in (trial(0, FINISHED, *CURVE), trial(1, FINISHED, 0.25, 0.5, 0.625))
    )
    best = best_trial(trials)
    assert best is not None
    assert best.number == winner
    assert top_k_checkpoints(trials, keep=1) == {winner}
    file = best_file(make_result(*trials, gmacs=(1.0, 1.0), against=None))
    assert (file["at"], file["value"], file["value_epoch"]) == (at, best.value, best.value_epoch)


def test_the_repr_of_a_result_is_one_line() -> None:
    result = make_result(trial(0, STOPPED, 0.1), trial(1, FINISHED, 0.5, 0.75))
    assert repr(result) == (
        "<StudyResult s: finished, 2 trials, best trial_0001, val_accuracy 0.75 after 2 epochs>"
    )
    assert (
        repr(make_result(state=SearchState.RUNNING))
        == "<StudyResult s: running, 0 trials, no best trial yet>"
    )


def test_a_dataframe_has_a_row_for_each_trial() -> None:
    first = dataclasses.replace(
        trial(0, FINISHED, 0.5, 0.75), parameters={"depth": 56}, checkpoint="checkpoints/trial_0000/best.ckpt"
    )
    second = dataclasses.replace(trial(1, STOPPED, 0.25), parameters={"depth": 92, "drop_path": 0.1})
    table = make_result(first, second, devices_per_trial=1).dataframe()
    assert list(table.index) == [0, 1]
    assert list(table["value"]) == [0.75, 0.25]
    assert list(table["state"]) == ["finished", "stopped"]
    assert list(table["compute_hours"]) == [0.5, 0.25]
    assert list(table.columns[-2:]) == ["depth", "drop_path"]
    assert math.isnan(table.loc[0, "drop_path"])
    assert table.loc[0, "checkpoint"] == "runs/s/checkpoints/trial_0000/best.ckpt"
    assert table.nlargest(1, "value").index[0] == 0


def test_a_dataframe_has_no_hours_of_a_trial_that_moved_between_cores_and_gpus() -> None:
    moved = dataclasses.replace(trial(0, FINISHED, 0.5, 0.75), devices=("CPU", "NVIDIA L4"))
    stayed = dataclasses.replace(trial(1, FINISHED, 0.5, 0.75), devices=("NVIDIA L4", "NVIDIA H100"))
    hours = make_result(moved, stayed, devices_per_trial=1).dataframe()["compute_hours"]
    assert list(hours.isna()) == [True, False]
    assert hours[1] == 0.5


def test_a_dataframe_of_no_trials_has_the_same_columns() -> None:
    table = make_result().dataframe()
    assert len(table) == 0
    assert {"state", "value", "gmacs"} <= set(table.columns)
