"""The budget of a search.

The hours count all runs of the search together. The space may have fewer points than the budget has trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from tune_rescon.errors import counted

__all__ = [
    "BudgetPlan",
    "deadline",
    "epochs_spent_words",
    "exhausted_words",
    "spent_words",
    "stage_shares",
]

#: Share of the budget that is spent on new trials.
SCREENING: Final = 0.45
#: Share of the rest that the middle stages get.
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

    def most_at_once(self, last: int) -> int | None:
        """Return the largest number of trials that should run at once. None for all slots.

        With a budget of epochs, it is the number of full trainings in the budget. With more trials at once,
        much of the budget would be in flight before there are values to decide by. An epoch costs the same
        later. An hour does not wait, so that a budget of hours has no limit.

        Args:
            last: The last epoch of a trial.

        >>> BudgetPlan(trials=128, epochs=560, slots=8).most_at_once(140)
        4
        """
        if self.seconds is not None or self.epochs is None:
            return None
        return max(1, math.ceil(self.epochs / last))


def stage_shares(stages: int) -> tuple[float, ...]:
    """Return the share of the budget of each stage: screening, the middle stages and the final stage.

    >>> [round(share, 3) for share in stage_shares(3)]
    [0.45, 0.165, 0.385]
    >>> stage_shares(1)
    (1.0,)
    """
    if stages == 1:
        return (1.0,)
    rest, middle = 1 - SCREENING, stages - 2
    between = rest * MIDDLE / middle if middle else 0.0
    return (SCREENING, *[between] * middle, rest - between * middle)


def deadline(hours: float | None, *, driven: float, now: float) -> float | None:
    """Return the time at which trials must end, in seconds on the clock of ``now``.

    A resumed search that is given more hours has the difference left.

    Args:
        hours: The budget in hours. None for no limit.
        driven: Seconds of the budget that are used, including earlier runs.
        now: The current time in seconds.

    Returns:
        The deadline, or None if ``hours`` is None.

    >>> deadline(2.0, driven=1800.0, now=100.0)
    5500.0
    """
    return None if hours is None else now + hours * 3600 - driven


def spent_words(hours: float | None, *, driven: float, name: str, trials: int, total: int) -> str | None:
    """Return a message about a search that has used its hours before all of its trials began.

    Args:
        hours: The budget in hours. None for no limit.
        driven: Seconds of the budget that are used, including earlier runs.
        name: The name of the search.
        trials: Number of trials that have begun.
        total: Number of trials in the budget.

    Returns:
        The message, or None if hours remain or all trials have begun.

    >>> spent_words(2.0, driven=7300.0, name="a", trials=12, total=128)
    'The 2 hours of a are spent, with 12 of 128 trials begun. More time: --resume a --hours H, with H over 2.'
    >>> spent_words(1.0, driven=3700.0, name="a", trials=0, total=1).partition(".")[0]
    'The 1 hour of a is spent, with 0 of 1 trial begun'
    """
    if hours is None or driven < hours * 3600 or trials >= total:
        return None
    spent = f"{counted(hours, 'hour')} of {name} {'is' if hours == 1 else 'are'} spent"
    return (
        f"The {spent}, with {trials} of {counted(total, 'trial')} begun."
        f" More time: --resume {name} --hours H, with H over {hours:g}."
    )


def epochs_spent_words(epochs: int, *, used: int, name: str, trials: int, total: int) -> str | None:
    """Return a message about a search whose budget of epochs ended it before all of its trials began.

    Args:
        epochs: The budget in epochs.
        used: Epochs that all trials have run together.
        name: The name of the search.
        trials: Number of trials that have begun.
        total: Number of trials in the budget.

    Returns:
        The message, or None if all trials have begun.

    >>> print(epochs_spent_words(500, used=498, name="a", trials=61, total=128))
    a has run 498 of its 500 epochs, with 61 of 128 trials begun. More: --resume a --set budget.epochs=E.
    """
    if trials >= total:
        return None
    return (
        f"{name} has run {used} of its {counted(epochs, 'epoch')}, with {trials} of {counted(total, 'trial')}"
        f" begun. More: --resume {name} --set budget.epochs=E."
    )


def exhausted_words(trials: int, total: int) -> str:
    """Return a message about a search whose space is exhausted after ``trials`` of its ``total`` trials.

    >>> exhausted_words(6, 24).partition(".")[0]
    'The space is exhausted: all of its configurations have run, in 6 of 24 trials'
    """
    return (
        f"The space is exhausted: all of its configurations have run, in {trials} of"
        f" {counted(total, 'trial')}."
        " To run them again with other training seeds: --set sampler.repeats=true."
    )
