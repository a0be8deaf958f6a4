"""The versions of a search's space. The record keeps every version, and each trial names its version.

Version n is the study's attribute ``space:n``, as YAML; the attribute ``space`` is the newest version. A
record that an earlier version of this package wrote lacks the attributes ``space:n``. Its trials are assumed
to be sampled from the ``space.yaml`` that the search's folder contained before the first resume. The first
resume records that file as version 1.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

from tune_rescon.errors import SpaceError
from tune_rescon.spaces import Space, dump_space, load_goal, load_space, parse_space
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.identity import check_same_search
from tune_rescon.tuning.study import METRIC, METRIC_AT, StudyRecord
from tune_rescon.tuning.trial import TrialOrigin, TrialRecord, find_origin

__all__ = ["SpaceVersions", "had_devices", "open_recorded", "read_versions", "record_version"]


_VERSION: Final = "space:{}"
_NEWEST: Final = "space"


@dataclass(frozen=True, kw_only=True)
class SpaceVersions:
    """The spaces of one search, oldest first; version n is ``spaces[n - 1]``."""

    spaces: tuple[Space, ...]

    @property
    def newest(self) -> Space:
        """The space from which new trials are sampled."""
        return self.spaces[-1]

    @property
    def number(self) -> int:
        """The version of :attr:`newest`."""
        return len(self.spaces)

    @property
    def like_newest(self) -> frozenset[int]:
        """The versions with the same parameters and fixed values as the newest version."""
        newest = self.newest
        return frozenset(
            number
            for number, space in enumerate(self.spaces, start=1)
            if space.parameters == newest.parameters and space.fixed == newest.fixed
        )

    def followed_by(self, space: Space) -> SpaceVersions:
        """Return the versions with ``space`` appended, unless it equals the newest version."""
        return self if space == self.newest else SpaceVersions(spaces=(*self.spaces, space))


def read_versions(record: StudyRecord, on_file: Callable[[], Space]) -> SpaceVersions:
    """Read the versions of the space from the record.

    Trials that an earlier version of this package recorded get their configuration from the first of these
    versions.

    Args:
        record: The search's record.
        on_file: Reads the folder's ``space.yaml``. Called only if the record has no versions.

    Raises:
        SpaceError: If no version of the space can be read.
    """
    attributes = record.attributes()
    texts = takewhile(bool, (attributes.get(_VERSION.format(number), "") for number in count(1)))
    spaces = tuple(map(_parsed, texts)) or (_first_space(record, on_file, attributes.get(_NEWEST, "")),)
    for number, origin in _origins(spaces[0], record).items():
        record.fill_origin(number, origin)
    return SpaceVersions(spaces=spaces)


def open_recorded(
    url: str, folder: SearchFolder, *, shared: bool, writes: bool = False
) -> tuple[StudyRecord, SpaceVersions]:
    """Open the record of an earlier search, and read the versions of its space.

    Args:
        url: The database's URL.
        folder: The search's folder. Its ``space.yaml`` is needed if an earlier version of this package wrote
            the record.
        shared: Whether the database is ``--study``, which may have the studies of other storages too. Then
            the study must be that of this folder's search.
        writes: Whether the caller writes the record. If not, the study in the folder of a renamed search may
            have the earlier name.

    Raises:
        StorageError: If the database has no such study, has another search's, or cannot be reached.
        SpaceError: If no version of the search's space can be read.
    """
    metric = load_goal(folder.space_yaml).metric.name
    record = StudyRecord.load(url, folder.name, metric=metric, any_name=not (shared or writes))
    if shared:
        check_same_search(record.attributes(), folder)
    return record, read_versions(record, lambda: load_space(folder.space_yaml))


def record_version(record: StudyRecord, before: SpaceVersions | None, space: Space) -> SpaceVersions:
    """Record the space from which trials are sampled from now on.

    Args:
        record: The search's record.
        before: The result of :func:`read_versions`; None if the search is new.
        space: The newest version, which may equal the previous one.

    Returns:
        All versions.
    """
    versions = SpaceVersions(spaces=(space,)) if before is None else before.followed_by(space)
    written = record.attributes()
    for key, value in ((METRIC, space.metric.name), (METRIC_AT, space.metric.at)):
        if key not in written:
            record.set_attribute(key, value)
    for number, each in enumerate(versions.spaces, start=1):
        # A driver that died before its search began may have left its own first version in a shared database.
        if before is None or _VERSION.format(number) not in written:
            record.set_attribute(_VERSION.format(number), dump_space(each))
            record.set_attribute(_NEWEST, dump_space(each))
    return versions


def had_devices(versions: SpaceVersions) -> Callable[[TrialRecord], bool]:
    """Return a function: whether a trial that ran out of memory had the GPUs of the newest space.

    Without them, it says nothing about the memory that a trial has now, and its point may run again.
    """

    def devices(space: Space) -> Hashable:
        resources = space.resources_per_trial
        return resources.gpus, resources.workers, resources.accelerator

    now = devices(versions.newest)
    same = {number for number, space in enumerate(versions.spaces, start=1) if devices(space) == now}

    def had(trial: TrialRecord) -> bool:
        version = trial.failed_in or (trial.origin.space if trial.origin else None)
        return version is None or version in same

    return had


def _first_space(record: StudyRecord, on_file: Callable[[], Space], begun_with: str) -> Space:
    """Return the space of an older record's trials: the file's, or the study's if it fits more trials."""
    readable: list[Space] = []
    problems: list[SpaceError] = []
    for read in (on_file, lambda: _parsed(begun_with)):
        try:
            readable.append(read())
        except SpaceError as error:
            problems.append(error)
        else:
            if len(_origins(readable[-1], record)) == len(record):
                return readable[-1]
    if not readable:
        raise problems[0]
    return max(readable, key=lambda space: len(_origins(space, record)))


def _origins(space: Space, record: StudyRecord) -> dict[int, TrialOrigin]:
    """Return the origin in ``space`` of each trial whose origin is not in the record."""
    origins = {
        trial.number: find_origin(space, trial.parameters, trial.number)
        for trial in record.trials()
        if trial.origin is None
    }
    return {number: origin for number, origin in origins.items() if origin is not None}


def _parsed(text: str) -> Space:
    return parse_space(text, source="the space in the study")
