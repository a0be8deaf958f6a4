"""The names of searches: what they may be, and what is said of one that is taken or unknown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Final

from tune_rescon.errors import StorageError, explain

__all__ = ["check_name", "name_taken", "no_such_search"]

#: It names a directory, a study and an MLflow run, and stands in MLflow's queries.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str, *, where: str = "--name") -> None:
    """Refuse what is no name; it came with ``where``.

    Raises:
        StorageError: it is none.
    """
    if not _NAME.fullmatch(name):
        rule = "must be letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
        raise StorageError(explain(rule, got=repr(name), where=where))


def name_taken(name: str, place: object, *, begun: bool) -> StorageError:
    """A new search cannot have this name: there is something at ``place``, perhaps a search (``begun``)."""
    way = f"Go on with it by --resume {name}" if begun else "It holds no search: remove it"
    rule = f"the name of a new search must be free, but {place} exists"
    return StorageError(explain(rule, where="--name", hint=f"{way}, or give another --name."))


def no_such_search(name: str, storage: object, found: Sequence[str], *, where: str) -> StorageError:
    """There is no search of this name, which came with ``where``; those that were ``found`` are listed."""
    near = difflib.get_close_matches(name, found, n=1)
    guess = f"Did you mean {near[0]}? " if near else ""
    known = f"{guess}Searches there: {', '.join(found)}." if found else "There is no search there yet."
    return StorageError(explain(f"no search named {name!r} in {storage}", where=where, hint=known))
