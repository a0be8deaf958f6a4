"""One driver at a time: the lease decision, the keeper on a simulated clock, the store on SQLite."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.rival_drivers import assert_old_leases_are_respected, assert_one_wins
from tests.waiting import LONGEST_WAIT
from tune_rescon.errors import LeaseError, LeaseLostError, StorageError
from tune_rescon.tuning.driver import Driver, Lease, LeaseDecision, decide_lease, this_driver
from tune_rescon.tuning.lease import LeaseKeeper, hold_lease
from tune_rescon.tuning.study_lease import StudyLeaseStore, silent_seconds

THIS_DRIVER = Driver(host="a", place="a boot-1 pid-1", pid=10, started=1000.0)
SAME_MACHINE = dataclasses.replace(THIS_DRIVER, pid=11, started=1001.0)
OTHER_MACHINE = Driver(host="b", place="b boot-2 pid-1", pid=10, started=1000.0)
OTHER_BOOT = dataclasses.replace(THIS_DRIVER, place="a boot-2 pid-1", pid=5)

#: Seconds of the leases in these tests.
LEASE_SECONDS = 20.0


def lease(driver: Driver | None, **changes: Any) -> Lease:
    held = Lease(driver=driver, token="t", beat=3, since="then", seconds=LEASE_SECONDS, driven=60.0)
    return dataclasses.replace(held, **changes)


@pytest.mark.parametrize(
    ("held_by", "processes", "expected"),
    [
        pytest.param(None, {}, LeaseDecision.TAKE, id="released"),
        pytest.param(SAME_MACHINE, {}, LeaseDecision.TAKE, id="dead"),
        pytest.param(SAME_MACHINE, {11: 1001.0}, LeaseDecision.REFUSE, id="alive"),
        pytest.param(SAME_MACHINE, {11: 1002.5}, LeaseDecision.REFUSE, id="alive, start time less exact"),
        pytest.param(SAME_MACHINE, {11: 5000.0}, LeaseDecision.WATCH, id="number reused by another process"),
        pytest.param(SAME_MACHINE, {10: 1000.0}, LeaseDecision.TAKE, id="dead, other processes alive"),
        pytest.param(THIS_DRIVER, {10: 1000.0}, LeaseDecision.WATCH, id="this process"),
        pytest.param(OTHER_MACHINE, {}, LeaseDecision.WATCH, id="other machine"),
        pytest.param(
            OTHER_MACHINE, {10: 1000.0}, LeaseDecision.WATCH, id="other machine, number of a local process"
        ),
        pytest.param(OTHER_BOOT, {}, LeaseDecision.WATCH, id="before a reboot or in another container"),
    ],
)
def test_the_lease_decision_follows_from_the_holder_and_its_process(
    held_by: Driver | None, processes: dict[int, float], expected: LeaseDecision
) -> None:
    assert decide_lease(lease(held_by), THIS_DRIVER, processes.get) is expected


def test_a_lease_that_was_never_held_is_free() -> None:
    heartbeats: dict[int, float] = {}
    assert decide_lease(None, THIS_DRIVER, heartbeats.get) is LeaseDecision.TAKE


@given(
    pid=st.integers(1, 30),
    started=st.floats(0, 1e9),
    table=st.dictionaries(st.integers(1, 30), st.floats(0, 1e9)),
)
def test_a_live_process_of_this_machine_does_not_lose_its_lease(
    pid: int, started: float, table: dict[int, float]
) -> None:
    holder = dataclasses.replace(THIS_DRIVER, pid=pid, started=started)
    me = dataclasses.replace(THIS_DRIVER, pid=31)
    alive = {**table, pid: started}
    assert decide_lease(lease(holder), me, alive.get) is LeaseDecision.REFUSE
    assert (decide_lease(lease(holder), me, table.get) is LeaseDecision.TAKE) == (pid not in table)


class FakeStore:
    """A lease store on a simulated clock, with scheduled events such as writes of other drivers."""

    def __init__(self, held: Lease | None = None, read_back_seconds: float = 0.0) -> None:
        self.read_back_seconds = read_back_seconds
        self.now = 0.0
        self.value = None if held is None else held.to_dict()
        self.writes = 0
        self.events: list[tuple[float, Callable[[], object]]] = []
        self.processes: dict[int, float] = {}
        self.fails_until = -1.0

    def read(self) -> dict[str, Any] | None:
        if self.now < self.fails_until:
            raise OSError("the store is unreachable")
        return self.value

    def write(self, value: dict[str, Any]) -> None:
        """Write without a comparison, as earlier versions do."""
        if self.now < self.fails_until:
            raise OSError("the store is unreachable")
        self.writes += 1
        self.value = value

    def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
        if self.read() != expected:
            return False
        self.write(value)
        return True

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for when, event in self.events if when <= self.now]
        self.events = [(when, event) for when, event in self.events if when > self.now]
        for event in due:
            event()

    def keeper(
        self, me: Driver = THIS_DRIVER, *, search_clock: Callable[[], float] | None = None
    ) -> LeaseKeeper:
        return LeaseKeeper(
            self,
            name="s",
            me=me,
            seconds=LEASE_SECONDS,
            processes=self.processes.get,
            clock=lambda: self.now,
            search_clock=search_clock or (lambda: self.now),
            sleep=self.sleep,
        )

    def holder(self) -> Driver | None:
        assert self.value is not None
        return Lease.from_dict(self.value).driver


def test_a_dead_drivers_lease_is_taken_without_waiting() -> None:
    lease_store = FakeStore(lease(SAME_MACHINE))
    lease_store.keeper().take()
    assert lease_store.holder() == THIS_DRIVER
    assert lease_store.now == 0.0


def test_a_live_driver_keeps_its_lease_and_is_named() -> None:
    lease_store = FakeStore(lease(SAME_MACHINE))
    lease_store.processes[11] = 1001.0
    with pytest.raises(
        LeaseError, match=r"process 11 on a has driven it since then\. .*`kill 11`.*--resume s"
    ):
        lease_store.keeper().take()
    assert (lease_store.writes, lease_store.now) == (0, 0.0)


def test_a_lease_without_a_heartbeat_is_taken_after_its_length() -> None:
    lease_store = FakeStore(lease(OTHER_MACHINE))
    lease_store.keeper().take()
    assert lease_store.holder() == THIS_DRIVER
    assert LEASE_SECONDS <= lease_store.now <= LEASE_SECONDS + 2


def test_a_lease_with_a_heartbeat_is_refused() -> None:
    lease_store = FakeStore(lease(OTHER_MACHINE))
    lease_store.events.append((15.0, lambda: lease_store.write(lease(OTHER_MACHINE, beat=4).to_dict())))
    with pytest.raises(LeaseError, match="process 10 on b"):
        lease_store.keeper().take()
    assert lease_store.holder() == OTHER_MACHINE


def test_a_lease_given_back_while_it_is_watched_is_taken() -> None:
    lease_store = FakeStore(lease(OTHER_MACHINE))
    lease_store.events.append((5.0, lambda: lease_store.write(lease(None).to_dict())))
    lease_store.keeper().take()
    assert lease_store.holder() == THIS_DRIVER
    assert lease_store.now < LEASE_SECONDS


def test_of_two_concurrent_takers_the_first_to_replace_the_lease_wins() -> None:
    """The second driver has read a free lease, which the first one takes in the meantime."""
    lease_store = FakeStore()

    class StaleRead(FakeStore):
        def read(self) -> dict[str, Any] | None:
            return None if self.value is None else lease_store.read()

        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            lease_store.keeper(OTHER_MACHINE).take()
            self.value = value
            return lease_store.replace(expected, value)

    with pytest.raises(LeaseError, match="process 10 on b"):
        StaleRead().keeper().take()
    assert lease_store.holder() == OTHER_MACHINE


@pytest.mark.parametrize("write_after", [0.1, 0.5])
def test_a_store_without_compare_and_swap_is_read_back(write_after: float) -> None:
    """Both writes succeed, and the other driver's write replaces this one's."""
    lease_store = FakeStore(read_back_seconds=0.5)
    lease_store.events.append((write_after, lambda: lease_store.write(lease(OTHER_MACHINE).to_dict())))
    with pytest.raises(LeaseError, match="process 10 on b"):
        lease_store.keeper().take()
    assert lease_store.holder() == OTHER_MACHINE


def test_ensure_held_renews_only_a_lease_older_than_half_its_length() -> None:
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()
    writes_before = lease_store.writes
    keeper.ensure_held()
    lease_store.sleep(LEASE_SECONDS / 2)
    keeper.ensure_held()
    assert lease_store.writes == writes_before
    lease_store.sleep(1.0)
    keeper.ensure_held()
    keeper.ensure_held()
    assert lease_store.writes == writes_before + 1


@pytest.mark.parametrize("frozen_seconds", [LEASE_SECONDS / 2 + 1, 10 * LEASE_SECONDS])
def test_a_driver_that_was_frozen_and_overtaken_writes_nothing(frozen_seconds: float) -> None:
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()
    lease_store.sleep(frozen_seconds)
    lease_store.write(lease(OTHER_MACHINE).to_dict())
    writes_before = lease_store.writes
    for _ in range(2):
        with pytest.raises(LeaseLostError, match="taken over by process 10 on b"):
            keeper.ensure_held()
    keeper.release()
    assert (lease_store.writes, lease_store.holder()) == (writes_before, OTHER_MACHINE)


def test_a_driver_that_was_frozen_and_not_overtaken_continues() -> None:
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()
    lease_store.sleep(10 * LEASE_SECONDS)
    keeper.ensure_held()
    assert lease_store.holder() == THIS_DRIVER


def test_a_driver_that_wakes_during_a_takeover_loses_the_lease() -> None:
    lease_store = FakeStore(read_back_seconds=0.5)
    keeper = lease_store.keeper()
    keeper.take()
    lease_store.sleep(10 * LEASE_SECONDS)
    lease_store.events.append(
        (lease_store.now + 0.1, lambda: lease_store.write(lease(OTHER_MACHINE).to_dict()))
    )
    with pytest.raises(LeaseLostError, match="process 10 on b"):
        keeper.ensure_held()


def test_a_driver_that_was_frozen_while_renewing_replaces_no_other_lease() -> None:
    """Another driver takes over between the last read and the write."""
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()

    class FreezingStore(FakeStore):
        read_back_seconds = 0.0

        def read(self) -> dict[str, Any] | None:
            return lease_store.read()

        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            lease_store.sleep(10 * LEASE_SECONDS)
            lease_store.write(lease(OTHER_MACHINE).to_dict())
            return lease_store.replace(expected, value)

    keeper._store = FreezingStore()
    with pytest.raises(LeaseLostError, match="taken over by process 10 on b"):
        keeper.renew()
    with pytest.raises(LeaseLostError):
        keeper.ensure_held()
    assert lease_store.holder() == OTHER_MACHINE


def test_a_renewal_with_a_lost_response_keeps_the_lease() -> None:
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()

    class LostResponse(FakeStore):
        def read(self) -> dict[str, Any] | None:
            return lease_store.read()

        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            lease_store.replace(expected, value)
            raise OSError("the connection was lost")

    keeper._store = LostResponse()
    with pytest.raises(OSError, match="connection"):
        keeper.renew()
    keeper._store = lease_store
    keeper.renew()
    keeper.release()
    assert lease_store.holder() is None


def test_a_record_that_was_restored_from_a_backup_ends_its_driver() -> None:
    """Later writes of the driver could belong to trials that the restored study does not have."""
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()
    backup = lease_store.read()
    keeper.renew()
    lease_store.value = backup
    with pytest.raises(LeaseLostError, match="its record was replaced by an older copy"):
        keeper.renew()
    with pytest.raises(LeaseLostError, match="Resume what that copy holds"):
        keeper.ensure_held()
    assert lease_store.value == backup


@pytest.mark.parametrize(
    ("unreachable_seconds", "lost"), [(LEASE_SECONDS / 4, False), (2 * LEASE_SECONDS, True)]
)
def test_an_unreachable_store_is_retried_for_the_length_of_the_lease(
    unreachable_seconds: float, lost: bool
) -> None:
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()
    lease_store.sleep(LEASE_SECONDS / 2 + 1)
    lease_store.fails_until = lease_store.now + unreachable_seconds
    if lost:
        with pytest.raises(LeaseLostError, match="could not be renewed for 20 s"):
            keeper.ensure_held()
        assert lease_store.now < 2 * LEASE_SECONDS
    else:
        keeper.ensure_held()
        assert lease_store.holder() == THIS_DRIVER


def test_a_released_lease_is_free_and_keeps_the_elapsed_seconds() -> None:
    lease_store = FakeStore(lease(None, driven=60.0))
    keeper = lease_store.keeper()
    keeper.take()
    lease_store.sleep(30.0)
    keeper.release()
    assert lease_store.holder() is None
    second_keeper = lease_store.keeper(OTHER_MACHINE)
    second_keeper.take()
    assert second_keeper.elapsed_seconds == pytest.approx(60.0 + 30.0)


def test_the_time_of_a_suspended_machine_does_not_count_as_time_of_the_search() -> None:
    """The deadline of a run does not count it either. The lease does: another driver may have taken it."""
    lease_store, suspended = FakeStore(), [0.0]
    keeper = lease_store.keeper(search_clock=lambda: lease_store.now - suspended[0])
    keeper.take()
    lease_store.sleep(30.0)
    lease_store.sleep(36_000.0)
    suspended[0] += 36_000.0
    keeper.ensure_held()
    assert keeper.elapsed_seconds == pytest.approx(30.0)
    keeper.release()
    resumed = lease_store.keeper()
    resumed.take()
    assert resumed.elapsed_seconds == pytest.approx(30.0)


def test_hours_are_counted_by_the_clock_of_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_rescon.tuning.lease._seconds", lambda: 1e6 + time.monotonic() * 1000)
    with hold_lease(FakeStore(), name="s") as keeper:
        time.sleep(0.05)
        assert 0.05 <= keeper.elapsed_seconds < 20.0


def test_elapsed_seconds_of_a_dead_driver_count_to_its_last_heartbeat() -> None:
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()
    lease_store.sleep(40.0)
    keeper.renew()
    lease_store.sleep(3.0)
    second_keeper = lease_store.keeper(SAME_MACHINE)
    second_keeper.take()
    assert second_keeper.elapsed_seconds == pytest.approx(40.0)


def test_an_unreachable_store_at_the_end_raises_nothing() -> None:
    lease_store = FakeStore()
    keeper = lease_store.keeper()
    keeper.take()
    lease_store.fails_until = 1e9
    keeper.release()
    assert lease_store.value is not None


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with two searches."""
    url = f"sqlite:///{tmp_path_factory.mktemp('lease') / 'study.db'}"
    for name in ("s", "t"):
        optuna.create_study(storage=url, study_name=name)
    return url


