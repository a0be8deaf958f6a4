"""How a search stands, by its lease, by what its last run noted, and by its trials: a pure decision."""

from __future__ import annotations

from typing import Final

from tune_rescon.tuning.ownership.driver import Driver, ProcessTable
from tune_rescon.tuning.ownership.lease import Claim, Lease, may_take
from tune_rescon.tuning.result import SearchState

__all__ = ["driver_lives", "search_state"]

#: A lease has four beats; a driver on another machine that was silent for two leases is taken for dead. This
#: is for people who look: who takes a search over watches the beat itself, and believes no clock.
SILENT_LEASES: Final = 2.0


def driver_lives(lease: Lease | None, me: Driver, processes: ProcessTable, *, silent: float) -> bool:
    """Whether a search has a driver.

    Args:
        lease: the search's.
        me: the process that asks.
        processes: the process table of ``me``'s place.
        silent: seconds since the lease was last written, by clocks that may differ; 0 if nobody knows.
    """
    claim = may_take(lease, me, processes)
    if claim is not Claim.WATCH:
        return claim is Claim.REFUSE
    assert lease is not None, "there is nothing to watch"
    return silent < SILENT_LEASES * lease.seconds


def search_state(*, alive: bool, outcome: SearchState | None, ended: int, total: int) -> SearchState:
    """How a search stands whose driver is ``alive``, or noted ``outcome`` when it ended.

    Of one that was killed the trials tell: ``ended`` of ``total``.

    >>> search_state(alive=False, outcome=None, ended=3, total=12).value
    'interrupted'
    """
    if alive:
        return SearchState.RUNNING
    if outcome is not None:
        return outcome
    return SearchState.FINISHED if ended >= total else SearchState.INTERRUPTED
