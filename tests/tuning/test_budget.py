"""The budget counts all runs of a search together, and a message tells when it was used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.tuning import (
    CostModel,
    SearchState,
    StudyRecord,
    StudyResult,
    TrialRecord,
    build_result,
)
from tune_rescon.tuning.assembly import make_plan
from tune_rescon.tuning.result import spent_message
from tune_rescon.tuning.space_versions import SpaceVersions


@pytest.mark.parametrize(
    ("hours", "elapsed", "left"),
    [
        (None, 1e9, None),
        (1.0, 0.0, 3600.0),
        (1.0, 3000.0, 600.0),
        (1.0, 4000.0, -400.0),
        (2.0, 3600.0, 3600.0),
    ],
)
def test_the_deadline_counts_the_seconds_of_earlier_runs(
    record: StudyRecord, hours: float | None, elapsed: float, left: float | None
) -> None:
    space = load_space("digits", [f"budget.hours={hours or 'null'}"])
    plan = make_plan(
        CostModel(space=space, datasets={}),
        record,
        SpaceVersions(spaces=(space,)),
        elapsed_seconds=elapsed,
        now=50.0,
    )
    assert plan.deadline == (None if left is None else 50.0 + left)


def result(begun: int, *settings: str) -> StudyResult:
    """The result of a search that has begun this number of trials, of three epochs each."""
    space = load_space("digits", settings)
    trials = tuple(
        TrialRecord(
            number=number,
            state=TrialState.STOPPED,
            parameters={},
            metric="val_accuracy",
            maximize=True,
            values=(0.1, 0.2, 0.3),
        )
        for number in range(begun)
    )
    return build_result(
        CostModel(space=space, datasets={}),
        trials,
        name="s",
        folder=Path("runs/s"),
        state=SearchState.FINISHED,
        tracking_uri="",
    )


@pytest.mark.parametrize(
    ("hours", "elapsed", "trials", "is_reported"),
    [
        pytest.param("null", 1e9, 3, False, id="no budget in hours"),
        pytest.param("1.0", 3599.0, 3, False, id="time left"),
        pytest.param("1.0", 3600.0, 3, True, id="spent"),
        pytest.param("1.0", 9999.0, 6, False, id="hours spent, but all trials started"),
        pytest.param("0.001", 9999.0, 0, True, id="resumed with no time left"),
    ],
)
def test_spent_hours_are_reported_if_trials_are_left(
    hours: str, elapsed: float, trials: int, is_reported: bool
) -> None:
    message = spent_message(result(trials, "budget.trials=6", f"budget.hours={hours}"), elapsed)
    assert (message is not None) is is_reported
    assert message is None or f"{trials} of 6 trials begun. More time: --resume s --hours H" in message


def test_a_spent_budget_is_reported_with_what_extends_it() -> None:
    assert spent_message(result(12, "budget.trials=128", "budget.hours=2"), 7300.0) == (
        "s has used its 2 hours, with 12 of 128 trials begun."
        " More time: --resume s --hours H, with H over 2.03."
    ), "two hours and 100 seconds, so 2.02 hours would add nothing"
    epochs = result(12, "budget.trials=128", "scheduler={type: auto}", "budget.epochs=40")
    assert spent_message(epochs, 60.0) == (
        "s has run 36 of its 40 epochs, with 12 of 128 trials begun. More: --resume s --set budget.epochs=E."
    )


def test_the_hours_of_final_trainings_are_a_key_of_the_space() -> None:
    found = result(1, "budget.hours=1", "scheduler={type: none}", "initial=[]")
    metric = found.space.metric.model_copy(update={"name": "test_accuracy"})
    finals = replace(found, space=found.space.model_copy(update={"metric": metric}))
    message = spent_message(finals, 3600.0)
    assert message is not None
    assert message.endswith("More time: --resume s --set budget.hours=H, with H over 1.")


@pytest.mark.parametrize("budget", ["budget.hours=2", "budget.epochs=40"])
def test_an_exhausted_space_needs_no_larger_budget(budget: str) -> None:
    message = spent_message(
        result(12, "budget.trials=128", "scheduler={type: auto}", budget), 7300.0, space_is_exhausted=True
    )
    assert message == (
        "The space is exhausted: all of its configurations have run, in 12 of 128 trials."
        " To run them again with other training seeds: --set sampler.repeats=true."
    )
