"""Lease tests for every database: one of several drivers gets the lease, and old drivers are respected."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import sqlalchemy

from tests.waiting import LONGEST_WAIT
from tune_rescon.errors import LeaseError, LeaseLostError
from tune_rescon.tuning.database import find_study, open_database
from tune_rescon.tuning.driver import Driver, Lease, this_driver
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.study_lease import StudyLeaseStore

RIVALS = 8

LEASE_SECONDS = 20.0

#: A driver on another machine whose heartbeat has stopped.
FROZEN = Driver(host="b", place="b boot-2 pid-1", pid=10, started=1000.0)


def rival_store(url: str, barrier: threading.Barrier) -> StudyLeaseStore:
    """Return a store with its own connection whose writes wait for those of all rivals."""
    storage = open_database(url, busy_seconds=30)
    store = StudyLeaseStore(storage, find_study(storage, "rivals"))

    def wait(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        # Only the winner writes the time of its beat.
        if not statement.startswith("SELECT") and "lease_beat" not in str(parameters):
            barrier.wait(LONGEST_WAIT)

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", wait)
    return store


def make_keeper(
    store: StudyLeaseStore, number: int, while_sleeping: Callable[[], object] = lambda: None
) -> LeaseKeeper:
    """Return a live driver of this machine. Its sleep advances its clock and calls ``while_sleeping``."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        while_sleeping()

    return LeaseKeeper(
        store,
        name="s",
        me=dataclasses.replace(this_driver(), pid=number, started=float(number)),
        seconds=LEASE_SECONDS,
        processes=float,
        clock=lambda: clock[0],
        sleep=sleep,
    )


def takes_lease(driver: LeaseKeeper) -> bool:
    try:
        driver.take()
    except LeaseError:
        return False
    return True


def assert_one_wins(url: str, *, rounds: int) -> None:
    """Eight drivers with separate connections try to take a lease that is new, released or stale."""
    optuna.create_study(storage=url, study_name="rivals")
    barrier = threading.Barrier(RIVALS)
    stores = [rival_store(url, barrier) for _ in range(RIVALS)]
    observer = StudyLeaseStore.open(url, "rivals")
    with ThreadPoolExecutor(RIVALS) as pool:
        for number in range(rounds):
            drivers = [make_keeper(store, 1 + index) for index, store in enumerate(stores)]
            won = list(pool.map(takes_lease, drivers))
            assert won.count(True) == 1, won
            held = Lease.from_dict(observer.read() or {})
            assert held.driver is not None
            assert won[held.driver.pid - 1], "the lease names the winner"
            free = dataclasses.replace(held, driver=None if number % 2 else FROZEN)
            assert observer.replace(held.to_dict(), free.to_dict())


def assert_old_leases_are_respected(url: str) -> None:
    """Earlier versions write the lease with Optuna's setter as a user attribute of the study."""
    optuna.create_study(storage=url, study_name="old")
    store = StudyLeaseStore.open(url, "old")
    study = optuna.load_study(storage=url, study_name="old")
    old = Lease(driver=FROZEN, token="old", beat=3, since="then", seconds=LEASE_SECONDS, driven=60.0)
    other_driver = dataclasses.replace(this_driver(), pid=7, started=7.0)

    def write(**changes: Any) -> None:
        study.set_user_attr("lease", dataclasses.replace(old, **changes).to_dict())

    write(driver=other_driver)
    with pytest.raises(LeaseError, match="process 7 on "):
        make_keeper(store, 1).take()
    write(driver=None)
    released = make_keeper(store, 1)
    released.take()
    assert released.elapsed_seconds == 60.0
    assert study.user_attrs["lease"]["driver"]["pid"] == 1, "earlier versions refuse it too"
    write(driver=other_driver, beat=4)
    with pytest.raises(LeaseLostError, match="taken over by process 7"):
        released.renew()
    write()
    with pytest.raises(LeaseError, match="process 10 on b"):
        make_keeper(store, 1, while_sleeping=lambda: write(beat=4)).take()
    stale = make_keeper(store, 1)
    stale.take()
    stale.renew()
    stale.release()
    assert study.user_attrs["lease"]["driver"] is None
