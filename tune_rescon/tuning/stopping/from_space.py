"""The stopping rule that a space file names under ``scheduler``, and the rungs that it may have."""

from __future__ import annotations

from tune_rescon.spaces import Space
from tune_rescon.tuning.stopping.asha import SuccessiveHalving, asha_rungs
from tune_rescon.tuning.stopping.auto_rule import AutoRule
from tune_rescon.tuning.stopping.budget_plan import BudgetPlan
from tune_rescon.tuning.stopping.first_rung import first_rungs
from tune_rescon.tuning.stopping.median import MedianRule
from tune_rescon.tuning.stopping.rule import StoppingRule

__all__ = ["make_stopping_rule", "possible_rungs"]


def possible_rungs(space: Space) -> tuple[int, ...]:
    """Return the rungs of a space, in epochs. The last one is the last epoch.

    The rule ``auto`` chooses its rungs while the search runs. For it, these are the epochs among which it
    chooses the first rung.
    """
    low, high = space.fidelity.min, space.fidelity.max
    if space.scheduler.type == "asha":
        return asha_rungs(low, high, space.scheduler.reduction_factor)
    if space.scheduler.type == "auto":
        return tuple(sorted({*first_rungs(low, high), high}))
    return (high,)


def make_stopping_rule(space: Space, *, slots: int = 1) -> StoppingRule:
    """Return a stopping rule for a search of ``space`` that has not seen any value yet.

    Args:
        space: The space.
        slots: Number of trials that run at once.
    """
    maximize = space.metric.mode == "max"
    low, last = space.fidelity.min, space.fidelity.max
    if space.scheduler.type == "median":
        return MedianRule(first=low, last=last, maximize=maximize)
    if space.scheduler.type == "auto":
        hours = space.budget.hours
        plan = BudgetPlan(
            trials=space.budget.trials,
            epochs=space.budget.epochs,
            seconds=None if hours is None else hours * 3600,
            slots=slots,
        )
        return AutoRule(low=low, last=last, maximize=maximize, budget=plan)
    return SuccessiveHalving(
        rungs=possible_rungs(space),
        reduction_factor=space.scheduler.reduction_factor,
        maximize=maximize,
        pauses=space.scheduler.variant == "promote",
    )