def test_a_study_keeps_its_own_lease(url: str) -> None:
    store, other_store = StudyLeaseStore.open(url, "s"), StudyLeaseStore.open(url, "t")
    assert store.replace(None, {"beat": 1})
    assert StudyLeaseStore.open(url, "s").replace({"beat": 1}, {"beat": 2})
    assert not store.replace({"beat": 1}, {"beat": 3})
    assert not store.replace(None, {"beat": 3})
    assert (store.read(), other_store.read()) == ({"beat": 2}, None)
    with pytest.raises(StorageError, match="--study: there is no study named 'nothing'"):
        StudyLeaseStore.open(url, "nothing")


def test_a_beat_that_an_earlier_version_has_cleared_counts_as_none(url: str) -> None:
    """That version took over an empty study, and replaced the attributes that it does not know by null."""
    storage = optuna.storages.RDBStorage(url)
    study_id = storage.get_study_id_from_name("s")
    storage.set_study_user_attr(study_id, "lease_beat", None)
    with storage.engine.connect() as connection:
        assert silent_seconds(connection, study_id, {"token": "t"}) == 0.0


def test_leases_of_earlier_versions_are_respected(url: str) -> None:
    assert_old_leases_are_respected(url)


def test_of_several_drivers_at_once_one_has_the_lease(url: str) -> None:
    assert_one_wins(url, rounds=5)


@pytest.mark.timeout(60)  # real seconds of a real thread
def test_a_held_lease_is_renewed_and_released(url: str) -> None:
    renewed = threading.Event()

    class Store(StudyLeaseStore):
        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            replaced = super().replace(expected, value)
            if value["beat"] >= 3:
                renewed.set()
            return replaced

    store = Store.open(url, "t")
    # It beats four times in its length. A thread that gets no turn for all of it would lose the lease.
    with hold_lease(store, name="t", seconds=4) as keeper:
        assert renewed.wait(LONGEST_WAIT)
        keeper.ensure_held()
        held = Lease.from_dict(store.read() or {})
        assert held.driver == this_driver()
        with pytest.raises(LeaseError), hold_lease(store, name="t", seconds=4):
            pass
    assert Lease.from_dict(store.read() or {}).driver is None


def test_the_lease_is_given_back_when_the_search_fails() -> None:
    lease_store = FakeStore()
    with pytest.raises(RuntimeError, match="the search"), hold_lease(lease_store, name="s", seconds=0.4):
        raise RuntimeError("the search")
    assert lease_store.holder() is None
