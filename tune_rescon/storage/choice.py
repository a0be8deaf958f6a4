"""Which of two copies of a database a search goes on with: this machine's, or the one at the URL."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

__all__ = ["Copy", "choose_copies", "choose_copy"]


class Copy(Enum):
    """Where the newest copy is."""

    NOWHERE = "nowhere"
    HERE = "here"
    URL = "url"


def choose_copy(*, here: int | None, at_url: int | None) -> Copy:
    """Where the newest copy is, by the terms of the two (None: no such copy).

    A run takes the highest term plus one, and stamps its live database only once a copy with that term is at
    the URL. So two copies of one term have one origin, the live one, which can only have gone on since. And a
    higher term at the URL was begun from that copy, perhaps elsewhere; whatever this machine had not sent by
    then was done again there.

    >>> choose_copy(here=3, at_url=3)
    <Copy.HERE: 'here'>
    >>> choose_copy(here=3, at_url=4)
    <Copy.URL: 'url'>
    """
    if here is None and at_url is None:
        return Copy.NOWHERE
    if here is None or (at_url is not None and at_url > here):
        return Copy.URL
    return Copy.HERE


def choose_copies(terms: Sequence[tuple[int | None, int | None]]) -> list[Copy]:
    """Where to take each of several databases from, by the terms of its copies here and at the URL.

    All but the first follow it: what they hold was in the first before. Copies at the URL keep that order,
    and so do those of one machine; but one from here beside a first from the URL might know what that has not
    heard of. So where the first comes from the URL all do, or are begun anew.

    >>> [copy.value for copy in choose_copies([(1, 2), (1, 1), (1, None)])]
    ['url', 'url', 'nowhere']
    """
    copies = [choose_copy(here=here, at_url=at_url) for here, at_url in terms]
    if copies and copies[0] is Copy.URL:
        return [Copy.NOWHERE if at_url is None else Copy.URL for _, at_url in terms]
    return copies
