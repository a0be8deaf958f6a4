"""The interface of a stopping rule, the ``scheduler`` of a space file: what it observes and decides."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

__all__ = ["Decision", "Observation", "StoppingRule", "Verdict"]


class Decision(Enum):
    """Decision about a trial after an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    """The rule, the trial's ``patience``, a request or the end of the hours stops the trial early."""
    PAUSE = "pause"
    """The trial waits at its rung for a promotion. Its slot is free in the meantime."""
    FINISH = "finish"
    """The trial reached the last epoch."""
    DIVERGED = "diverged"
    """The trial's value is not finite."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A trial's metric after an epoch."""

    number: int
    """The trial's number."""
    epoch: int
    """The epoch, counted from 1."""
    value: float
    group: Hashable = None
    """Trials of different groups (say, image sizes) are never compared."""
    cost: float = 0.0
    """The second objective. Smaller is better. It is equal for all trials if the search has none."""
    tie_breaker: float = math.inf
    """The validation loss, which breaks ties between equal values; inf if unknown. Smaller is better."""
    seconds: float = 0.0
    """Duration of the epoch."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision, and the rank on which it is based.

    ``rank`` is the trial's rank, counted from 1, among the ``compared`` trials at epoch ``rung``. All three
    are 0 if no trials were compared.
    """

    decision: Decision
    rung: int = 0
    rank: int = 0
    compared: int = 0


class StoppingRule(Protocol):
    """Judges every epoch of every trial, in the order in which the epochs end.

    A rule is deterministic and does not read a clock. It receives the observations of one trial in the order
    of the trial's epochs, each exactly once. A resumed search first passes all recorded observations to its
    new rule (:meth:`replay`), with the trials in the order of their numbers, and notes which have ended
    (:meth:`ended`), before it calls any other method.

    Among trials with equal values, the one with the smaller loss ranks higher, and then the one with the
    lower number. Networks that learn nothing often report exactly the same accuracy; they must not pass a
    rung together.

    A rule that never pauses a trial and plans no budget can inherit the methods that have a body.
    """

    def judge(self, seen: Observation) -> Verdict:
        """Add an epoch to the rule's state and return the decision about its trial."""

    def replay(self, seen: Observation) -> None:
        """Add an epoch that was judged in an earlier run."""

    def set_elapsed(self, elapsed: float) -> None:
        """Set the elapsed seconds of a budget in hours. Called before each decision."""
        del elapsed

    def started(self, number: int) -> None:
        """Note that a trial runs: a new trial, a promoted trial, or one that is retried."""
        del number

    def pause_again(self, number: int) -> bool:
        """Pause a replayed trial again. Return False if this rule has no rung for it: it then continues."""
        del number
        return False

    def promote(self, *, force: bool = False) -> int | None:
        """Return one paused trial that may continue, and remove it from the paused trials.

        With ``force``, return the most promising paused trial even if no trial may continue. Return None if
        no trial can be promoted.
        """
        del force
        return None

    def may_start(self) -> bool:
        """Return whether a free slot may get a new trial, if :meth:`promote` has returned None."""
        return True

    def no_new_trials(self) -> None:
        """Note that no new trial can start any more, because every point of the space has run."""
        return

    def ended(self, number: int) -> None:
        """Note that a trial has ended, whatever its last verdict was. It is no longer paused."""
        del number

    def paused(self) -> tuple[int, ...]:
        """Return the numbers of the paused trials in ascending order."""
        return ()
