"""What MLflow is to show of a search and of each trial: the newest value holds all that the older ones did.

So nothing has to be kept of what was not sent yet but the newest, however long the server is away: the record
of the search (decision 1 of the design) is the spool, on disk and in order, and these are read from it.

Times are milliseconds since the epoch, MLflow's own unit. A trial is named by its number; the writer finds or
creates the run that shows it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from filelock import FileLock

from tune_rescon.errors import StorageError, format_error
from tune_rescon.storage import sqlite_file

__all__ = [
    "ACTIVE",
    "Champion",
    "Destination",
    "Images",
    "SearchRunState",
    "TrialRunState",
    "View",
    "alone_at",
    "check_tracking_uri",
    "now_ms",
]


#: The state of what is not over, and does not wait to be resumed or promoted either.
ACTIVE: Final = "running"


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class TrialRunState:
    """A trial's child run."""

    number: int
    run_id: str | None = None
    """The run that shows the trial, where the record knows it."""
    state: str = ACTIVE
    """The contract's word; :data:`ACTIVE` until the trial is over, paused or interrupted."""
    params: Mapping[str, str] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Each metric by epoch, the first being epoch 1."""
    times_ms: Sequence[int] = ()
    """When each epoch was recorded."""
    closing: Mapping[str, float] = field(default_factory=dict)
    """The figures of a trial that is over, each a single point at its last epoch."""
    error: str | None = None
    notes: tuple[str, ...] = ()
    started_ms: int = field(default_factory=now_ms)
    ended_ms: int = field(default_factory=now_ms)

    @property
    def epochs(self) -> int:
        """How many there are to show."""
        return len(self.times_ms)


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a search trains on."""

    name: str
    digest: str
    """Equal where images, labels and splits are; 36 characters at most."""
    counts: Mapping[str, int]
    """How many images each part has."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The winner's network, to be registered as a model of the search's name."""

    number: int
    epoch: int
    checkpoint: str
    """The ``best.ckpt``: a path, or the URL of a storage."""
    value: str = ""
    """The winner's value, and the epoch it is of, in words: for the registered model's description."""


@dataclass(frozen=True, kw_only=True)
class SearchRunState:
    """The parent run."""

    id: str
    """The search's identity. Its runs carry it as a tag and are found by that tag alone."""
    place: str = ""
    """The host and folder, or the URL, of the search's record. A run that another place created is never
    deleted: a copy of a search has the same identity until it is resumed."""
    known_runs: tuple[str, ...] = ()
    """Run ids in the record. They find the runs of a search that began without an identity."""
    state: str = ACTIVE
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    """Markdown: what MLflow shows on the run's page."""
    closing: Mapping[str, float] = field(default_factory=dict)
    images: tuple[Images, ...] = ()
    champion_is_near: bool = False
    """Whether the search will have one soon: what registers it can be loaded meanwhile."""
    champion: Champion | None = None
    """Registered once the search is over and all else is sent."""
    files: tuple[Path, ...] = ()
    """Kept as artifacts, in the newest version of each."""
    started_ms: int = field(default_factory=now_ms)
    ended_ms: int = field(default_factory=now_ms)


View: TypeAlias = TrialRunState | SearchRunState


@dataclass(frozen=True, kw_only=True)
class Destination:
    """An MLflow store, and what a search is called there."""

    uri: str
    """The tracking URI."""
    experiment: str
    """The experiment's name: the dataset's."""
    search: str
    """The parent run's name, and the tag that all runs of the search carry."""
    metric: str
    maximize: bool
    """Whether a larger ``metric`` is better."""
    artifacts: Path | None = None
    """Where an experiment that is made now keeps its files; None: where the server says."""


_SCHEMES: Final = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def check_tracking_uri(uri: str) -> None:
    """Refuse a URI no MLflow store answers to.

    Raises:
        StorageError: its scheme is not a server's or a database's (MLflow refuses its file store since 3.13).
    """
    scheme, slashes, _ = uri.partition("://")
    if uri == "databricks" or (slashes and scheme.partition("+")[0] in _SCHEMES):
        return
    rule = f"must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}"
    hint = "For a local store give sqlite:///PATH/mlflow.db."
    raise StorageError(format_error(rule, got=repr(uri), where="--tracking-uri", hint=hint))


def alone_at(uri: str) -> AbstractContextManager[object]:
    """Keep this machine's other writers away from a SQLite store, by a lock file beside it."""
    file = sqlite_file(uri)
    if file is None:
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.with_name(f".{file.name}.lock"))
