"""Ended trials: the checkpoints that a search keeps, and the failures that end it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.config import TrialState
from tune_rescon.tuning import TrialRecord
from tune_rescon.tuning.ended_trials import CHECKPOINTS_KEPT, FailureStreak, shared_cause, top_k_checkpoints


def trial(number: int, *values: float, state: TrialState = TrialState.STOPPED) -> TrialRecord:
    return TrialRecord(
        number=number,
        state=state,
        parameters={},
        metric="val_accuracy",
        maximize=True,
        values=values,
    )


CURVES = st.lists(st.lists(st.floats(allow_nan=True), max_size=4), max_size=12)


@pytest.mark.parametrize(
    ("trials", "kept"),
    [
        ([], set()),
        ([trial(0), trial(1, math.nan)], set()),
        ([trial(0, 0.9), trial(1, 0.1, 0.2), trial(2, 0.1, 0.3)], {0, 1, 2}),
        ([trial(0, 0.2), trial(1, 0.1, 0.2), trial(2, 0.1, 0.3)], {1, 2}),
        ([trial(0, 0.9), trial(1, 0.8), trial(2, 0.1, 0.2), trial(3, 0.1, 0.3)], {0, 2, 3}),
        ([trial(0, 0.9), trial(1, 0.9), trial(2, 0.1, 0.2), trial(3, 0.1, 0.3)], {0, 2, 3}),
        # Of equal values, the one with more epochs counts.
        ([trial(0, 0.3), trial(1, 0.1, 0.2), trial(2, 0.1, 0.3)], {1, 2}),
        ([trial(0, 0.9, state=TrialState.FAILED), trial(1, 0.1, 0.2), trial(2, 0.1, 0.3)], {1, 2}),
        ([trial(0, 0.9), trial(1, 0.8), trial(2, 0.7)], {0, 1}),
        ([trial(0, 0.9, math.nan), trial(1, 0.1), trial(2, 0.2)], {1, 2}),
    ],
)
def test_the_highest_ranked_trials_and_the_best_value_are_kept(
    trials: list[TrialRecord], kept: set[int]
) -> None:
    assert top_k_checkpoints(trials, keep=2) == kept


@given(CURVES)
def test_no_more_are_kept_than_the_limit_and_none_without_a_value(curves: list[list[float]]) -> None:
    trials = [trial(number, *values) for number, values in enumerate(curves)]
    kept = top_k_checkpoints(trials)
    with_value = {record.number for record in trials if any(math.isfinite(value) for value in record.values)}
    assert kept <= with_value
    assert min(CHECKPOINTS_KEPT, len(with_value)) <= len(kept) <= CHECKPOINTS_KEPT + 1


@given(CURVES)
def test_without_a_limit_all_with_a_value_are_kept(curves: list[list[float]]) -> None:
    trials = [trial(number, *values) for number, values in enumerate(curves)]
    assert top_k_checkpoints(trials, keep=None) == {record.number for record in trials if record.best_epoch}


@given(CURVES)
def test_a_dropped_trial_is_never_kept_again(curves: list[list[float]]) -> None:
    trials = [trial(number, *values) for number, values in enumerate(curves)]
    dropped: set[int] = set()
    for count in range(len(trials) + 1):
        kept = top_k_checkpoints(trials[:count], keep=3)
        assert not kept & dropped, "its checkpoint has been deleted"
        dropped |= {record.number for record in trials[:count] if record.best_epoch} - kept


def failed_trial(
    state: TrialState = TrialState.FAILED, error: str | None = "E", **parameters: object
) -> TrialRecord:
    return TrialRecord(
        number=0,
        state=state,
        parameters=parameters,
        metric="val_accuracy",
        maximize=True,
        values=(),
        error=error,
    )


@pytest.mark.parametrize(
    ("states", "ends"),
    [
        (["failed"] * 4, False),
        (["failed"] * 5, True),
        (["failed"] * 4 + ["stopped"] + ["failed"] * 4, False),
        (["failed"] * 4 + ["diverged", "failed"], False),
        (["failed", "out_of_memory"] + ["failed"] * 4, False),
        (["finished"] + ["failed"] * 5, True),
    ],
)
def test_only_failures_in_a_row_count(states: list[str], ends: bool) -> None:
    streak = FailureStreak()
    results = [streak.add(failed_trial(TrialState(state))) for state in states]
    assert (results[-1] is not None) is ends
    assert all(text is None for text in results[:-1])


@pytest.mark.parametrize(
    ("failed", "message"),
    [
        (
            [failed_trial(error="Traceback\nValueError: no.", depth=92, lr=x) for x in (0.1, 0.2)],
            "2 trials in a row failed, all with ValueError: no. All had depth=92.",
        ),
        (
            [failed_trial(error=error, lr=error) for error in ("A: a", "B: b")],
            "2 trials in a row failed, the last with B: b.",
        ),
        (
            [failed_trial(error=error, lr=0.1) for error in ("A: a", "B: b", "C: c")],
            "3 trials in a row failed, the last with C: c. All had lr=0.1.",
        ),
        (
            # Two trials share the depth and two the rate, but no value is common to all three.
            [failed_trial(depth=92, lr=0.1), failed_trial(depth=92), failed_trial(lr=0.1)],
            "3 trials in a row failed, all with E.",
        ),
        ([failed_trial(error=None)], "1 trial in a row failed, all with no message."),
    ],
)
def test_the_message_names_what_the_failures_share(failed: list[TrialRecord], message: str) -> None:
    assert shared_cause(failed) == message
