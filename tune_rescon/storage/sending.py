"""What a running search keeps up to date at the URL: copies of its databases, and its files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tune_rescon.storage.database import TERM_BYTES, copy_database, parse_term, read_term, write_term
from tune_rescon.storage.remote import RemoteFolder

__all__ = ["Discard", "Sender", "SupersededError"]


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
