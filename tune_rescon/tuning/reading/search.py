"""A search from its record alone: while it runs, after it was killed, on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tune_rescon.config import TrialState
from tune_rescon.data import DatasetFacts, describe
from tune_rescon.errors import DataError
from tune_rescon.spaces import Space
from tune_rescon.storage import SearchHome, StorageUrl, sqlite_file, usable
from tune_rescon.tuning.options import default_cache_root, default_data_root, default_study
from tune_rescon.tuning.pricing import Pricing, datasets_of
from tune_rescon.tuning.reading.lease import lives_by_file, lives_by_url
from tune_rescon.tuning.reading.snapshot import snapshot
from tune_rescon.tuning.reading.standing import search_state
from tune_rescon.tuning.record.folder import SearchFolder
from tune_rescon.tuning.record.space_versions import open_recorded
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.result import StudyResult
from tune_rescon.tuning.run_notes import RunNotes, read_notes
from tune_rescon.tuning.space_changes import history_words
from tune_rescon.tuning.store.search_store import find_search
from tune_rescon.tuning.summing_up import sum_up

__all__ = ["Place", "known_datasets", "read_search", "summed_up"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where searches are to be read."""

    storage: Path | StorageUrl
    study_url: str | None = field(default_factory=default_study)
    """The studies' database; None: SQLite in each search's folder."""
    cache_root: Path = field(default_factory=default_cache_root)
    data_root: Path = field(default_factory=default_data_root)


def read_search(place: Place, name: str, *, where: str = "NAME") -> StudyResult:
    """The search ``name`` as it stands now; ``where`` says in errors what names it.

    Its record is only read, from a copy made in one moment, so that a running driver does not notice.

    Raises:
        StorageError: there is no such search, or its record cannot be read.
    """
    folder = _fetched(place, name, where)
    url = place.study_url or folder.study_url
    with snapshot(url) as readable:
        record, versions = open_recorded(readable, folder, any_name=place.study_url is None)
        trials, notes, lease = record.trials(), read_notes(record), record.attribute("lease")
        foreign = record.foreign
    at_url = SearchHome.find(place.storage, name) if isinstance(place.storage, StorageUrl) else None
    if at_url is not None and place.study_url is None:
        with usable(at_url.storage):
            alive = lives_by_url(at_url.remote.folder("lease"))
    else:
        alive = lives_by_file(lease, sqlite_file(url))
    return summed_up(
        Pricing(space=versions.newest, facts=known_datasets(notes, versions.newest, place.data_root)),
        trials,
        notes,
        name=name,
        folder=folder,
        url=at_url.remote.url if at_url else None,
        alive=alive,
        foreign=foreign,
        space_history=history_words(versions, trials),
    )


def summed_up(
    pricing: Pricing,
    trials: tuple[TrialSummary, ...],
    notes: RunNotes,
    *,
    name: str,
    folder: SearchFolder,
    url: str | None,
    alive: bool,
    foreign: tuple[int, ...] = (),
    space_history: tuple[str, ...] = (),
) -> StudyResult:
    """A search as its record has it, whose driver is ``alive`` or not."""
    ended = sum(trial.state.is_final for trial in trials)
    total = pricing.space.budget.trials
    return sum_up(
        pricing,
        trials if alive else tuple(map(_left, trials)),
        name=name,
        folder=folder.path,
        state=search_state(alive=alive, outcome=notes.outcome, ended=ended, total=total),
        tracking_uri=notes.tracking_uri or folder.mlflow_uri,
        url=url,
        failure=None if alive else notes.failure,
        foreign=foreign,
        space_history=space_history,
    )


def _left(trial: TrialSummary) -> TrialSummary:
    """A trial that no driver runs any more: a killed one had no time to say so."""
    running = trial.state is TrialState.RUNNING
    return replace(trial, state=TrialState.INTERRUPTED) if running else trial


def _fetched(place: Place, name: str, where: str) -> SearchFolder:
    files = ["space.yaml"] if place.study_url else ["space.yaml", "study.db"]
    return find_search(place.storage, name, cache_root=place.cache_root, where=where, files=files)


def known_datasets(notes: RunNotes, space: Space, data_root: Path) -> Mapping[str, DatasetFacts]:
    """What was noted; of a record that does not say, what this machine has."""
    if notes.datasets:
        return notes.datasets
    facts = {}
    for dataset in datasets_of(space):
        with suppress(DataError):
            facts[dataset.name] = describe(dataset, data_root=data_root)
    return facts
