"""A search's lease, read by somebody who does not want it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_rescon.storage import RemoteFolder, SharedValue
from tune_rescon.tuning.ownership.driver import process_start, this_driver
from tune_rescon.tuning.ownership.lease import Lease
from tune_rescon.tuning.reading.standing import driver_lives

__all__ = ["lives_by_file", "lives_by_url"]


def lives_by_file(value: Mapping[str, Any] | None, database: Path | None) -> bool:
    """Whether the driver lives whose lease, ``value``, is in the study.

    A driver elsewhere shows by its beat, with which the ``database`` changes; on a server (None), its lease
    is believed.
    """
    silent = 0.0 if database is None else time.time() - database.stat().st_mtime
    return _lives(value, silent)


def lives_by_url(folder: RemoteFolder) -> bool:
    """Whether the driver lives whose lease is in ``folder`` of the search's URL."""
    value = SharedValue(folder).read()
    beats = folder.names()
    beat = folder.modified(beats[-1]) if beats else None
    return _lives(value, 0.0 if beat is None else time.time() - beat)


def _lives(value: Mapping[str, Any] | None, silent: float) -> bool:
    lease = None if value is None else Lease.from_dict(value)
    return driver_lives(lease, this_driver(), process_start, silent=silent)
