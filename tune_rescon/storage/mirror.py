"""Choose the newest copies of a search's databases, and mirror them to a URL while the search runs.

The search only reports that something has changed, and a thread uploads it. The search waits for the URL only
where a trial begins or ends, and only briefly. It gets no errors: the thread retries a failed upload after
growing pauses, and counts the changes that are missing at the end, so that the search can report them.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tune_rescon.atomic_write import file_version
from tune_rescon.errors import StorageError, format_error
from tune_rescon.storage.remote import RemoteFolder
from tune_rescon.storage.sqlite import (
    VERSION_BYTES,
    Version,
    content_digest,
    copy_database,
    is_whole,
    parse_version,
    read_version,
    write_version,
)

__all__ = [
    "Copy",
    "Discard",
    "Mirror",
    "Pace",
    "Sender",
    "SupersededError",
    "choose_copies",
    "choose_copy",
    "fetch_databases",
]


class Copy(Enum):
    """The place of the newest copy."""

    NOWHERE = "nowhere"
    HERE = "here"
    URL = "url"


def choose_copy(*, here: Version | None, at_url: Version | None) -> Copy:
    """Return the place of the newest copy of a database.

    A run has the highest term plus one, and stamps its live database only after a copy with that term is at
    the URL. Two copies with the same term are therefore from the same live database. Each later copy is
    counted before it is sent, so the local one can only be newer, unless this machine's disk was restored
    from an older image. A run with a higher term at the URL began from the copy there, perhaps on another
    machine, and has repeated the work that this machine had not sent.

    Args:
        here: the version of this machine's copy; None if this machine has no copy.
        at_url: the version of the copy at the URL; None if the URL has no copy.

    >>> choose_copy(here=Version(3, 7), at_url=Version(3, 7))
    <Copy.HERE: 'here'>
    >>> choose_copy(here=Version(3, 7), at_url=Version(3, 9)), choose_copy(here=Version(3), at_url=Version(4))
    (<Copy.URL: 'url'>, <Copy.URL: 'url'>)
    """
    if here is None and at_url is None:
        return Copy.NOWHERE
    if here is None or (at_url is not None and at_url > here):
        return Copy.URL
    return Copy.HERE


def choose_copies(versions: Sequence[tuple[Version | None, Version | None]]) -> list[Copy]:
    """Return the place of the copy to use of each of several databases.

    A row is written to the first database before it is written to the others. The copies at the URL keep this
    order, and so do the copies on one machine. Beside a first database from the URL, a local copy could
    contain rows that the first one lacks. If the first database is from the URL, all others are therefore
    from the URL too, or start empty.

    Args:
        versions: for each database, the version of its local copy and of its copy at the URL; None if there
            is no such copy.

    >>> old, new = Version(1), Version(2)
    >>> [copy.value for copy in choose_copies([(old, new), (old, old), (old, None)])]
    ['url', 'url', 'nowhere']
    """
    copies = [choose_copy(here=here, at_url=at_url) for here, at_url in versions]
    if copies and copies[0] is Copy.URL:
        return [Copy.NOWHERE if at_url is None else Copy.URL for _, at_url in versions]
    return copies


class SupersededError(Exception):
    """Another run has resumed from the URL; an upload by this run would overwrite that run's work."""


@dataclass(frozen=True, kw_only=True)
class Discard:
    """Files at the URL that are no longer needed: the ``names`` in a folder, except ``keep``.

    If ``keep`` is given and is not at the URL, nothing is deleted.
    """

    folder: str
    names: frozenset[str]
    keep: str | None = None


