"""When failures stop being single trials' and become the search's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tune_rescon.config import TrialState
from tune_rescon.tuning.record.summary import TrialSummary

__all__ = ["MOST_IN_A_ROW", "FailureStreak", "shared_cause"]

#: Trials that fail one after the other before the search stops: what the next would do is known by then.
MOST_IN_A_ROW: Final = 5


class FailureStreak:
    """The trials that failed since the last one that did not."""

    def __init__(self, most: int = MOST_IN_A_ROW) -> None:
        """``most``: failures in a row that are too many."""
        self._most = most
        self._failed: list[TrialSummary] = []

    def add(self, trial: TrialSummary) -> str | None:
        """Count a trial that ended; what the failed ones share if they are too many now."""
        if trial.state is not TrialState.FAILED:
            # Diverged and out of memory are answers, and a trial that ended well says that others can.
            self._failed.clear()
            return None
        self._failed.append(trial)
        return shared_cause(self._failed) if len(self._failed) >= self._most else None


def shared_cause(failed: Sequence[TrialSummary]) -> str:
    """What failed trials have in common: the error, or the values that all of them had."""
    last_lines = {_last_line(trial) for trial in failed}
    said = f"all said: {last_lines.pop()}" if len(last_lines) == 1 else _differing(failed)
    shared = _shared_values(failed)
    values = f" All had {', '.join(f'{k}={v}' for k, v in shared.items())}." if shared else ""
    return f"{len(failed)} trials in a row failed; {said}.{values}"


def _last_line(trial: TrialSummary) -> str:
    lines = (trial.error or "").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "nothing"


def _differing(failed: Sequence[TrialSummary]) -> str:
    return "the last said: " + _last_line(failed[-1])


def _shared_values(failed: Sequence[TrialSummary]) -> dict[str, object]:
    first, *others = failed
    return {
        name: value
        for name, value in first.parameters.items()
        if all(name in trial.parameters and trial.parameters[name] == value for trial in others)
    }
