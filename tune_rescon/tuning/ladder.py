"""The rungs a space file asks for."""

from __future__ import annotations

from tune_rescon.spaces import Space
from tune_rescon.tuning.rungs import RungLadder, rungs

__all__ = ["ladder_levels", "make_ladder"]


def ladder_levels(space: Space) -> tuple[int, ...]:
    """The rungs of a space, epochs; only the last one where no scheduler stops trials."""
    if space.scheduler.type == "none":
        return (space.fidelity.max,)
    return rungs(space.fidelity.min, space.fidelity.max, space.scheduler.reduction_factor)


def make_ladder(space: Space) -> RungLadder:
    """An empty ladder for a search of ``space``."""
    return RungLadder(
        levels=ladder_levels(space),
        reduction_factor=space.scheduler.reduction_factor,
        maximize=space.metric.mode == "max",
    )
