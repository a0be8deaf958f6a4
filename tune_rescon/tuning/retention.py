"""Which checkpoints a search keeps: those of its best trials. The others are deleted as trials end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from tune_rescon.config import TrialState
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import TrialRecord, best_by_value

__all__ = ["CHECKPOINTS_KEPT", "CheckpointRetention", "top_k_checkpoints"]

#: Number of the best trials whose checkpoints are kept, so that a long search does not fill a disk.
CHECKPOINTS_KEPT: Final = 5


def top_k_checkpoints(ended: Iterable[TrialRecord], *, keep: int | None = CHECKPOINTS_KEPT) -> frozenset[int]:
    """Return the numbers of the ``keep`` best trials that ended with a finite value.

    The trial with the best value is always among them. It is one more if it was stopped so early that it
    ranks below ``keep`` trials with more epochs: see :func:`.best_in_hand`.

    If ``keep`` is None, return the numbers of all trials that ended with a finite value.
    """
    evaluated = [trial for trial in ended if trial.best_epoch]
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

    def trial_ends(self, number: int, state: TrialState, checkpoint: str | None) -> str | None:
        """Delete the checkpoints that are no longer among the best, when a trial ends in ``state``.

        If a finished or stopped trial among the best names no checkpoint, it could not write or send the
        checkpoint. Its existing checkpoints are kept, because the trial has not fallen out of the best.

        Returns:
            The given checkpoint if this trial is among the best, otherwise None.
        """
        ended = replace(self._record.trial(number), state=state)
        # The best of all trials are among the previous best and this trial.
        previous = (self._record.trial(n) for n in self._kept)
        kept = top_k_checkpoints((*previous, ended), keep=self._keep)
        ended_well = state in (TrialState.FINISHED, TrialState.STOPPED)
        survives = checkpoint if number in kept else None
        if survives is not None or number not in kept or not ended_well:
            self._prune(number, survives)
        for loser in self._kept - kept:
            self._prune(loser, None)
            self._record.forget_checkpoint(loser)
        self._kept = kept
        return survives
