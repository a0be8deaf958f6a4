"""Which lease a search has: in its study's database, or at its URL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from tune_rescon.tuning.ownership.lease import LeaseKeeper, LeaseStore, hold_lease
from tune_rescon.tuning.ownership.lease_store import StudyLeaseStore

__all__ = ["search_lease"]

#: A lease at a URL is longer: a beat there is several requests, and each is repeated for half a minute where
#: the store refuses it (s3fs's 5 tries of botocore's 5).
URL_LEASE_FACTOR: Final = 4


def search_lease(
    name: str,
    *,
    study_url: str,
    at_url: LeaseStore | None,
    seconds: float,
    say: Callable[[str], object],
) -> AbstractContextManager[LeaseKeeper]:
    """Hold the lease of the search ``name`` for a block.

    Args:
        name: the search's.
        study_url: its study's database, where the lease is kept.
        at_url: where it is kept instead, if the database is a file that is only a copy.
        seconds: how long the lease is; :data:`URL_LEASE_FACTOR` times that at a URL.
        say: tells what keeps the driver waiting.

    Raises:
        LeaseError: another driver has the search.
    """
    if at_url is not None:
        return hold_lease(at_url, name=name, seconds=URL_LEASE_FACTOR * seconds, say=say)
    return hold_lease(StudyLeaseStore.open(study_url, name), name=name, seconds=seconds, say=say)
