"""When a storm strikes: pure arithmetic on a seed.

A moment in a driver's start-up is told in seconds. One in its work is told from its first epoch on, stretched
by how much later than usual that came, so that a busy machine shifts no blow from the work to the start-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Moment", "Pace", "Plan", "draw_plan", "moment"]

#: Share of the work that a life is expected to have at least, when earlier ones should have done it all.
LEAST_LEFT = 0.1

#: Share of all moments that fall into a driver's start-up, before its first epoch.
STARTUP_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long an undisturbed search takes, seconds: to its first epoch, and from there to its exit."""

    startup: float
    work: float

    def slowness(self, first_epoch: float) -> float:
        """How many times longer than usual a driver takes whose first epoch came so late; at least 1."""
        return max(first_epoch / self.startup, 1.0)


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
    """When in a life something happens."""

    seconds: float
    after_first_epoch: bool
    """Counted from the first epoch trained in this life; else from the driver's start."""

    def is_due(self, seconds: float, first_epoch: float | None, pace: Pace) -> bool:
        """Whether it has come, ``seconds`` after the driver's start.

        >>> pace = Pace(startup=5, work=10)
        >>> late = Moment(seconds=2, after_first_epoch=True)
        >>> late.is_due(99, None, pace), late.is_due(13, 10, pace), late.is_due(14, 10, pace)
        (False, False, True)
        """
        if not self.after_first_epoch:
            return seconds >= self.seconds
        if first_epoch is None:
            return False
        return seconds - first_epoch >= self.seconds * pace.slowness(first_epoch)


def draw_plan(seed: int, *, kills: int, worker_kills: int) -> Plan:
    """The plan of search ``seed``: ``kills`` drivers, and ``worker_kills`` trial processes over all lives."""
    rng = np.random.default_rng(seed)
    drivers = tuple(rng.random(kills).tolist())
    lives = rng.integers(kills + 1, size=worker_kills)
    moments = rng.random(worker_kills)
    workers = tuple(tuple(sorted(moments[lives == life].tolist())) for life in range(kills + 1))
    return Plan(seed=seed, driver_kills=drivers, worker_kills=workers)


def moment(share: float, pace: Pace, worked: float) -> Moment:
    """The moment at ``share`` of a life that begins when ``worked`` seconds of the work are done.

    The first third of the shares is its start-up, the rest its work and its end, however long each takes.

    >>> moment(0.25, Pace(startup=4, work=10), worked=5)
    Moment(seconds=3.0, after_first_epoch=False)
    >>> moment(0.8, Pace(startup=4, work=10), worked=5)
    Moment(seconds=3.5, after_first_epoch=True)
    """
    if share < STARTUP_SHARE:
        return Moment(seconds=share / STARTUP_SHARE * pace.startup, after_first_epoch=False)
    left = pace.work * max(1 - worked / pace.work, LEAST_LEFT)
    later = (share - STARTUP_SHARE) / (1 - STARTUP_SHARE)
    return Moment(seconds=round(later * left, 3), after_first_epoch=True)
