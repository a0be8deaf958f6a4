"""A budget in hours counts all runs of a search together."""

from __future__ import annotations

import pytest

from tune_rescon.spaces import Budget, load_space
from tune_rescon.tuning import CostModel, StudyRecord
from tune_rescon.tuning.assembly import make_plan
from tune_rescon.tuning.budget import spent_message
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


@pytest.mark.parametrize(
    ("hours", "elapsed", "trials", "is_reported"),
    [
        pytest.param(None, 1e9, 3, False, id="no budget in hours"),
        pytest.param(1.0, 3599.0, 3, False, id="time left"),
        pytest.param(1.0, 3600.0, 3, True, id="spent"),
        pytest.param(1.0, 9999.0, 6, False, id="hours spent, but all trials started"),
        pytest.param(0.001, 9999.0, 0, True, id="resumed with no time left"),
    ],
)
def test_spent_hours_are_reported_if_trials_are_left(
    hours: float | None, elapsed: float, trials: int, is_reported: bool
) -> None:
    budget = Budget(trials=6, hours=hours)
    message = spent_message(budget, name="s", trials=trials, epochs=9, elapsed_seconds=elapsed)
    assert (message is not None) is is_reported
    assert message is None or f"{trials} of 6 trials begun. More time: --resume s --hours H" in message
