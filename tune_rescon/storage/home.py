"""The name of a search, and the folder of a search at a URL.

If several processes take a name at once, one of them gets it. A search that reuses the name of a deleted
search has another identity.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tune_rescon.errors import NameTakenError, StorageError, format_error, hide_passwords
from tune_rescon.storage.remote import RemoteError, RemoteFolder, StorageUrl

__all__ = [
    "SearchHome",
    "check_name",
    "check_new_name",
    "name_taken",
    "name_without_space",
    "no_such_search",
    "usable",
]


#: A search's name is also that of a directory, a study and an MLflow run, and part of MLflow's queries.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

#: The most characters of a name, because file systems accept names of 255 bytes.
_LONGEST: Final = 255

#: Names in a storage that are not those of searches.
_RESERVED: Final = ("mlflow.db", "mlartifacts")


def check_name(name: str, *, where: str = "--name") -> None:
    """Raise an error unless ``name`` is a valid name of a search; ``where`` is the flag that gave it.

    Raises:
        StorageError: the name is not valid.
    """
    if not _NAME.fullmatch(name):
        rule = "must be letters, digits, `.`, `_` and `-`, and begin with a letter or digit"
        raise StorageError(format_error(rule, got=repr(name), where=where))
    if len(name) > _LONGEST:
        rule = f"must be at most {_LONGEST} characters"
        raise StorageError(format_error(rule, got=f"{len(name)}: {name[:40]}...", where=where))


def check_new_name(name: str) -> None:
    """Check the name of a new search, whose folder must not be that of MLflow's store either.

    Raises:
        StorageError: a new search cannot have this name.
    """
    check_name(name)
    if name.lower() in _RESERVED or name.startswith("mlflow.db-"):
        rule = f"must not be a name that MLflow's store has in a storage ({', '.join(_RESERVED)})"
        raise StorageError(format_error(rule, got=name, where="--name", hint="Give another --name."))


def name_taken(name: str, place: object, *, begun: bool) -> NameTakenError:
    """Return the error for a name that exists at ``place``, as a search (``begun``) or as another file.

    Args:
        name: the name.
        place: the existing path or URL.
        begun: True if there is a search that can be resumed.
    """
    way = f"Resume it with --resume {name}" if begun else "It contains no search: remove it"
    rule = f"the name of a new search must be free, but {place} exists"
    return NameTakenError(format_error(rule, where="--name", hint=f"{way}, or give another --name."))


def name_without_space(place: object) -> NameTakenError:
    """Return the error for a name at ``place`` that has files of a search, but not its ``space.yaml``."""
    rule = "the name of a new search must be free"
    got = f"{place} with the files of a search without its space.yaml"
    hint = "Restore that file from a copy and give --resume, or give another --name."
    return NameTakenError(format_error(rule, got=got, where="--name", hint=hint))


def no_such_search(name: str, storage: object, found: Sequence[str], *, where: str) -> StorageError:
    """Return the error for a name that no search has.

    Args:
        name: the name.
        storage: the storage that was searched.
        found: the searches in it, which the error lists.
        where: the flag that gave the name.
    """
    near = difflib.get_close_matches(name, found, n=1)
    guess = f"Did you mean {near[0]}? " if near else ""
    known = f"{guess}Searches there: {', '.join(found)}." if found else "There is no search there yet."
    return StorageError(format_error(f"no search named {name!r} in {storage}", where=where, hint=known))


#: The file that takes the name: it contains the search's identity.
_IDENTITY: Final = "search.json"

#: The file that shows that a search has begun and can be resumed.
_BEGUN: Final = "space.yaml"

#: The folder of the lease of a driver that has reserved the name and has not begun the search yet.
_OPENING: Final = "opening"

#: The files that a driver may leave if it dies before its search begins. Except in an object store, the
#: temporary name of a file that is being written has a dot and a number (:class:`.RemoteFolder`).
_REMAINS: Final = re.compile(
    r"\.?(?:search\.json|search\.log|space\.yaml|study\.db|mlflow\.db)(?:\.[0-9a-f]{8})?|(?:opening|lease)/.*"
)


@dataclass(frozen=True, kw_only=True)
class SearchHome:
    """The folder ``<url>/<name>/`` of a search."""

    storage: StorageUrl
    name: str
    remote: RemoteFolder
    identity: str
    """The search's permanent identity: a new search that reuses the name of a deleted one has another."""
    first_url: str | None
    """The URL, without a password, at which the search was begun; None if an earlier version began it."""

    @classmethod
    def create(cls, storage: StorageUrl, name: str) -> SearchHome:
        """Take the name of a new search; if several callers try at once, one succeeds.

        Raises:
            NameTakenError: the name is taken.
            StorageError: the name is not valid, or the URL cannot be written.
        """
        check_new_name(name)
        remote = RemoteFolder.connect(storage).folder(name)
        url = hide_passwords(remote.url)
        home = cls(storage=storage, name=name, remote=remote, identity=uuid.uuid4().hex, first_url=url)
        content = {"search": name, "id": home.identity, "url": url}
        with usable(storage):
            if remote.create(_IDENTITY, json.dumps(content).encode()):
                return home
        raise name_taken(name, remote.url, begun=home.begun)

    @classmethod
    def look(cls, storage: StorageUrl, name: str, *, where: str = "--name") -> SearchHome | None:
        """Return the home of this name, whether or not its search has begun; None if the name is free.

        Args:
            storage: the storage that may contain the search.
            name: the search's name.
            where: the flag that gave the name.

        Raises:
            StorageError: the name is not valid, or the URL cannot be read.
        """
        check_name(name, where=where)
        remote = RemoteFolder.connect(storage).folder(name)
        with usable(storage):
            found = remote.read(_IDENTITY)
            if found is None:
                return None
            try:
                content = json.loads(found)
                identity, first_url = content["id"], content.get("url")
            except ValueError:
                # On a file system, a writer may have created the file without filling it yet.
                raise RemoteError(f"{remote.url}/{_IDENTITY} is being written") from None
        return cls(storage=storage, name=name, remote=remote, identity=identity, first_url=first_url)

    @property
    def begun(self) -> bool:
        """True if the search has begun, so that it can be resumed."""
        with usable(self.storage):
            return self.remote.read(_BEGUN) is not None

    @classmethod
    def find(cls, storage: StorageUrl, name: str, *, where: str = "--resume") -> SearchHome:
        """Return the home of a search that has begun.

        Args:
            storage: the storage that contains the search.
            name: the search's name.
            where: the flag that gave the name.

        Raises:
            StorageError: no search has this name (the error lists those that exist), or the URL cannot be
            read.
        """
        home = cls.look(storage, name, where=where)
        if home is not None and home.begun:
            return home
        with usable(storage):
            found = RemoteFolder.connect(storage).folders_with(_BEGUN)
        raise no_such_search(name, storage, found, where=where)

    def scratch(self, cache_root: Path) -> Path:
        """Return this machine's directory for the search; it contains ``<name>/``, like a local storage.

        A copy of the search at another URL has the same identity, but must not work on the original's files.
        """
        url = hide_passwords(self.remote.url)
        other = "" if self.first_url in (None, url) else f"-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        return cache_root / "searches" / f"{self.identity}{other}"

    @property
    def opening(self) -> RemoteFolder:
        """The folder of the lease that a driver holds after it reserved the name, until the search begins."""
        return self.remote.folder(_OPENING)

    @property
    def holds_remains_only(self) -> bool:
        """True if all files may be from a driver that died before its search began.

        False for a search that has lost its ``space.yaml``, such as an incomplete copy.

        Raises:
            RemoteError: the URL cannot be read now.
        """
        return all(_REMAINS.fullmatch(name) for name in self.remote.names())

    def clear(self) -> None:
        """Delete the files that a dead driver left of a search that never began. The name stays taken.

        Raises:
            RemoteError: the URL cannot be changed now.
        """
        for name in self.remote.names():
            if name != _IDENTITY and not name.startswith(f"{_OPENING}/"):
                self.remote.delete(name)

    def end_opening(self) -> None:
        """Delete the lease of the reservation, which a search that has begun no longer needs.

        Raises:
            RemoteError: the URL cannot be changed now.
        """
        for name in self.opening.names():
            self.opening.delete(name)

    def remove(self) -> None:
        """Release the name of a search that never began.

        Raises:
            RemoteError: the URL cannot be changed now.
        """
        self.clear()
        # Without its identity the name is free, so the identity is deleted before the lease.
        self.remote.delete(_IDENTITY)
        self.end_opening()


@contextlib.contextmanager
def usable(storage: StorageUrl) -> Iterator[None]:
    """Raise a :class:`.RemoteError` in the block as a :class:`.StorageError`, which the user can fix.

    Use it before a search has begun. Afterwards, the operation is retried.
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
