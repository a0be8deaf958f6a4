"""What a storm did, as a markdown table with a column for each side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from storm.findings import Fault
from storm.outcome import MOMENTS, Outcome

__all__ = ["table"]


Row = Callable[[Sequence[Outcome]], str]


def table(sides: Mapping[str, Sequence[Outcome]], unknown: Mapping[str, frozenset[Fault]]) -> str:
    """The whole table; a column for each side, with a dash for what is ``unknown`` of it."""
    rows: dict[str, Row] = {
        "searches": lambda outcomes: str(len(outcomes)),
        "drivers killed (start-up / trials / after the last epoch)": _drivers,
        "trial processes killed": lambda outcomes: _spread(
            [sum(life.workers_killed for life in outcome.lives) for outcome in outcomes]
        ),
        **{str(fault): _row_of(fault) for fault in Fault},
        "epochs trained again": lambda outcomes: _spread([o.trained - o.needed for o in outcomes]),
        "seconds from a new driver to its first epoch": lambda outcomes: _mean(
            [seconds for outcome in outcomes for seconds in outcome.returns]
        ),
        "seconds of all drivers of a search": lambda outcomes: _mean([o.seconds for o in outcomes]),
    }
    lines = [["", *sides], ["---"] * (len(sides) + 1)]
    for name, row in rows.items():
        cells = ("-" if name in unknown[side] else row(outcomes) for side, outcomes in sides.items())
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row_of(fault: Fault) -> Row:
    return lambda outcomes: _spread([outcome.findings.counts[fault] for outcome in outcomes])


def _spread(counts: Sequence[int]) -> str:
    """Sum, mean and standard deviation of a search, and how many searches have any."""
    if not any(counts):
        return "0"
    touched = sum(count > 0 for count in counts)
    return f"{sum(counts)} ({_mean(counts)} a search; in {touched} of {len(counts)})"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {spread:.1f}"


def _drivers(outcomes: Sequence[Outcome]) -> str:
    moments = [outcome.moments for outcome in outcomes]
    by_moment = [sum(found[moment] for found in moments) for moment in MOMENTS]
    return f"{sum(by_moment)} ({' / '.join(map(str, by_moment))})"
