"""The thread that keeps a URL up to date while a search runs.

The search only says that something has changed. It waits for the URL where a trial begins or ends, and only
for a moment; it never sees an error. What fails is done again with growing pauses; what is still
missing at the end is counted, so that it can be said.
"""

from __future__ import annotations

import hashlib
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

from tune_rescon.errors import StorageError, format_error
from tune_rescon.storage.database import (
    TERM_BYTES,
    copy_database,
    is_whole,
    parse_term,
    read_term,
    write_term,
)
from tune_rescon.storage.remote import RemoteFolder

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


class SupersededError(Exception):
    """Another run has gone on from the URL: what this one sends now would undo that one's work."""


@dataclass(frozen=True, kw_only=True)
class Discard:
    """Files at the URL that are no longer needed: those of ``names`` in a folder, but ``keep``.

    If ``keep`` is given and not there, nothing is deleted.
    """

    folder: str
    names: frozenset[str]
    keep: str | None = None


class Sender:
    """Sends what has changed since it last did. For one thread at a time."""

    def __init__(
        self, remote: RemoteFolder, *, databases: Mapping[str, Path], files: Mapping[str, Path], term: int = 1
    ) -> None:
        """``databases`` and ``files``: by their names at the URL; those that are not there yet are left out.

        Nothing may be written to a database before it is in those above it (a run of MLflow's shows epochs
        of the study): so it is with the copies at the URL, whenever this machine is lost.

        ``term`` is what :func:`.fetch_databases` gave this run, to be known before the first sending.
        """
        self._remote = remote
        self.term = term
        self._databases = databases
        self._files = files
        self._sent: dict[str, str] = {}

    def send(self) -> None:
        """Bring the URL up to date.

        Databases go first, for files (a table, a report) are made from them.

        Raises:
            RemoteError: the URL cannot be written now.
            SupersededError: a later run writes there.
            OSError, sqlite3.Error: something local is in the way.
        """
        with tempfile.TemporaryDirectory(prefix="tune_rescon-copy-") as scratch:
            present = {name: path for name, path in self._databases.items() if path.is_file()}
            copies = {name: Path(scratch) / name for name in present}
            # Copied from the last to the first and sent from the first to the last, none knows too much.
            for name, live in reversed(present.items()):
                copy_database(live, copies[name], term=self.term)
            for name, live in present.items():
                self._send_database(name, live, copies[name])
            for name, path in self._files.items():
                if path.is_file():
                    self._send_file(name, path, Path(scratch) / name)

    def discard(self, discards: Iterable[Discard]) -> None:
        """Delete at the URL what the copies there no longer speak of.

        Raises:
            RemoteError: not now.
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
        with copy.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self._sent.get(name) == digest:
            return
        at_url = parse_term(self._remote.read(name, start=TERM_BYTES[0], end=TERM_BYTES[1]))
        if at_url is not None and at_url > self.term:
            raise SupersededError(
                f"{self._remote.url}/{name} is written by a later run ({at_url}) than this one"
            )
        self._remote.upload(copy, name)
        self._sent[name] = digest
        # Only now: see choose_copy.
        if read_term(live) != self.term:
            write_term(live, self.term)

    def _send_file(self, name: str, path: Path, copy: Path) -> None:
        found = path.stat()
        version = f"{found.st_mtime_ns}:{found.st_size}"
        if self._sent.get(name) != version:
            # A log grows while it is sent.
            shutil.copyfile(path, copy)
            self._remote.upload(copy, name)
            self._sent[name] = version


_log: Final = logging.getLogger(__name__)

#: What SQLite keeps beside a database, and must not be read with another one.
_BESIDE: Final = ("-journal", "-wal", "-shm")


def fetch_databases(remote: RemoteFolder, databases: Mapping[str, Path], *, where: str = "--storage") -> int:
    """Make each local database (by its name at the URL) the newest copy; the term of the run that begins.

    To be called by one run at a time, before it opens any of them. The first leads, the others follow it: see
    :func:`.choose_copies`. ``where`` is the flag that named the URL.

    Raises:
        RemoteError: the URL cannot be read now.
        StorageError: a copy that is needed is damaged.
    """
    terms = [_terms(remote, name, path) for name, path in databases.items()]
    for (name, path), pair, copy in zip(databases.items(), terms, choose_copies(terms), strict=True):
        here, at_url = pair
        if copy is Copy.URL:
            _fetch(remote, name, path, where)
        elif copy is Copy.NOWHERE:
            _delete(path)
        if here is not None and copy is not Copy.HERE:
            _log.warning(
                "%s of this machine's run %d gave way to run %s's at %s", name, here, at_url, remote.url
            )
    return 1 + max((term for pair in terms for term in pair if term is not None), default=0)


def _terms(remote: RemoteFolder, name: str, path: Path) -> tuple[int | None, int | None]:
    """Of the copy here and the one at the URL."""
    here = read_term(path) if path.is_file() and is_whole(path) else None
    return here, parse_term(remote.read(name, start=TERM_BYTES[0], end=TERM_BYTES[1]))


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
    # The database last: what is beside it means nothing without it.
    for suffix in (*_BESIDE, ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


#: Seconds :meth:`Mirror.close` gives a call that is in flight when its time is up.
LAST_CALL: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds, and one factor."""

    interval: float = 5.0
    """Between two copies nobody waits for: epochs come more often than copies need to."""
    rest: float = 9.0
    """After a copy, times what it took: one of 10,000 trials takes seconds, and must not be made always."""
    patience: float = 0.4
    """A search waits for a copy at most; Ray Tune warns of callbacks that take half a second."""
    first_pause: float = 0.5
    longest_pause: float = 15.0
    """After a failure, doubling from the first to the longest."""


