"""Summarise the JSON files of ``quality.py``: ranks, ratios, and rivals that are better than the first.

    python benchmarks/quality_summary.py regrets/*.json --first "ours, auto"

Ranks are by the mean regret on each table. A paired difference needs the seeds that both have.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from table import estimate

#: Index of each share of the budget in a search's regrets.
AT = {"50 %": 1, "100 %": 2}

#: Contestant -> the regrets of its searches, in the order of their seeds.
Regrets = Mapping[str, Sequence[Sequence[float]]]


def read(paths: Sequence[Path]) -> dict[tuple[str, str], dict[str, list[list[float]]]]:
    """Return the regrets by (budget, table)."""
    found: dict[tuple[str, str], dict[str, list[list[float]]]] = defaultdict(dict)
    for path in paths:
        for one in json.loads(path.read_text()):
            found[one["budget"], one["table"]][one["name"]] = one["seeds"]
    return found


def mean(regrets: Sequence[Sequence[float]], at: int) -> float:
    """Return the mean regret at a share of the budget."""
    return statistics.mean(each[at] for each in regrets)


def difference(
    one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], at: int
) -> tuple[float, float]:
    """Return the paired difference of two contestants and its standard error."""
    return estimate([a[at] - b[at] for a, b in zip(one, other, strict=False)])


def print_summary(tables: Mapping[str, Regrets], *, budget: str, first: str) -> None:
    """Print a table of ranks and ratios, and every rival that is better by two standard errors.

    A contestant that did not search every table has no mean rank, and does not count in the ranks of others.
    """
    everywhere = set.intersection(*(set(regrets) for regrets in tables.values()))
    geometric = {
        name: math.exp(
            statistics.mean(math.log(max(mean(regrets[name], 2), 0.01)) for regrets in tables.values())
        )
        for name in everywhere
    }
    names = sorted(everywhere, key=lambda name: (name != first, geometric[name], name))
    print(f"\n## {budget}\n\n| contestant | mean rank at 50 % | at 100 % | regret, geometric mean |")
    print("|---|---|---|---|")
    for name in names:
        ranks = {
            when: statistics.mean(
                1 + sum(mean(regrets[other], at) < mean(regrets[name], at) for other in everywhere)
                for regrets in tables.values()
            )
            for when, at in AT.items()
        }
        print(f"| {name} | {ranks['50 %']:.1f} | {ranks['100 %']:.1f} | {geometric[name]:.2f} |")
    for table, regrets in tables.items():
        for name in sorted(set(regrets) - {first}):
            if name not in everywhere:
                print(f"\n{table}: {name} is not ranked, as it did not search every table")
            if min(len(regrets[name]), len(regrets.get(first, ()))) < 2:
                continue
            gap, error = difference(regrets[first], regrets[name], 2)
            if gap > 2 * error:
                print(f"\n{table}: {name} is better than {first} by {gap:.2f} ± {error:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument(
        "--first", default="ours, auto", help="the contestant that the others are compared with"
    )
    arguments = parser.parse_args()
    found = read(arguments.files)
    for budget in sorted({budget for budget, _ in found}):
        tables = {table: regrets for (of, table), regrets in found.items() if of == budget}
        print_summary(tables, budget=budget, first=arguments.first)


if __name__ == "__main__":
    main()
