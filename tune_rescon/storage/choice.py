"""Which of two copies of a database a search goes on with: this machine's, or the one at the URL."""

from __future__ import annotations

from enum import Enum

__all__ = ["Copy", "choose_copy"]


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
