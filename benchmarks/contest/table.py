"""Outcomes as a markdown table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from table import estimate_text

from contest.outcome import NEAR, Outcome

__all__ = ["table"]

_HEAD = (
    f"| {{landscape}} | quality, % of best known | against the first | epochs until within {NEAR:.0%} "
    "| found by | epochs in all | diverged | hours |\n|---|---|---|---|---|---|---|---|"
)


def table(landscape: str, outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """One line a rival; the same index in each sequence is the same seed."""
    reference = next(iter(outcomes.values()))
    lines = [_line(name, of, reference) for name, of in outcomes.items()]
    return "\n".join([_HEAD.format(landscape=landscape), *lines])


def _line(name: str, outcomes: Sequence[Outcome], reference: Sequence[Outcome]) -> str:
    found = [outcome.epochs_to_near for outcome in outcomes]
    ours, theirs = ([100 * o.quality for o in side] for side in (outcomes, reference))
    against = [a - b for a, b in zip(ours, theirs, strict=True)]
    cells = [
        name,
        estimate_text(ours),
        "" if outcomes is reference else estimate_text(against, signed=True),
        _quartiles(found),
        f"{sum(map(math.isfinite, found))} of {len(found)}",
        f"{statistics.mean(o.epochs for o in outcomes):.0f}",
        f"{statistics.mean(o.diverged for o in outcomes):.1f}",
        f"{statistics.mean(o.seconds for o in outcomes) / 3600:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _quartiles(values: Sequence[float]) -> str:
    """Median and quartiles, of runs that found nothing too: theirs is more than any number."""
    ordered = sorted(values)
    picked = [ordered[round(share * (len(ordered) - 1))] for share in (0.5, 0.25, 0.75)]
    median, low, high = ("never" if math.isinf(value) else f"{value:.0f}" for value in picked)
    return f"{median} ({low} to {high})"