class Sender:
    """Sends the databases and files that changed after the last send. Use it from one thread at a time."""

    def __init__(
        self, remote: RemoteFolder, *, databases: Mapping[str, Path], files: Mapping[str, Path], term: int = 1
    ) -> None:
        """Set up the sender; nothing is sent yet.

        A row may be written to a database only after it is in the databases before it: an MLflow run shows
        epochs of the study. The copies at the URL keep this order, even if this machine is lost at any
        moment.

        Args:
            remote: the folder at the URL.
            databases: local SQLite files by their names at the URL; missing ones are skipped.
            files: other local files by their names at the URL; missing ones are skipped.
            term: the term that :func:`.fetch_databases` returned for this run. It must be set before the
                first send.
        """
        self._remote = remote
        self.term = term
        self._databases = databases
        self._files = files
        self._sent: dict[str, str] = {}

    def send(self) -> None:
        """Bring the URL up to date.

        Databases are sent first, because the files (a table, a report) are made from them.

        Raises:
            RemoteError: the URL cannot be written now.
            SupersededError: a later run writes to the URL.
            OSError, sqlite3.Error: a local file cannot be read or copied.
        """
        with tempfile.TemporaryDirectory(prefix="tune_rescon-copy-") as scratch:
            present = {name: path for name, path in self._databases.items() if path.is_file()}
            copies = {name: Path(scratch) / name for name in present}
            # From last to first, so that no copy is newer than one before it.
            for name, live in reversed(present.items()):
                copy_database(live, copies[name])
            for name, live in present.items():
                self._send_database(name, live, copies[name])
            for name, path in self._files.items():
                if path.is_file():
                    self._send_file(name, path, Path(scratch) / name)

    def discard(self, discards: Iterable[Discard]) -> None:
        """Delete the files at the URL that the copies there no longer refer to.

        Raises:
            RemoteError: the URL cannot be changed now.
        """
        for discard in discards:
            found = self._remote.names(discard.folder)
            if discard.keep is not None and f"{discard.folder}/{discard.keep}" not in found:
                continue
            losers = {f"{discard.folder}/{name}" for name in discard.names - {discard.keep}}
            for name in found:
                if name in losers:
                    self._remote.delete(name)

    def _send_database(self, name: str, live: Path, copy: Path) -> None:
        digest = content_digest(copy)
        if self._sent.get(name) == digest:
            return
        at_url = _version_at(self._remote, name)
        if at_url is not None and at_url.term > self.term:
            raise SupersededError(
                f"{self._remote.url}/{name} is written by a later run ({at_url.term}) than this one"
            )
        here = read_version(live) or Version(0)
        version = Version(self.term, 1 + max(here.copies, at_url.copies if at_url else 0))
        # The first copy of a run stamps the live database after the upload, and each later one before: see
        # choose_copy.
        if here.term == self.term:
            write_version(live, version)
        write_version(copy, version)
        self._remote.upload(copy, name)
        self._sent[name] = digest
        if here.term != self.term:
            write_version(live, version)

    def _send_file(self, name: str, path: Path, copy: Path) -> None:
        version = str(file_version(path))
        if self._sent.get(name) != version:
            # Send a copy, because a log grows while it is sent.
            shutil.copyfile(path, copy)
            self._remote.upload(copy, name)
            self._sent[name] = version


_log: Final = logging.getLogger(__name__)

#: Suffixes of the files that SQLite keeps beside a database. They belong to that database only.
_BESIDE: Final = ("-journal", "-wal", "-shm")


def fetch_databases(remote: RemoteFolder, databases: Mapping[str, Path], *, where: str = "--storage") -> int:
    """Replace each local database by the newest copy, and return the term of the run that begins.

    Only one run may call this at a time, and before it opens any of the databases. The first database leads
    and the others follow it: see :func:`.choose_copies`.

    Args:
        remote: the folder at the URL.
        databases: local SQLite files by their names at the URL.
        where: the flag that named the URL, for error messages.

    Raises:
        RemoteError: the URL cannot be read now.
        StorageError: a required copy is damaged.
    """
    versions = [_versions(remote, name, path) for name, path in databases.items()]
    for (name, path), pair, copy in zip(databases.items(), versions, choose_copies(versions), strict=True):
        here, at_url = pair
        if copy is Copy.URL:
            _fetch(remote, name, path, where)
        elif copy is Copy.NOWHERE:
            _delete(path)
        if here is not None and copy is not Copy.HERE:
            _log.warning(
                "%s of run %d on this machine is replaced by that of run %s at %s",
                name,
                here.term,
                at_url.term if at_url else None,
                remote.url,
            )
    return 1 + max((version.term for pair in versions for version in pair if version), default=0)


def _versions(remote: RemoteFolder, name: str, path: Path) -> tuple[Version | None, Version | None]:
    """Return the versions of the local copy and of the copy at the URL."""
    here = read_version(path) if path.is_file() and is_whole(path) else None
    return here, _version_at(remote, name)


def _version_at(remote: RemoteFolder, name: str) -> Version | None:
    return parse_version(remote.read(name, start=VERSION_BYTES[0], end=VERSION_BYTES[1]))


def _fetch(remote: RemoteFolder, name: str, path: Path, where: str) -> None:
    arrived = path.with_name(f".{path.name}.arrived")
    path.parent.mkdir(parents=True, exist_ok=True)
    remote.download(name, arrived)
    if not is_whole(arrived):
        arrived.unlink(missing_ok=True)
        rule = "the copy of a database must be one SQLite can read"
        raise StorageError(format_error(rule, got=f"a damaged {remote.url}/{name}", where=where))
    _delete(path)
    arrived.replace(path)


