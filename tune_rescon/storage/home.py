"""A search's place at a URL: its name is taken there once, and it is told from a later one of that name."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tune_rescon.errors import StorageError, format_error
from tune_rescon.storage.remote import RemoteError, RemoteFolder, StorageUrl

__all__ = [
    "SearchHome",
    "check_name",
    "check_new_name",
    "name_taken",
    "no_such_search",
    "usable",
]


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
        raise StorageError(format_error(rule, got=repr(name), where=where))
    if len(name) > LONGEST:
        rule = f"must be at most {LONGEST} characters"
        raise StorageError(format_error(rule, got=f"{len(name)}: {name[:40]}...", where=where))


def check_new_name(name: str) -> None:
    """:func:`check_name`, for a new search: its folder must not be where MLflow's store is.

    Raises:
        StorageError: it cannot have this name.
    """
    check_name(name)
    if name.lower() in _RESERVED or name.startswith("mlflow.db-"):
        rule = f"must not be a name that MLflow's store has in a storage ({', '.join(_RESERVED)})"
        raise StorageError(format_error(rule, got=name, where="--name", hint="Give another --name."))


def name_taken(name: str, place: object, *, begun: bool) -> StorageError:
    """A new search cannot have this name: there is something at ``place``, perhaps a search (``begun``)."""
    way = f"Go on with it by --resume {name}" if begun else "It holds no search: remove it"
    rule = f"the name of a new search must be free, but {place} exists"
    return StorageError(format_error(rule, where="--name", hint=f"{way}, or give another --name."))


def no_such_search(name: str, storage: object, found: Sequence[str], *, where: str) -> StorageError:
    """There is no search of this name, which came with ``where``; those that were ``found`` are listed."""
    near = difflib.get_close_matches(name, found, n=1)
    guess = f"Did you mean {near[0]}? " if near else ""
    known = f"{guess}Searches there: {', '.join(found)}." if found else "There is no search there yet."
    return StorageError(format_error(f"no search named {name!r} in {storage}", where=where, hint=known))


#: Made when the name is taken; holds the search's identity.
_IDENTITY: Final = "search.json"

#: Whoever has this file has begun, and can be gone on with.
_BEGUN: Final = "space.yaml"


@dataclass(frozen=True, kw_only=True)
class SearchHome:
    """``<url>/<name>/``."""

    storage: StorageUrl
    name: str
    remote: RemoteFolder
    identity: str
    """Of this search, for ever: a search deleted and begun anew under its name has another one."""

    @classmethod
    def create(cls, storage: StorageUrl, name: str) -> SearchHome:
        """Take the name of a new search; of several at once, one gets it.

        Raises:
            StorageError: the name is none, or taken, or the URL cannot be written.
        """
        check_new_name(name)
        root = RemoteFolder.connect(storage)
        home = cls(storage=storage, name=name, remote=root.folder(name), identity=uuid.uuid4().hex)
        with usable(storage):
            if home.remote.create(_IDENTITY, json.dumps({"search": name, "id": home.identity}).encode()):
                return home
            begun = home.remote.read(_BEGUN) is not None
        raise name_taken(name, home.remote.url, begun=begun)

    @classmethod
    def find(cls, storage: StorageUrl, name: str, *, where: str = "--resume") -> SearchHome:
        """The place of a search that has begun; ``where`` is the flag that names it.

        Raises:
            StorageError: there is none of that name (those there are, are listed), or the URL cannot be read.
        """
        check_name(name, where=where)
        root = RemoteFolder.connect(storage)
        remote = root.folder(name)
        with usable(storage):
            identity = remote.read(_IDENTITY)
            if identity is not None and remote.read(_BEGUN) is not None:
                identity = json.loads(identity)["id"]
                return cls(storage=storage, name=name, remote=remote, identity=identity)
            found = root.folders_with(_BEGUN)
        raise no_such_search(name, storage, found, where=where)

    def scratch(self, cache_root: Path) -> Path:
        """This machine's directory for it, which holds ``<name>/`` as a local storage does."""
        return cache_root / "searches" / self.identity

    def remove(self) -> None:
        """Give the name back: of a search that never began.

        Raises:
            RemoteError: not now.
        """
        for name in self.remote.names():
            self.remote.delete(name)


@contextlib.contextmanager
def usable(storage: StorageUrl) -> Iterator[None]:
    """What goes wrong in the block is the user's to mend: nothing has begun yet.

    Raises:
        StorageError: a :class:`.RemoteError`, in words.
    """
    try:
        yield
    except RemoteError as error:
        rule = "must be a URL that can be read and written"
        hint = (
            "The bucket must exist, and the credentials found on this machine must be let in"
            f" (environment variables, a profile or the machine's role, as usual for {storage.scheme}://)."
        )
        raise StorageError(
            format_error(rule, got=f"{storage} ({error})", where="--storage", hint=hint)
        ) from None
