"""The stopping rule a space file asks for."""

from __future__ import annotations

from tune_rescon.spaces import Space
from tune_rescon.tuning.rules.median import MedianRule
from tune_rescon.tuning.rules.rungs import RungLadder, rungs
from tune_rescon.tuning.rules.stopping import StoppingRule

__all__ = ["ladder_levels", "make_rule"]


def ladder_levels(space: Space) -> tuple[int, ...]:
    """The rungs of a space, epochs; only the last one where there are none."""
    if space.scheduler.type != "asha":
        return (space.fidelity.max,)
    return rungs(space.fidelity.min, space.fidelity.max, space.scheduler.reduction_factor)


def make_rule(space: Space) -> StoppingRule:
    """A rule that has seen nothing yet, for a search of ``space``."""
    maximize = space.metric.mode == "max"
    if space.scheduler.type == "median":
        return MedianRule(first=space.fidelity.min, last=space.fidelity.max, maximize=maximize)
    return RungLadder(
        levels=ladder_levels(space),
        reduction_factor=space.scheduler.reduction_factor,
        maximize=maximize,
        pauses=space.scheduler.variant == "promote",
    )
