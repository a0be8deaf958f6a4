"""The record a run of a search works on."""

from __future__ import annotations

from collections.abc import Callable

from tune_rescon.spaces import Space, dump_space, load_space
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.proposing.warm_start import note_earlier, trials_of
from tune_rescon.tuning.record.folder import SearchFolder
from tune_rescon.tuning.record.space_versions import SpaceVersions, read_versions
from tune_rescon.tuning.record.study import StudyRecord
from tune_rescon.tuning.space_changes import check_changes
from tune_rescon.tuning.stored_side import with_store_size

__all__ = ["create_record", "resume_record"]


def resume_record(
    space: Space, options: RunOptions, folder: SearchFolder
) -> tuple[StudyRecord, SpaceVersions]:
    """The record of the search to resume, and the spaces it has had before ``space``.

    Raises:
        StorageError: there is no such study, or the database cannot be used.
        SpaceError: ``space`` would change what the recorded trials ran with.
    """
    url = options.study_url or folder.study_url
    record = StudyRecord.load(url, options.name, metric=space.metric.name)
    versions = read_versions(record, lambda: load_space(folder.space_yaml))
    check_changes(options.name, versions.newest, with_store_size(space, versions.newest), record.trials())
    return record, versions


def create_record(
    space: Space, options: RunOptions, folder: SearchFolder, say: Callable[[str], object]
) -> StudyRecord:
    """The record of a new search, with what it is to learn from.

    Raises:
        StorageError: the name is taken, an earlier search is missing, or the database cannot be used.
    """
    earlier = trials_of(space, options, say) if options.warm_start else []
    record = StudyRecord.create(
        options.study_url or folder.study_url,
        options.name,
        metric=space.metric.name,
        maximize=space.metric.mode == "max",
        space=dump_space(space),
        against=space.metric.against,
        at=space.metric.at,
    )
    note_earlier(record, earlier)
    return record
