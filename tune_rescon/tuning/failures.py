"""What failed trials teach the rest of a search: which networks need too much memory, and when to end it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.errors import counted
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["MOST_IN_A_ROW", "FailureStreak", "MemoryFailures", "shared_cause"]

#: Number of trials that may fail in a row before the search stops. By then the next trial is expected to fail
#: as well.
MOST_IN_A_ROW: Final = 5


class MemoryFailures:
    """The trials that ran out of memory. A configuration that needs the same memory is not trained again."""

    def __init__(self, same_memory: Callable[[Mapping[str, Any]], Hashable]) -> None:
        """Start with no trials.

        Args:
            same_memory: Returns an equal key for configurations (plain values) that need the same memory.
                A key of None means that the memory is unknown.
        """
        self._same_memory = same_memory
        self._first: dict[Hashable, int] = {}

    def add(self, trials: Iterable[TrialRecord]) -> None:
        """Take the trials into account that ran out of memory."""
        for trial in trials:
            if trial.state is TrialState.OUT_OF_MEMORY and trial.origin is not None:
                key = self._same_memory(trial.origin.config)
                if key is not None:
                    self._first.setdefault(key, trial.number)

    def __bool__(self) -> bool:
        """Return whether any configuration is known not to fit."""
        return bool(self._first)

    def contains(self, config: Mapping[str, Any]) -> bool:
        """Return whether a configuration is known not to fit."""
        return self.same_as(config) is not None

    def same_as(self, config: Mapping[str, Any]) -> int | None:
        """Return the first trial that ran out of the memory that ``config`` needs, or None."""
        return self._first.get(self._same_memory(config)) if self._first else None


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
    cause = f"all with {last_lines.pop()}" if len(last_lines) == 1 else _last_error(failed)
    shared = _shared_values(failed)
    values = f" All had {', '.join(f'{k}={v}' for k, v in shared.items())}." if shared else ""
    return f"{counted(len(failed), 'trial')} in a row failed, {cause}.{values}"


def _last_line(trial: TrialRecord) -> str:
    lines = (trial.error or "").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "no message"


def _last_error(failed: Sequence[TrialRecord]) -> str:
    return "the last with " + _last_line(failed[-1])


def _shared_values(failed: Sequence[TrialRecord]) -> dict[str, object]:
    first, *others = failed
    return {
        name: value
        for name, value in first.parameters.items()
        if all(name in trial.parameters and trial.parameters[name] == value for trial in others)
    }
