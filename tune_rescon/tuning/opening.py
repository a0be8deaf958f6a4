"""The record a run of a search works on."""

from __future__ import annotations

from collections.abc import Callable

from tune_rescon.spaces import Space, dump_space
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.proposing.warm_start import note_earlier, trials_of
from tune_rescon.tuning.record.folder import SearchFolder
from tune_rescon.tuning.record.study import StudyRecord

__all__ = ["open_record"]


def open_record(
    space: Space, options: RunOptions, folder: SearchFolder, say: Callable[[str], object]
) -> StudyRecord:
    """The record of ``options.name``: a new one, with what it is to learn from, or the one to go on with.

    Raises:
        StorageError: a new name is taken, an old one is missing, or the database cannot be used.
    """
    url = options.study_url or folder.study_url
    metric = space.metric.name
    if options.resume:
        return StudyRecord.load(url, options.name, metric=metric)
    earlier = trials_of(space, options, say) if options.warm_start else []
    record = StudyRecord.create(
        url,
        options.name,
        metric=metric,
        maximize=space.metric.mode == "max",
        space=dump_space(space),
        against=space.metric.against,
    )
    note_earlier(record, earlier)
    return record
