"""What a study's lease must do on every database: one of several drivers has it, and old drivers count."""

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
from tune_rescon.tuning.driver import Driver, this_driver
from tune_rescon.tuning.lease import Lease, LeaseKeeper
from tune_rescon.tuning.study_lease import StudyLeaseStore

RIVALS = 8

LENGTH = 20.0

#: A driver on another machine, whose beat has stopped.
FROZEN = Driver(host="b", place="b boot-2 pid-1", pid=10, started=1000.0)


def rival(url: str, meeting: threading.Barrier) -> StudyLeaseStore:
    """A store with a separate connection, whose changes wait until all rivals are about to make theirs."""
    storage = open_database(url, busy_seconds=30)
    store = StudyLeaseStore(storage, find_study(storage, "rivals"))

    def wait(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("SELECT"):
            meeting.wait(LONGEST_WAIT)

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", wait)
    return store


def keeper(
    store: StudyLeaseStore, number: int, meanwhile: Callable[[], object] = lambda: None
) -> LeaseKeeper:
    """A driver of this machine; all live. While it sleeps, its clock moves and ``meanwhile`` happens."""
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        meanwhile()

    return LeaseKeeper(
        store,
        name="s",
        me=dataclasses.replace(this_driver(), pid=number, started=float(number)),
        seconds=LENGTH,
        processes=float,
        clock=lambda: clock[0],
        sleep=sleep,
    )


def taken(driver: LeaseKeeper) -> bool:
    try:
        driver.take()
    except LeaseError:
        return False
    return True


def assert_one_wins(url: str, *, rounds: int) -> None:
    """Eight drivers, each with a connection, take a lease that is new, was given back, or is stale."""
    optuna.create_study(storage=url, study_name="rivals")
    meeting = threading.Barrier(RIVALS)
    stores = [rival(url, meeting) for _ in range(RIVALS)]
    calm = StudyLeaseStore.open(url, "rivals")
    with ThreadPoolExecutor(RIVALS) as pool:
        for number in range(rounds):
            drivers = [keeper(store, 1 + index) for index, store in enumerate(stores)]
            won = list(pool.map(taken, drivers))
            assert won.count(True) == 1, won
            held = Lease.from_dict(calm.read() or {})
            assert held.driver is not None
            assert won[held.driver.pid - 1], "the record names the winner"
            free = dataclasses.replace(held, driver=None if number % 2 else FROZEN)
            assert calm.replace(held.to_dict(), free.to_dict())


def assert_old_leases_are_respected(url: str) -> None:
    """The commit before wrote the lease with Optuna's setter, as the study's attribute."""
    optuna.create_study(storage=url, study_name="old")
    store = StudyLeaseStore.open(url, "old")
    study = optuna.load_study(storage=url, study_name="old")
    old = Lease(driver=FROZEN, token="old", beat=3, since="then", seconds=LENGTH, driven=60.0)
    beside = dataclasses.replace(this_driver(), pid=7, started=7.0)

    def write(**changes: Any) -> None:
        study.set_user_attr("lease", dataclasses.replace(old, **changes).to_dict())

    write(driver=beside)
    with pytest.raises(LeaseError, match="process 7 on "):
        keeper(store, 1).take()
    write(driver=None)
    given_back = keeper(store, 1)
    given_back.take()
    assert given_back.elapsed_seconds == 60.0
    assert study.user_attrs["lease"]["driver"]["pid"] == 1, "an earlier version refuses it"
    write(driver=beside, beat=4)
    with pytest.raises(LeaseLostError, match="taken over by process 7"):
        given_back.renew()
    write()
    with pytest.raises(LeaseError, match="process 10 on b"):
        keeper(store, 1, meanwhile=lambda: write(beat=4)).take()
    stale = keeper(store, 1)
    stale.take()
    stale.renew()
    stale.release()
    assert study.user_attrs["lease"]["driver"] is None
