"""The budget: hours count the whole life of a search, all its runs together; trials may run out of points."""

from __future__ import annotations

__all__ = [
    "deadline",
    "exhausted_words",
    "spent_words",
]


def deadline(hours: float | None, *, driven: float, now: float) -> float | None:
    """When trials are to end, in seconds on the clock that says ``now``; None: never.

    ``driven`` seconds of the budget are gone, by earlier runs too. A resumed search that is given more hours
    has the difference left:

    >>> deadline(2.0, driven=1800.0, now=100.0)
    5500.0
    """
    return None if hours is None else now + hours * 3600 - driven


def spent_words(hours: float | None, *, driven: float, name: str, trials: int, total: int) -> str | None:
    """What to say of a search that has had its hours and began ``trials`` of its ``total``; None: nothing.

    >>> spent_words(2.0, driven=7300.0, name="a", trials=12, total=128)
    'The 2 hours of a are spent, with 12 of 128 trials begun. More time: --resume a --hours H, with H over 2.'
    """
    if hours is None or driven < hours * 3600 or trials >= total:
        return None
    return (
        f"The {hours:g} hours of {name} are spent, with {trials} of {total} trials begun."
        f" More time: --resume {name} --hours H, with H over {hours:g}."
    )


def exhausted_words(trials: int, total: int) -> str:
    """What to say of a search whose space has no point left after ``trials`` of its ``total``.

    >>> exhausted_words(6, 24).partition(".")[0]
    'The space is exhausted: all of its configurations have run, in 6 of 24 trials'
    """
    return (
        f"The space is exhausted: all of its configurations have run, in {trials} of {total} trials."
        " To run them again with other training seeds: --set sampler.repeats=true."
    )
