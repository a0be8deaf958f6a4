"""The identity of a search: a UUID that is created with its study, and where the study was in its last run.

A name is not an identity, because a team's searches are all named after the space, and a deleted folder can
be created again. The id is the study's user attribute ``id``, the first line of ``space.yaml`` (a comment,
which no loader reads), and a tag of every MLflow run. A search that an earlier version began without an id
gets one when it is next resumed or synchronised.

A search that is moved keeps its id. A copy becomes another search: when the copy is resumed and the original
is still in its location, a folder or a URL, the copy gets a new id. If both share a study in the database of
``--study``, the copy is refused.
"""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.errors import StorageError, format_error, hide_passwords
from tune_rescon.storage import RemoteError, RemoteFolder, StorageUrl, sqlite_file
from tune_rescon.tuning.folder import SearchFolder, write_atomically
from tune_rescon.tuning.study import StudyRecord

__all__ = [
    "Identity",
    "check_not_copied",
    "check_same_search",
    "ensure_identity",
    "location_of",
    "read_id",
    "with_id",
    "write_id",
]


#: The attribute of the study with the file of its database, if ``--study`` names a file.
_DATABASE: Final = "database"

_LINE: Final = re.compile(r"# tune_rescon\.id: ([0-9a-f]{32})\n")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The id and the location of a search."""

    id: str
    location: str
    """The location of the search's record in its last run: see :func:`location_of`."""


def location_of(folder: SearchFolder, url: str | None) -> str:
    """Return the URL without its password, or ``HOST:FOLDER`` if ``url`` is None.

    The host is included because containers and machines may use the same paths.
    """
    return hide_passwords(url) if url else f"{socket.gethostname()}:{folder.path}"


def ensure_identity(
    record: StudyRecord, folder: SearchFolder, *, url: str | None, study_url: str | None
) -> Identity:
    """Return the identity of a search that this process drives, and record it in the study if it is new.

    Args:
        record: The study, which this process may write.
        folder: The search's files on this machine.
        url: The URL at which the files are kept, or None if they are kept in the folder.
        study_url: The URL of ``--study``; None if the study is in the folder and copied with it.
    """
    own_study = study_url is None
    known, location = _recorded(record.attributes()), location_of(folder, url)
    if known is not None and not own_study and not len(record) and _is_another(known, folder, location):
        known = None
    database = _database_file(study_url)
    # The file may have been copied with the folder. An earlier version did not record where it was.
    is_copied_file = database is not None and record.attribute(_DATABASE) not in (None, database)
    is_copy = known is not None and (own_study or is_copied_file) and _is_still_there(known, folder, url)
    search_id = uuid.uuid4().hex if known is None or is_copy else known.id
    identity = Identity(id=search_id, location=location)
    if identity != known:
        record.set_attribute("id", identity.id)
        record.set_attribute("place", identity.location)
    if database is not None and record.attribute(_DATABASE) != database:
        record.set_attribute(_DATABASE, database)
    return identity


def _database_file(study_url: str | None) -> str | None:
    """Return the path of the database of ``--study`` if it is a file; None otherwise."""
    file = None if study_url is None else sqlite_file(study_url)
    return None if file is None else str(file.resolve())


def check_same_search(attributes: Mapping[str, Any], folder: SearchFolder) -> None:
    """Check that a study in a shared database belongs to the search in a folder.

    Two storages may each have a search of one name, but the database has only one study of that name. The
    checkpoints in the other search's folder belong to other trials with the same numbers.

    Args:
        attributes: The attributes of the study.
        folder: The search's folder. Its ``space.yaml`` has the search's id; without it, nothing is checked.

    Raises:
        StorageError: If the study is another search's.
    """
    of_study, of_folder = attributes.get("id"), read_id(folder.space_yaml)
    if not of_study or not of_folder or of_study == of_folder:
        return
    rule = f"the study {folder.name!r} in the database must be that of the search in {folder.path}"
    place = attributes.get("place")
    got = f"that of another search, {of_study[:8]}" + (f" in {place}" if place else "")
    hint = (
        "Leave out --study and TUNE_RESCON_STUDY if the search has its own study.db. Otherwise give the"
        " --storage of the study's search."
    )
    raise StorageError(format_error(rule, got=got, where="--study", hint=hint))


