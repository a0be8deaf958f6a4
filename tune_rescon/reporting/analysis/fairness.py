"""The epoch after which trials are compared: a stopped one is never compared as if it had finished."""

from __future__ import annotations

import math
from typing import Final

from tune_rescon.tuning import StudyResult

__all__ = ["shared_epoch", "values_at"]

#: Trials that make a comparison worth drawing.
ENOUGH: Final = 30


def values_at(result: StudyResult, epoch: int) -> dict[int, float]:
    """The finite values after ``epoch`` of the trials that came so far, by number."""
    reached = {t.number: t.values[epoch - 1] for t in result.trials if t.epochs >= epoch > 0}
    return {number: value for number, value in reached.items() if math.isfinite(value)}


def shared_epoch(result: StudyResult) -> int:
    """The highest rung that :data:`ENOUGH` trials have a value at, or else the one with most; 0: no value.

    Values there say more the higher it is, and compare more trials the lower it is.
    """
    counts = {level: len(values_at(result, level)) for level in {1, *result.levels}}
    populated = [level for level, count in counts.items() if count >= ENOUGH]
    most = max(counts, key=lambda level: (counts[level], level))
    return max(populated) if populated else most if counts[most] else 0
