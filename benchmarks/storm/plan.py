"""When a storm strikes: pure arithmetic on a seed.

A moment in a driver's start-up is told in seconds. One in its work is told in epochs trained, so that a busy
machine shifts no blow from the trials to what comes before or after them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Moment", "Pace", "Plan", "draw_plan", "moment"]

#: Share of all moments that fall into a driver's start-up, before its first epoch.
STARTUP_SHARE = 1 / 3

#: Epochs by which the last moments of a life come too late, as a share of all: they fall into its conclusion.
OVERTIME = 0.25

#: Seconds without an epoch after which a driver must have come to its conclusion.
QUIET = 1.5


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What an undisturbed search needs: seconds to its first epoch, and epochs from there."""

    startup: float
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One search's fate, as shares of a life in [0, 1), so that it fits a fast side and a slow one."""

    seed: int
    driver_kills: tuple[float, ...]
    """Of each life but the last: when its driver is killed."""
    worker_kills: tuple[tuple[float, ...], ...]
    """Of each life: when one of its trial processes is killed."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When in a life something happens: after ``seconds``, and with ``epochs`` epochs trained in it."""

    seconds: float
    epochs: int

    def is_due(self, seconds: float, epochs: int, quiet: float) -> bool:
        """Whether it has come, ``seconds`` after the driver's start and ``quiet`` ones after its last epoch.

        >>> late = Moment(seconds=0, epochs=30)
        >>> late.is_due(9, 29, 0.1), late.is_due(9, 30, 0.1), late.is_due(9, 29, 2.0), late.is_due(9, 0, 9)
        (False, True, True, False)
        """
        concluding = epochs > 0 and quiet >= QUIET
        return seconds >= self.seconds and (epochs >= self.epochs or concluding)


def draw_plan(seed: int, *, kills: int, worker_kills: int) -> Plan:
    """The plan of search ``seed``: ``kills`` drivers, and ``worker_kills`` trial processes over all lives."""
    rng = np.random.default_rng(seed)
    drivers = tuple(rng.random(kills).tolist())
    lives = rng.integers(kills + 1, size=worker_kills)
    moments = rng.random(worker_kills)
    workers = tuple(tuple(sorted(moments[lives == life].tolist())) for life in range(kills + 1))
    return Plan(seed=seed, driver_kills=drivers, worker_kills=workers)


def moment(share: float, pace: Pace, trained: int) -> Moment:
    """The moment at ``share`` of a life that begins when ``trained`` epochs are done.

    >>> pace = Pace(startup=4, epochs=40)
    >>> moment(0.25, pace, trained=20), moment(0.5, pace, trained=20), moment(0.99, pace, trained=20)
    (Moment(seconds=3.0, epochs=0), Moment(seconds=0.0, epochs=8), Moment(seconds=0.0, epochs=30))
    """
    if share < STARTUP_SHARE:
        return Moment(seconds=share / STARTUP_SHARE * pace.startup, epochs=0)
    left = max(pace.epochs - trained, 0) + OVERTIME * pace.epochs
    return Moment(seconds=0.0, epochs=1 + int((share - STARTUP_SHARE) / (1 - STARTUP_SHARE) * left))