def check_not_copied(
    attributes: Mapping[str, Any], folder: SearchFolder, *, url: str | None, study_url: str
) -> None:
    """Check that a folder, before it is resumed, is not a copy that shares the study of its original.

    Both would add trials to one study, and neither would have the checkpoints of all. A database in a file
    that is not where the last run had it may have been copied with the folder.

    Args:
        attributes: The attributes of the study.
        folder: The search's files on this machine.
        url: The URL at which the files are kept, or None if they are kept in the folder.
        study_url: The URL of the study's database.

    Raises:
        StorageError: If the original is still in its location.
    """
    known, database = _recorded(attributes), _database_file(study_url)
    is_shared = database is None or attributes.get(_DATABASE) == database
    if known is None or not is_shared or not _is_still_there(known, folder, url):
        return
    rule = f"the study {folder.name!r} in the database must be driven from one folder"
    got = f"{hide_passwords(url) if url else folder.path}, a copy of the search in {known.location}"
    hint = (
        "Resume it there, or remove that folder if this one takes its place. For a search of its own, give"
        f" another --name and --warm-start {folder.name}."
    )
    raise StorageError(format_error(rule, got=got, where="--study", hint=hint))


def with_id(text: str, search_id: str) -> str:
    """Return the text of a ``space.yaml`` with the id as its first line.

    >>> with_id("version: 1\\n", "0" * 32)
    '# tune_rescon.id: 00000000000000000000000000000000\\nversion: 1\\n'
    """
    return f"# tune_rescon.id: {search_id}\n{_LINE.sub('', text, count=1)}"


def read_id(space_yaml: Path) -> str | None:
    """Return the id in a ``space.yaml``; None if the file is missing, unreadable or has no id."""
    try:
        with space_yaml.open(encoding="utf-8") as file:
            found = _LINE.match(file.readline())
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


def write_id(space_yaml: Path, search_id: str) -> None:
    """Write the id to a ``space.yaml`` that has another id or no id."""
    if read_id(space_yaml) != search_id:
        write_atomically(space_yaml, with_id(space_yaml.read_text(encoding="utf-8"), search_id))


def _recorded(attributes: Mapping[str, Any]) -> Identity | None:
    """Return the identity in the attributes of a study; None if it has none yet."""
    if not attributes.get("id"):
        return None
    return Identity(id=attributes["id"], location=attributes.get("place") or "")


def _is_another(known: Identity, folder: SearchFolder, location: str) -> bool:
    """Return whether a study without trials in a shared database was begun by a search at another location.

    A new search of that name has taken it over. With the same id, both would be driven with one study.
    """
    return known.location != location and read_id(folder.space_yaml) != known.id


def _is_still_there(known: Identity, folder: SearchFolder, url: str | None) -> bool:
    """Return whether the search with this id is still in its last location, and that is not this one.

    Another host may have driven it there, because hosts share file systems: the id shows that it is the same.
    """
    if "://" in known.location or url is not None:
        return known.location != location_of(folder, url) and _is_still_elsewhere(known, folder, url)
    _, _, path = known.location.partition(":")
    if not path:
        return False
    other = SearchFolder(storage=Path(path).parent, name=Path(path).name)
    return read_id(other.space_yaml) == known.id and not other.path.samefile(folder.path)


def _is_still_elsewhere(known: Identity, folder: SearchFolder, url: str | None) -> bool:
    """Do what :func:`_is_still_there` does if one of the two locations is a URL.

    A location that cannot be read counts as empty.
    """
    _, _, path = known.location.partition(":")
    if not path:
        return False
    try:
        there = _folder_at(known.location if "://" in known.location else f"file://{path}")
        line = (there.read("space.yaml") or b"").decode(errors="replace").partition("\n")[0]
        found = _LINE.match(f"{line}\n")
        if found is None or found[1] != known.id:
            return False
        # A place may have several names: two schemes of one store, or a bucket that is mounted.
        here, name = _folder_at(url or f"file://{folder.path}"), f".{uuid.uuid4().hex}"
        here.write(name, b"is this the same place?")
        try:
            return there.read(name) is None
        finally:
            here.delete(name)
    except (RemoteError, StorageError):
        return False


def _folder_at(url: str) -> RemoteFolder:
    return RemoteFolder.connect(StorageUrl(url=url))