class Mirror:
    """Counts changes and has a :class:`.Sender` bring them to the URL. For the search's thread."""

    def __init__(self, sender: Sender, pace: Pace | None = None) -> None:
        """Nothing is sent before :meth:`start`."""
        self._sender = sender
        self._pace = pace or Pace()
        self._closing = threading.Event()
        self._deadline = 0.0
        # The condition guards all that follows.
        self._condition = threading.Condition()
        self._changes = self._urgent = self._sent = 0
        self._trouble = False
        self._rests_until = 0.0
        self._forgotten: list[Discard] = []
        self._discards: list[Discard] = []
        self._thread = threading.Thread(target=self._run, name="storage-mirror", daemon=True)

    def start(self) -> None:
        """Begin to send what changes from now on."""
        self._thread.start()

    def changed(self) -> None:
        """Have a change sent within the interval. Returns at once."""
        with self._condition:
            self._changes += 1
            self._condition.notify_all()

    def forget(self, discard: Discard) -> None:
        """Have files deleted once a copy is there that no longer needs them: the next :meth:`flush`'s."""
        self._forgotten.append(discard)

    def flush(self) -> bool:
        """Have a change sent now, and wait for it a little; whether it is there.

        Nobody waits for a URL that is in trouble already, nor for the end of a rest.
        """
        with self._condition:
            goal = self._urge()
            rests = time.monotonic() < self._rests_until
            patience = 0.0 if self._trouble or rests else self._pace.patience
            self._condition.wait_for(lambda: self._sent >= goal or self._trouble, patience)
            return self._sent >= goal

    def close(self, patience: float) -> int:
        """Send what is left, for ``patience`` seconds; the number of changes that are not at the URL.

        May be called again, with less patience, where a signal came meanwhile.
        """
        with self._condition:
            self._deadline = time.monotonic() + patience
            if not self._closing.is_set():
                self._closing.set()
                self._urge()
        # A call that hangs for longer is left to the daemon thread, and what it brings counts as missing.
        self._thread.join(patience + LAST_CALL)
        with self._condition:
            return self._changes - self._sent

    def abandon(self) -> None:
        """Begin nothing any more: the URL is another run's."""
        with self._condition:
            self._changes = self._sent
            self._discards.clear()
            self._closing.set()
            self._condition.notify_all()

    def _urge(self) -> int:
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
                self._bring(goal)
            except SupersededError as error:
                _log.error("nothing more is sent to the storage: %s", error)
                self._set_trouble()
                return
            except (OSError, sqlite3.Error) as error:
                _log.warning("the storage is behind; next try in %.1f s: %s", pause, error)
                self._set_trouble()
                if not self._rest(pause):
                    return
                pause = min(2 * pause, self._pace.longest_pause)
            else:
                pause, last = self._pace.first_pause, time.monotonic()

    def _next_goal(self, last: float) -> int | None:
        """Wait until something is due; how many changes there are then, None when all is done."""
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

    def _bring(self, goal: int) -> None:
        with self._condition:
            discards = tuple(self._discards)
        began = time.monotonic()
        self._sender.send()
        with self._condition:
            now = time.monotonic()
            self._rests_until = now + self._pace.rest * (now - began)
            self._sent = goal
            self._trouble = False
            self._condition.notify_all()
        self._sender.discard(discards)
        with self._condition:
            del self._discards[: len(discards)]

    def _set_trouble(self) -> None:
        with self._condition:
            self._trouble = True
            self._condition.notify_all()

    def _rest(self, pause: float) -> bool:
        """Wait before the next try; False if there is none."""
        if self._closing.wait(pause):
            left = self._deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
        return True
