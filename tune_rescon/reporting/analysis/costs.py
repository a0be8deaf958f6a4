"""Accuracy against what it costs, for each cost there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tune_rescon.tuning import StudyResult, TrialSummary, pareto_front

__all__ = ["CostFront", "cost_fronts"]


@dataclass(frozen=True, kw_only=True)
class CostFront:
    """The trials with a finite value, by one cost."""

    title: str
    points: tuple[tuple[TrialSummary, float], ...]
    """Each trial and its cost."""
    front: tuple[tuple[TrialSummary, float], ...]
    """Those of the winner's epochs that no other of them dominates, the cheapest first."""


def cost_fronts(result: StudyResult) -> tuple[CostFront, ...]:
    """By GMACs, parameters and compute; one that is known of no trial is left out."""
    costs: list[tuple[str, Callable[[TrialSummary], float]]] = [
        ("GMACs an image", lambda trial: result.costs[trial.number].gmacs),
        ("million parameters", lambda trial: result.costs[trial.number].params_m),
        (f"{result.device}-hours", result.compute_hours),
    ]
    fronts = (_front(result, title, cost) for title, cost in costs)
    return tuple(front for front in fronts if front.points)


def _front(result: StudyResult, title: str, cost: Callable[[TrialSummary], float]) -> CostFront:
    # By the value that trials are ranked by, so that the front and the winner are where the table has them.
    priced = {t.number: (t, cost(t)) for t in result.trials if math.isfinite(t.value)}
    priced = {number: point for number, point in priced.items() if math.isfinite(point[1])}
    furthest = result.best.epochs if result.best else 0
    sign = 1 if result.maximize else -1
    peers = {
        n: (sign * trial.value, spent) for n, (trial, spent) in priced.items() if trial.epochs == furthest
    }
    front = tuple(priced[number] for number in pareto_front(peers))
    return CostFront(title=title, points=tuple(priced.values()), front=front)
