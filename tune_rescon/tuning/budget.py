"""The budget of a search.

The hours count all runs of the search together. The space may have fewer points than the budget has trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tune_rescon.errors import counted
from tune_rescon.spaces import Budget

__all__ = ["BudgetPlan", "deadline", "exhausted_message", "spent_message", "stage_shares"]

#: Share of the budget for new trials.
SCREENING: Final = 0.45
#: The same if later ranks do not confirm those at the first rung. The rest then finishes more trials.
UNCONFIRMED_SCREENING: Final = 0.2
#: Share of the rest for the middle stages.
MIDDLE: Final = 0.3


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """The budget of a search as the rule ``auto`` plans it."""

    trials: int
    """Largest number of trials that are started."""
    epochs: int | None = None
    """Largest number of epochs of all trials together; None for no limit."""
    seconds: float | None = None
    """The wall time of the search in seconds; None for no limit."""
    slots: int = 1
    """Number of trials that run at once."""

    def max_concurrent(self, last: int) -> int | None:
        """Return the largest number of trials that should run at once. None for all slots.

        With a budget of epochs, this is the number of full trainings that the budget allows. With more trials
        at once, much of the budget would be committed before there are values to decide by. A budget of hours
        has no limit, because the hours of an idle slot are lost.

        Args:
            last: The last epoch of a trial.

        >>> BudgetPlan(trials=128, epochs=560, slots=8).max_concurrent(140)
        4
        """
        if self.seconds is not None or self.epochs is None:
            return None
        return max(1, math.ceil(self.epochs / last))


def stage_shares(stages: int, screening: float = SCREENING) -> tuple[float, ...]:
    """Return the share of the budget of each stage: screening, the middle stages and the final stage.

    Args:
        stages: Number of stages.
        screening: The share of the first stage. It is all of the budget if there is no other stage.

    >>> [round(share, 3) for share in stage_shares(3)]
    [0.45, 0.165, 0.385]
    >>> stage_shares(1)
    (1.0,)
    """
    if stages == 1:
        return (1.0,)
    rest, middle = 1 - screening, stages - 2
    between = rest * MIDDLE / middle if middle else 0.0
    return (screening, *[between] * middle, rest - between * middle)


def deadline(hours: float | None, *, elapsed_seconds: float, now: float) -> float | None:
    """Return the time at which trials must end, in seconds on the clock of ``now``.

    If a search is resumed with a larger budget, only the unused part of it remains.

    Args:
        hours: The budget in hours. None for no limit.
        elapsed_seconds: Seconds of the budget that are used, including earlier runs.
        now: The current time in seconds.

    Returns:
        The deadline, or None if ``hours`` is None.

    >>> deadline(2.0, elapsed_seconds=1800.0, now=100.0)
    5500.0
    """
    return None if hours is None else now + hours * 3600 - elapsed_seconds


def spent_message(
    budget: Budget, *, name: str, trials: int, epochs: int, elapsed_seconds: float
) -> str | None:
    """Return a message about a search whose hours or epochs ended it before all of its trials began.

    Args:
        budget: The budget of the search.
        name: The name of the search.
        trials: Number of trials that have begun, in all runs of the search.
        epochs: Number of epochs that they have run together.
        elapsed_seconds: The time of all runs.

    Returns:
        The message, or None if neither hours nor epochs ended the search.

    >>> used = {"name": "a", "trials": 12, "epochs": 498, "elapsed_seconds": 7300.0}
    >>> spent_message(Budget(trials=128, hours=2.0), **used)
    'a has used its 2 hours, with 12 of 128 trials begun. More time: --resume a --hours H, with H over 2.'
    >>> print(spent_message(Budget(trials=128, epochs=500), **used))
    a has run 498 of its 500 epochs, with 12 of 128 trials begun. More: --resume a --set budget.epochs=E.
    """
    if trials >= budget.trials:
        return None
    begun = f"with {trials} of {counted(budget.trials, 'trial')} begun"
    if budget.hours is not None and elapsed_seconds >= budget.hours * 3600:
        return (
            f"{name} has used its {counted(budget.hours, 'hour')}, {begun}."
            f" More time: --resume {name} --hours H, with H over {budget.hours:g}."
        )
    if budget.epochs is None:
        return None
    return (
        f"{name} has run {epochs} of its {counted(budget.epochs, 'epoch')}, {begun}."
        f" More: --resume {name} --set budget.epochs=E."
    )


def exhausted_message(trials: int, total: int) -> str:
    """Return a message about a search whose space is exhausted after ``trials`` of its ``total`` trials.

    >>> exhausted_message(6, 24).partition(".")[0]
    'The space is exhausted: all of its configurations have run, in 6 of 24 trials'
    """
    return (
        f"The space is exhausted: all of its configurations have run, in {trials} of"
        f" {counted(total, 'trial')}."
        " To run them again with other training seeds: --set sampler.repeats=true."
    )
