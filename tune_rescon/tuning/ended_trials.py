"""The consequences of ended trials: checkpoints to keep, configurations to skip, a search to end."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.errors import counted
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import FAILED_STATES, TrialRecord, best_by_value

__all__ = [
    "CHECKPOINTS_KEPT",
    "MAX_CONSECUTIVE_FAILURES",
    "CheckpointRetention",
    "FailureStreak",
    "MemoryFailures",
    "shared_cause",
    "top_k_checkpoints",
]

#: Number of failures in a row after which the search stops, because the next trial would fail too.
MAX_CONSECUTIVE_FAILURES: Final = 5

#: Number of the best trials whose checkpoints are kept, so that a long search does not fill a disk.
CHECKPOINTS_KEPT: Final = 5


def top_k_checkpoints(ended: Iterable[TrialRecord], *, keep: int | None = CHECKPOINTS_KEPT) -> frozenset[int]:
    """Return the numbers of the ``keep`` best trials that ended with a finite value and did not fail.

    The trial with the best value is always included. If it was stopped so early that ``keep`` trials with
    more epochs rank above it, one more trial is returned: see :func:`.best_in_hand`.

    If ``keep`` is None, return the numbers of all such trials.
    """
    evaluated = [trial for trial in ended if trial.best_epoch and trial.state not in FAILED_STATES]
    kept = sorted(evaluated, key=TrialRecord.rank_key)[:keep]
    best = best_by_value(evaluated)
    return frozenset(trial.number for trial in (*kept, *([] if best is None else [best])))


class CheckpointRetention:
    """Deletes the checkpoints of trials that are no longer among the best."""

    def __init__(
        self, record: StudyRecord, prune: Callable[[int, str | None], None], *, keep: int | None
    ) -> None:
        """Keep no checkpoint yet; :meth:`start` must follow.

        Args:
            record: The durable record.
            prune: Deletes all checkpoints of a trial except the given file.
            keep: See :func:`top_k_checkpoints`.
        """
        self._record = record
        self._prune = prune
        self._keep = keep
        self._kept: frozenset[int] = frozenset()

    def start(self, trials: Iterable[TrialRecord]) -> None:
        """Keep the checkpoints of the best trials that have ended."""
        ended = (trial for trial in trials if trial.state.is_final)
        self._kept = top_k_checkpoints(ended, keep=self._keep)

    def trial_ends(self, ended: TrialRecord) -> str | None:
        """Delete the checkpoints that are no longer among the best, when a trial ends.

        If a trial is among the best but reported no checkpoint, writing or copying it has failed. The
        checkpoints that the trial already has are then kept.

        Returns:
            The trial's checkpoint if it is among the best, otherwise None.
        """
        number = ended.number
        # The best of all trials are among the previous best and this trial.
        previous = (self._record.trial(n) for n in self._kept)
        kept = top_k_checkpoints((*previous, ended), keep=self._keep)
        survives = ended.checkpoint if number in kept else None
        if survives is not None or number not in kept:
            self._prune(number, survives)
        for loser in self._kept - kept:
            self._prune(loser, None)
            self._record.forget_checkpoint(loser)
        self._kept = kept
        return survives


class MemoryFailures:
    """The trials that ran out of memory. A configuration that needs the same memory is not trained again."""

    def __init__(self, same_memory: Callable[[Mapping[str, Any]], Hashable]) -> None:
        """Start with no trials.

        ``same_memory`` returns an equal key for configurations (plain values) that need the same memory, and
        None if the memory is unknown.
        """
        self._same_memory = same_memory
        self._first: dict[Hashable, int] = {}

    def add(self, trials: Iterable[TrialRecord]) -> None:
        """Record those of ``trials`` that ran out of memory."""
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
    """The trials that have failed in a row."""

    def __init__(self) -> None:
        """Start with no failures."""
        self._failed: list[TrialRecord] = []

    def add(self, trial: TrialRecord) -> str | None:
        """Count an ended trial. If too many have failed in a row, return what they have in common."""
        if trial.state is not TrialState.FAILED:
            # "Diverged" and "out of memory" are valid outcomes, and a trial that ended well shows that other
            # trials can end well too.
            self._failed.clear()
            return None
        self._failed.append(trial)
        return shared_cause(self._failed) if len(self._failed) >= MAX_CONSECUTIVE_FAILURES else None


def shared_cause(failed: Sequence[TrialRecord]) -> str:
    """Describe what failed trials have in common: the error, or the values that all of them had."""
    last_lines = {_last_line(trial) for trial in failed}
    cause = (
        f"all with {last_lines.pop()}" if len(last_lines) == 1 else f"the last with {_last_line(failed[-1])}"
    )
    shared = _shared_values(failed)
    values = f" All had {', '.join(f'{k}={v}' for k, v in shared.items())}." if shared else ""
    return f"{counted(len(failed), 'trial')} in a row failed, {cause}.{values}"


def _last_line(trial: TrialRecord) -> str:
    lines = (trial.error or "").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "no message"


def _shared_values(failed: Sequence[TrialRecord]) -> dict[str, object]:
    first, *others = failed
    return {
        name: value
        for name, value in first.parameters.items()
        if all(name in trial.parameters and trial.parameters[name] == value for trial in others)
    }
