"""The state of the MLflow runs of a search and its trials. A newer state includes the older ones.

Therefore only the newest unsent state of a run is kept, however long the server is unavailable. The study
serves as the durable queue, because each state is read from it.

Times are in milliseconds since the Unix epoch, which is MLflow's unit. A trial is identified by its number;
the writer finds or creates the run that shows the trial.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from tune_rescon.csv_cells import csv_line
from tune_rescon.data.selection import as_text
from tune_rescon.errors import StorageError, format_error, hide_passwords

__all__ = [
    "ACTIVE",
    "Champion",
    "Destination",
    "Images",
    "RunState",
    "SearchRunState",
    "TrialRunState",
    "check_tracking_uri",
    "mlflow_names",
    "now_ms",
    "storable",
    "without_passwords",
]


#: The state of a search or trial that has not ended and does not wait to be resumed or promoted.
ACTIVE: Final = "running"


def now_ms() -> int:
    """Return the milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


#: Characters that MLflow refuses in the name of a metric, on some system or on all.
_REFUSED: Final = re.compile(r"[^\w.\- ]")

#: The length of a name without its number. MLflow allows 250 characters.
_NAME_CHARACTERS: Final = 240


def mlflow_names(metrics: Iterable[str]) -> dict[str, str]:
    """Return the name that MLflow shows for each metric, with ``_`` for the characters that MLflow refuses.

    A number distinguishes names that would otherwise be equal.

    >>> mlflow_names(["val_loss", "val_f1/a&b", "val_f1/a+b"])
    {'val_loss': 'val_loss', 'val_f1/a&b': 'val_f1/a_b', 'val_f1/a+b': 'val_f1/a_b 2'}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for metric in metrics:
        first, slash, of = metric.partition("/")
        name = shown = f"{first}{slash}{_REFUSED.sub('_', of)}"[:_NAME_CHARACTERS]
        number = 1
        while shown in taken:
            number += 1
            shown = f"{name} {number}"
        taken.add(shown)
        names[metric] = shown
    return names


@dataclass(frozen=True, kw_only=True)
class TrialRunState:
    """The child run of a trial."""

    number: int
    run_id: str | None = None
    """The id of the run that shows the trial; None if the record does not contain it."""
    state: str = ACTIVE
    """A value of :class:`.TrialState`, ``running`` until the trial has ended or is paused or interrupted."""
    params: Mapping[str, str] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The values of each metric by epoch, from epoch 1."""
    times_ms: Sequence[int] = ()
    """The time at which each epoch was recorded, in milliseconds."""
    closing: Mapping[str, float] = field(default_factory=dict)
    """The final figures of an ended trial, each a single point at the trial's last epoch."""
    error: str | None = None
    notes: tuple[str, ...] = ()
    started_ms: int = field(default_factory=now_ms)
    ended_ms: int = field(default_factory=now_ms)

    @property
    def epochs(self) -> int:
        """The number of epochs to show."""
        return len(self.times_ms)


@dataclass(frozen=True, kw_only=True)
class Images:
    """A dataset on which a search trains."""

    name: str
    digest: str
    """Equal for datasets with equal images, labels and splits; at most 36 characters."""
    counts: Mapping[str, int]
    """The number of images in each split."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The winner's network, to be registered as a model under the search's name."""

    number: int
    epoch: int
    checkpoint: str
    """The ``best.ckpt``: a path, or the URL of a storage."""
    value: str = ""
    """The winner's metric value and its epoch, as text for the registered model's description."""


@dataclass(frozen=True, kw_only=True)
class SearchRunState:
    """The parent run of a search."""

    id: str
    """The search's id. The search's runs carry the id as a tag and are found by this tag only."""
    place: str = ""
    """The host and folder, or the URL, of the search's record.

    A run that was created at another place is never deleted, because a copy of a search has the same id until
    it is resumed.
    """
    known_runs: tuple[str, ...] = ()
    """The run ids in the record. They find the runs of a search that began without an id."""
    state: str = ACTIVE
    tags: Mapping[str, str] = field(default_factory=dict)
    """An empty text replaces that of an earlier driver, and is no tag of a new run."""
    note: str = ""
    """The text on the run's page in MLflow, in Markdown."""
    closing: Mapping[str, float] = field(default_factory=dict)
    images: tuple[Images, ...] = ()
    preload_exporter: bool = False
    """True if the search will soon have a champion: the code that registers it can be imported now."""
    champion: Champion | None = None
    """The champion, which is registered after the search has ended and all other content is sent."""
    files: tuple[Path, ...] = ()
    """Files to upload as artifacts, each in its newest version."""
    started_ms: int = field(default_factory=now_ms)
    ended_ms: int = field(default_factory=now_ms)


RunState: TypeAlias = TrialRunState | SearchRunState


@dataclass(frozen=True, kw_only=True)
class Destination:
    """An MLflow store, and the names of a search in it."""

    uri: str
    """The tracking URI."""
    experiment: str
    """The name of the experiment: the dataset's name, or the name of its folder."""
    search: str
    """The name of the parent run, and the tag of all runs of the search."""
    metric: str
    maximize: bool
    """True if a larger ``metric`` is better."""
    artifacts: Path | None = None
    """The folder for the artifacts of a new experiment; None for the server's default."""
    known_runs: tuple[str, ...] = ()
    """The ids of some runs of the search; empty for a new search. The search stays in the experiment of the
    first one that the store has, even if a user has renamed it."""


def storable(value: Any) -> Any:
    """Return a state or a destination with texts that every store accepts; paths stay unchanged.

    A text may have the name of a file, which may have bytes that are not UTF-8 (:func:`.as_text`).
    """
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, tuple):
        return tuple(map(storable, value))
    if isinstance(value, Mapping):
        return {key: storable(inner) for key, inner in value.items()}
    if isinstance(value, TrialRunState | SearchRunState | Images | Destination):
        fields = {field.name: storable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def _csv_without_passwords(text: str) -> str:
    # By cell, because a row has no space that ends a password before an @ in a later cell.
    rows = csv.reader(io.StringIO(text, newline=""))
    return "".join(csv_line(map(hide_passwords, row)) for row in rows)


#: Suffixes of the files that may contain the URL of an archive of images or of initial weights.
_TEXTS: Final = (".csv", ".json", ".yaml")


@contextmanager
def without_passwords(file: Path) -> Iterator[Path]:
    """Yield ``file``, or a temporary copy of it in which the passwords of URLs are hidden.

    Everyone who can read MLflow can read its artifacts. In the search's own folder the URLs keep their
    passwords, because the trials need them.
    """
    text = file.read_text(encoding="utf-8", errors="surrogateescape") if file.suffix in _TEXTS else ""
    shown = _csv_without_passwords(text) if file.suffix == ".csv" else hide_passwords(text)
    if shown == text:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as folder:
        copy = Path(folder) / file.name
        copy.write_text(shown, encoding="utf-8", errors="surrogateescape")
        yield copy


_SCHEMES: Final = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def check_tracking_uri(uri: str) -> None:
    """Check that a tracking URI has the scheme of an MLflow store.

    Raises:
        StorageError: If the scheme is not a server's or a database's. MLflow 3.13 and later refuse the file
            store.
    """
    scheme, slashes, _ = uri.partition("://")
    if uri == "databricks" or (slashes and scheme.partition("+")[0] in _SCHEMES):
        return
    rule = f"must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}"
    hint = "For a local store give sqlite:///PATH/mlflow.db."
    raise StorageError(format_error(rule, got=repr(uri), where="--tracking-uri", hint=hint))
