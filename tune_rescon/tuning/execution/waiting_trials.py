"""Who takes over the process of a trial that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ray.tune.experiment import Trial

__all__ = ["PATIENCE", "PATIENCE_AGAIN", "WaitingTrials"]

#: Seconds a trial waits for the process that was asked for it before it may have another's: more than one
#: needs to start, also on a machine with twenty times too much to do, or a cluster to grow by a node.
PATIENCE: Final = 600.0

#: And one that had a process, which died or went: its machine may not come back.
PATIENCE_AGAIN: Final = 20.0


class WaitingTrials:
    """The trials that have no process yet, first in first.

    Tune asks for a process for every trial that finds none free. A scheduler may then name who gets the next
    one that is free (``TrialScheduler.choose_trial_to_run``), and Tune takes back what it had asked for that
    trial, though that process may be about to start; the next new trial finds none free, and asks anew.
    Tune's own schedulers name the oldest. Where trials are shorter than the start of a process, the slots
    that began late so never get one: of 179 processes that were asked for, 6 came to run trials.

    With nobody named, a free process goes to a trial for which none was asked. But on a cluster that has
    fewer places than the search has slots (it has yet to grow), those that wait would do so until the search
    ends; so who has waited too long is named, and soon who has lost a process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds."""
        self._clock = clock
        self._waiting: list[tuple[float, Trial]] = []

    def add(self, trial: Trial, *, again: bool = False) -> None:
        """A new one of Tune's trials; ``again``: one of the search's that had a process before."""
        self._waiting.append((self._clock() + (PATIENCE_AGAIN if again else PATIENCE), trial))

    def overdue(self) -> Trial | None:
        """Who is to have the next process that is free, whatever was asked for it; None: nobody is named."""
        self._waiting = [(until, trial) for until, trial in self._waiting if trial.status == Trial.PENDING]
        now = self._clock()
        return next((trial for until, trial in self._waiting if now > until), None)
