"""Trials that fail one after the other, which end a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tune_rescon.config import TrialState
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["MOST_IN_A_ROW", "FailureStreak", "shared_cause"]

#: Number of trials that may fail in a row before the search stops. By then the next trial is expected to fail
#: as well.
MOST_IN_A_ROW: Final = 5


class FailureStreak:
    """The trials that have failed since the last trial that did not fail."""

    def __init__(self, most: int = MOST_IN_A_ROW) -> None:
        """Start with no failures. ``most`` failures in a row are too many."""
        self._most = most
        self._failed: list[TrialRecord] = []

    def add(self, trial: TrialRecord) -> str | None:
        """Count an ended trial. If too many have failed in a row, return what they have in common."""
        if trial.state is not TrialState.FAILED:
            # "Diverged" and "out of memory" are valid outcomes, and a trial that ended well shows that other
            # trials can end well too.
            self._failed.clear()
            return None
        self._failed.append(trial)
        return shared_cause(self._failed) if len(self._failed) >= self._most else None


def shared_cause(failed: Sequence[TrialRecord]) -> str:
    """Describe what failed trials have in common: the error, or the values that all of them had."""
    last_lines = {_last_line(trial) for trial in failed}
    cause = f"all said: {last_lines.pop()}" if len(last_lines) == 1 else _last_error(failed)
    shared = _shared_values(failed)
    values = f" All had {', '.join(f'{k}={v}' for k, v in shared.items())}." if shared else ""
    return f"{len(failed)} trials in a row failed; {cause}.{values}"


def _last_line(trial: TrialRecord) -> str:
    lines = (trial.error or "").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "nothing"


def _last_error(failed: Sequence[TrialRecord]) -> str:
    return "the last said: " + _last_line(failed[-1])


def _shared_values(failed: Sequence[TrialRecord]) -> dict[str, object]:
    first, *others = failed
    return {
        name: value
        for name, value in first.parameters.items()
        if all(name in trial.parameters and trial.parameters[name] == value for trial in others)
    }
