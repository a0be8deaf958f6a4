"""The spaces that a search has had: the record keeps every version, and each trial says of which it is.

Version n is the study's attribute ``space:n``, as YAML; ``space`` is the newest. A record that an earlier
version of this package wrote has none of them. Its trials are taken to be of the ``space.yaml`` in the
search's folder, as that was before the first resume, which writes it down as version 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

from tune_rescon.errors import SpaceError
from tune_rescon.spaces import Space, dump_space, load_goal, load_space, parse_space
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.study import METRIC, METRIC_AT, StudyRecord
from tune_rescon.tuning.trial import TrialOrigin, find_origin

__all__ = [
    "SpaceVersions",
    "note_space",
    "open_recorded",
    "read_versions",
]


_VERSION: Final = "space:{}"
_NEWEST: Final = "space"


@dataclass(frozen=True, kw_only=True)
class SpaceVersions:
    """The spaces of one search, oldest first; version n is ``spaces[n - 1]``."""

    spaces: tuple[Space, ...]

    @property
    def newest(self) -> Space:
        """The space that trials are drawn from now."""
        return self.spaces[-1]

    @property
    def number(self) -> int:
        """The version of :attr:`newest`."""
        return len(self.spaces)

    @property
    def alike(self) -> frozenset[int]:
        """The versions whose trials are drawn and fixed exactly as the newest one's."""
        newest = self.newest
        return frozenset(
            number
            for number, space in enumerate(self.spaces, start=1)
            if space.parameters == newest.parameters and space.fixed == newest.fixed
        )

    def followed_by(self, space: Space) -> SpaceVersions:
        """With ``space`` as the newest version, if it differs from the one that is the newest."""
        return self if space == self.newest else SpaceVersions(spaces=(*self.spaces, space))


def read_versions(record: StudyRecord, on_file: Callable[[], Space]) -> SpaceVersions:
    """The versions in the record. Trials that an earlier version recorded get their configuration from them.

    Args:
        record: the search's.
        on_file: reads the folder's ``space.yaml``. Called only if the record has no versions.

    Raises:
        SpaceError: no version of the space can be read.
    """
    attributes = record.attributes()
    texts = takewhile(bool, (attributes.get(_VERSION.format(number), "") for number in count(1)))
    spaces = tuple(map(_parsed, texts)) or (_first_space(record, on_file, attributes.get(_NEWEST, "")),)
    for number, origin in _origins(spaces[0], record).items():
        record.fill_origin(number, origin)
    return SpaceVersions(spaces=spaces)


def open_recorded(
    url: str, folder: SearchFolder, *, any_name: bool = False
) -> tuple[StudyRecord, SpaceVersions]:
    """The record of an earlier search, and the spaces it has had.

    Args:
        url: its database.
        folder: its folder, whose ``space.yaml`` a record of an earlier version of this package needs.
        any_name: see :func:`.find_study`.

    Raises:
        StorageError: the database has no such study, or cannot be reached.
        SpaceError: no version of its space can be read.
    """
    metric = load_goal(folder.space_yaml).metric.name
    record = StudyRecord.load(url, folder.name, metric=metric, any_name=any_name)
    return record, read_versions(record, lambda: load_space(folder.space_yaml))


def note_space(record: StudyRecord, before: SpaceVersions | None, space: Space) -> SpaceVersions:
    """Write down what trials are drawn from, from now on.

    Args:
        record: the search's.
        before: what :func:`read_versions` found; None: the search is new.
        space: the newest version, the same as before or another.

    Returns:
        All versions.
    """
    versions = SpaceVersions(spaces=(space,)) if before is None else before.followed_by(space)
    written = record.attributes()
    for key, value in ((METRIC, space.metric.name), (METRIC_AT, space.metric.at)):
        if key not in written:
            record.set_attribute(key, value)
    for number, each in enumerate(versions.spaces, start=1):
        if _VERSION.format(number) not in written:
            record.set_attribute(_VERSION.format(number), dump_space(each))
            record.set_attribute(_NEWEST, dump_space(each))
    return versions


def _first_space(record: StudyRecord, on_file: Callable[[], Space], begun_with: str) -> Space:
    """The space of an older record's trials: the file's, or the study's if that contains more of them."""
    found: list[Space] = []
    problems: list[SpaceError] = []
    for read in (on_file, lambda: _parsed(begun_with)):
        try:
            found.append(read())
        except SpaceError as error:
            problems.append(error)
        else:
            if len(_origins(found[-1], record)) == len(record):
                return found[-1]
    if not found:
        raise problems[0]
    return max(found, key=lambda space: len(_origins(space, record)))


def _origins(space: Space, record: StudyRecord) -> dict[int, TrialOrigin]:
    """The origin in ``space`` of every trial that has none in the record."""
    found = {
        trial.number: find_origin(space, trial.parameters, version=1, number=trial.number)
        for trial in record.trials()
        if trial.origin is None
    }
    return {number: origin for number, origin in found.items() if origin is not None}


def _parsed(text: str) -> Space:
    return parse_space(text, source="the space in the study")