def _delete(path: Path) -> None:
    # The database is deleted last, so that no file beside it is left for the one that replaces it.
    for suffix in (*_BESIDE, ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


#: Seconds that :meth:`Mirror.close` waits for a call that is in progress when its time is up.
LAST_CALL: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The intervals of a :class:`Mirror`, in seconds, and one factor."""

    interval: float = 5.0
    """Between two copies that no call waits for, because epochs end more often than copies are needed."""
    rest: float = 9.0
    """The pause after a copy as a multiple of the copy's duration. Copying a study of 10,000 trials takes
    seconds, so it must not happen all the time."""
    flush_timeout: float = 0.4
    """The longest wait of a search for a copy. Ray Tune warns of callbacks that last half a second."""
    first_pause: float = 0.5
    longest_pause: float = 15.0
    """The pause after a failure; it doubles from ``first_pause`` to ``longest_pause``."""


class Mirror:
    """Counts changes and lets a :class:`.Sender` upload them. Call it from the search's thread."""

    def __init__(self, sender: Sender, pace: Pace | None = None) -> None:
        """Set up the mirror; nothing is sent before :meth:`start`."""
        self._sender = sender
        self._pace = pace or Pace()
        self._closing = threading.Event()
        self._deadline = 0.0
        # The condition guards all attributes below.
        self._condition = threading.Condition()
        self._changes = self._urgent = self._sent = 0
        self._is_failing = False
        self._rests_until = 0.0
        self._forgotten: list[Discard] = []
        self._discards: list[Discard] = []
        self._thread = threading.Thread(target=self._run, name="storage-mirror", daemon=True)

    def start(self) -> None:
        """Start to send changes."""
        self._thread.start()

    def changed(self) -> None:
        """Schedule the upload of a change within the interval. Return at once."""
        with self._condition:
            self._changes += 1
            self._condition.notify_all()

    def forget(self, discard: Discard) -> None:
        """Delete files after the next :meth:`flush`, once the URL has a copy that no longer needs them."""
        self._forgotten.append(discard)

    def flush(self) -> bool:
        """Send changes now, wait briefly, and return whether they are at the URL.

        It does not wait if the last upload failed, or during the pause after a copy.
        """
        with self._condition:
            goal = self._mark_urgent()
            rests = time.monotonic() < self._rests_until
            timeout = 0.0 if self._is_failing or rests else self._pace.flush_timeout
            self._condition.wait_for(lambda: self._sent >= goal or self._is_failing, timeout)
            return self._sent >= goal

    def close(self, timeout: float) -> int:
        """Send the remaining changes within ``timeout`` seconds; return the number that are not at the URL.

        It may be called again with a shorter timeout, for example after a signal.
        """
        with self._condition:
            self._deadline = time.monotonic() + timeout
            if not self._closing.is_set():
                self._closing.set()
                self._mark_urgent()
        # A call that hangs longer is left to the daemon thread, and its changes count as missing.
        self._thread.join(timeout + LAST_CALL)
        with self._condition:
            return self._changes - self._sent

    def abandon(self) -> None:
        """Start no further upload, because another run writes to the URL."""
        with self._condition:
            self._changes = self._sent
            self._discards.clear()
            self._closing.set()
            self._condition.notify_all()

    def _mark_urgent(self) -> int:
        self._changes += 1
        self._urgent = self._changes
        self._discards += self._forgotten
        self._forgotten.clear()
        self._condition.notify_all()
        return self._changes

    def _run(self) -> None:
        pause, last = self._pace.first_pause, 0.0
        while (goal := self._next_goal(last)) is not None:
            try:
                self._upload(goal)
            except SupersededError as error:
                _log.error("nothing more is sent to the storage: %s", error)
                self._mark_failing()
                return
            except (OSError, sqlite3.Error) as error:
                _log.warning("the storage is behind; next try in %.1f s: %s", pause, error)
                self._mark_failing()
                if not self._pause(pause):
                    return
                pause = min(2 * pause, self._pace.longest_pause)
            else:
                pause, last = self._pace.first_pause, time.monotonic()

    def _next_goal(self, last: float) -> int | None:
        """Wait until an upload is due; return the number of changes by then, or None after the last one."""
        with self._condition:
            while True:
                waiting = self._changes > self._sent or bool(self._discards)
                if self._closing.is_set() and not waiting:
                    return None
                urgent = self._urgent > self._sent
                due = self._rests_until if urgent else max(last + self._pace.interval, self._rests_until)
                due_in = due - time.monotonic()
                if waiting and (self._closing.is_set() or due_in <= 0):
                    return self._changes
                self._condition.wait(due_in if waiting else None)

    def _upload(self, goal: int) -> None:
        with self._condition:
            discards = tuple(self._discards)
        began = time.monotonic()
        self._sender.send()
        with self._condition:
            now = time.monotonic()
            self._rests_until = now + self._pace.rest * (now - began)
            self._sent = goal
            self._is_failing = False
            self._condition.notify_all()
        self._sender.discard(discards)
        with self._condition:
            del self._discards[: len(discards)]

    def _mark_failing(self) -> None:
        with self._condition:
            self._is_failing = True
            self._condition.notify_all()

    def _pause(self, pause: float) -> bool:
        """Wait before the next try; return False if no time is left for one."""
        if self._closing.wait(pause):
            left = self._deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
        return True
