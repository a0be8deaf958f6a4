"""Trials in classes from the best few to the rest, by a value that they all have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["RankClass", "rank_classes"]

#: Names of the classes, and the share of all trials up to which each goes.
SHARES: Final = (("best tenth", 0.1), ("best quarter", 0.25), ("better half", 0.5), ("the rest", 1.0))


@dataclass(frozen=True, kw_only=True)
class RankClass:
    """Some trials of about one quality."""

    name: str
    numbers: tuple[int, ...]
    """The best first."""


def rank_classes(values: Mapping[int, float], *, maximize: bool) -> tuple[RankClass, ...]:
    """The classes that anybody is in, the best first.

    >>> [c.numbers for c in rank_classes({0: 0.1, 1: 0.9, 2: 0.5}, maximize=True)]
    [(1,), (2,), (0,)]
    """
    order = sorted(values, key=lambda number: (-values[number] if maximize else values[number], number))
    ends = [math.ceil(share * len(order)) for _, share in SHARES]
    begins = [0, *ends[:-1]]
    classes = (
        RankClass(name=name, numbers=tuple(order[begin:end]))
        for (name, _), begin, end in zip(SHARES, begins, ends, strict=True)
    )
    return tuple(one for one in classes if one.numbers)
