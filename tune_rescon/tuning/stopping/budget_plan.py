"""The budget of a search as the scheduler ``auto`` plans it, and the share of each stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["SCREENING", "UNCONFIRMED_SCREENING", "BudgetPlan", "stage_shares"]

#: Share of the budget for new trials.
SCREENING: Final = 0.45
#: The same if later ranks do not confirm those at the first rung. The rest then finishes more trials.
UNCONFIRMED_SCREENING: Final = 0.2
#: Share of the rest for the middle stages.
MIDDLE: Final = 0.3


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """The budget of a search."""

    trials: int
    """Largest number of trials that are started."""
    epochs: int | None = None
    """Largest number of epochs of all trials together; None for no limit."""
    seconds: float | None = None
    """Seconds that all runs of the search may take together; None for no limit."""
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
