"""When failing trials end a search, and the message about it."""

from __future__ import annotations

import pytest

from tune_rescon.config import TrialState
from tune_rescon.tuning import TrialRecord
from tune_rescon.tuning.ended_trials import FailureStreak, shared_cause


def trial(
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
    results = [streak.add(trial(TrialState(state))) for state in states]
    assert (results[-1] is not None) is ends
    assert all(text is None for text in results[:-1])


@pytest.mark.parametrize(
    ("failed", "message"),
    [
        (
            [trial(error="Traceback\nValueError: no.", depth=92, lr=x) for x in (0.1, 0.2)],
            "2 trials in a row failed, all with ValueError: no. All had depth=92.",
        ),
        (
            [trial(error=error, lr=error) for error in ("A: a", "B: b")],
            "2 trials in a row failed, the last with B: b.",
        ),
        (
            [trial(error=error, lr=0.1) for error in ("A: a", "B: b", "C: c")],
            "3 trials in a row failed, the last with C: c. All had lr=0.1.",
        ),
        (
            # Two trials share the depth and two the rate, but no value is common to all three.
            [trial(depth=92, lr=0.1), trial(depth=92), trial(lr=0.1)],
            "3 trials in a row failed, all with E.",
        ),
        ([trial(error=None)], "1 trial in a row failed, all with no message."),
    ],
)
def test_the_message_names_what_the_failures_share(failed: list[TrialRecord], message: str) -> None:
    assert shared_cause(failed) == message
