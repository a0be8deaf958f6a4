"""The names of searches: what they may be, and what is said of one that is taken or unknown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Final

from tune_rescon.errors import StorageError, explain

__all__ = ["check_name", "check_new_name", "name_taken", "no_such_search"]

#: It names a directory, a study and an MLflow run, and stands in MLflow's queries.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: Characters of a name: file systems take names of 255 bytes.
LONGEST: Final = 255

#: What a storage holds beside its searches.
_RESERVED: Final = ("mlflow.db", "mlartifacts")


def check_name(name: str, *, where: str = "--name") -> None:
    """Refuse what is no name of a search; it came with ``where``.

    Raises:
        StorageError: it is none.
    """
    if not _NAME.fullmatch(name):
        rule = "must be letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
        raise StorageError(explain(rule, got=repr(name), where=where))
    if len(name) > LONGEST:
        rule = f"must be at most {LONGEST} characters"
        raise StorageError(explain(rule, got=f"{len(name)}: {name[:40]}...", where=where))


def check_new_name(name: str) -> None:
    """:func:`check_name`, for a new search: its folder must not be where MLflow's store is.

    Raises:
        StorageError: it cannot have this name.
    """
    check_name(name)
    if name.lower() in _RESERVED or name.startswith("mlflow.db-"):
        rule = f"must not be a name that MLflow's store has in a storage ({', '.join(_RESERVED)})"
        raise StorageError(explain(rule, got=name, where="--name", hint="Give another --name."))


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
