"""One driver at a time: the decision by table, the keeper under a simulated clock, the store on SQLite."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.rival_drivers import assert_old_leases_are_respected, assert_one_wins
from tests.waiting import LONGEST_WAIT
from tune_rescon.errors import LeaseError, LeaseLostError, StorageError
from tune_rescon.tuning.driver import Driver, this_driver
from tune_rescon.tuning.lease import Lease, LeaseDecision, LeaseKeeper, decide_lease, hold_lease
from tune_rescon.tuning.study_lease import StudyLeaseStore

HERE = Driver(host="a", place="a boot-1 pid-1", pid=10, started=1000.0)
BESIDE = dataclasses.replace(HERE, pid=11, started=1001.0)
ELSEWHERE = Driver(host="b", place="b boot-2 pid-1", pid=10, started=1000.0)
REBOOTED = dataclasses.replace(HERE, place="a boot-2 pid-1", pid=5)

#: Seconds of the leases in these tests.
LENGTH = 20.0


def lease(driver: Driver | None, **changes: Any) -> Lease:
    held = Lease(driver=driver, token="t", beat=3, since="then", seconds=LENGTH, driven=60.0)
    return dataclasses.replace(held, **changes)


@pytest.mark.parametrize(
    ("held_by", "processes", "expected"),
    [
        pytest.param(None, {}, LeaseDecision.TAKE, id="given back"),
        pytest.param(BESIDE, {}, LeaseDecision.TAKE, id="dead"),
        pytest.param(BESIDE, {11: 1001.0}, LeaseDecision.REFUSE, id="alive"),
        pytest.param(BESIDE, {11: 1002.5}, LeaseDecision.REFUSE, id="alive, read less exactly"),
        pytest.param(BESIDE, {11: 5000.0}, LeaseDecision.WATCH, id="its number was given to another process"),
        pytest.param(BESIDE, {10: 1000.0}, LeaseDecision.TAKE, id="dead, others live"),
        pytest.param(HERE, {10: 1000.0}, LeaseDecision.WATCH, id="this very process"),
        pytest.param(ELSEWHERE, {}, LeaseDecision.WATCH, id="elsewhere"),
        pytest.param(ELSEWHERE, {10: 1000.0}, LeaseDecision.WATCH, id="elsewhere: numbers of this place"),
        pytest.param(REBOOTED, {}, LeaseDecision.WATCH, id="before a reboot, or in another container"),
    ],
)
def test_the_lease_decision_follows_from_the_holder_and_its_process(
    held_by: Driver | None, processes: dict[int, float], expected: LeaseDecision
) -> None:
    assert decide_lease(lease(held_by), HERE, processes.get) is expected


def test_a_lease_that_was_never_held_is_free() -> None:
    heartbeats: dict[int, float] = {}
    assert decide_lease(None, HERE, heartbeats.get) is LeaseDecision.TAKE


@given(
    pid=st.integers(1, 30),
    started=st.floats(0, 1e9),
    table=st.dictionaries(st.integers(1, 30), st.floats(0, 1e9)),
)
def test_a_live_process_of_this_machine_does_not_lose_its_lease(
    pid: int, started: float, table: dict[int, float]
) -> None:
    holder = dataclasses.replace(HERE, pid=pid, started=started)
    me = dataclasses.replace(HERE, pid=31)
    alive = {**table, pid: started}
    assert decide_lease(lease(holder), me, alive.get) is LeaseDecision.REFUSE
    assert (decide_lease(lease(holder), me, table.get) is LeaseDecision.TAKE) == (pid not in table)


class World:
    """A simulated clock, one store, and what others do to it as time passes."""

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
            raise OSError("the store is away")
        return self.value

    def write(self, value: dict[str, Any]) -> None:
        """As a driver of an earlier version does."""
        if self.now < self.fails_until:
            raise OSError("the store is away")
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

    def keeper(self, me: Driver = HERE) -> LeaseKeeper:
        return LeaseKeeper(
            self,
            name="s",
            me=me,
            seconds=LENGTH,
            processes=self.processes.get,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    def holder(self) -> Driver | None:
        assert self.value is not None
        return Lease.from_dict(self.value).driver


def test_a_dead_drivers_lease_is_taken_without_waiting() -> None:
    world = World(lease(BESIDE))
    world.keeper().take()
    assert world.holder() == HERE
    assert world.now == 0.0


def test_a_live_driver_keeps_its_lease_and_is_named() -> None:
    world = World(lease(BESIDE))
    world.processes[11] = 1001.0
    with pytest.raises(
        LeaseError, match=r"process 11 on a has driven it since then\. .*`kill 11`.*--resume s"
    ):
        world.keeper().take()
    assert (world.writes, world.now) == (0, 0.0)


def test_a_lease_without_a_heartbeat_is_taken_after_its_length() -> None:
    world = World(lease(ELSEWHERE))
    world.keeper().take()
    assert world.holder() == HERE
    assert LENGTH <= world.now <= LENGTH + 2


def test_a_lease_with_a_heartbeat_is_refused() -> None:
    world = World(lease(ELSEWHERE))
    world.events.append((15.0, lambda: world.write(lease(ELSEWHERE, beat=4).to_dict())))
    with pytest.raises(LeaseError, match="process 10 on b"):
        world.keeper().take()
    assert world.holder() == ELSEWHERE


def test_a_lease_given_back_while_it_is_watched_is_taken() -> None:
    world = World(lease(ELSEWHERE))
    world.events.append((5.0, lambda: world.write(lease(None).to_dict())))
    world.keeper().take()
    assert world.holder() == HERE
    assert world.now < LENGTH


def test_of_two_concurrent_takers_the_first_to_replace_the_lease_wins() -> None:
    """The second one has seen a free lease, which the first one takes before it."""
    world = World()

    class Late(World):
        def read(self) -> dict[str, Any] | None:
            return None if self.value is None else world.read()

        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            world.keeper(ELSEWHERE).take()
            self.value = value
            return world.replace(expected, value)

    with pytest.raises(LeaseError, match="process 10 on b"):
        Late().keeper().take()
    assert world.holder() == ELSEWHERE


@pytest.mark.parametrize("after", [0.1, 0.5])
def test_a_store_without_compare_and_swap_is_read_back(after: float) -> None:
    """The other one's write has replaced this one's, which both stores have called a success."""
    world = World(read_back_seconds=0.5)
    world.events.append((after, lambda: world.write(lease(ELSEWHERE).to_dict())))
    with pytest.raises(LeaseError, match="process 10 on b"):
        world.keeper().take()
    assert world.holder() == ELSEWHERE


def test_ensure_held_renews_only_a_lease_older_than_half_its_length() -> None:
    world = World()
    keeper = world.keeper()
    keeper.take()
    written = world.writes
    keeper.ensure_held()
    world.sleep(LENGTH / 2)
    keeper.ensure_held()
    assert world.writes == written
    world.sleep(1.0)
    keeper.ensure_held()
    keeper.ensure_held()
    assert world.writes == written + 1


@pytest.mark.parametrize("frozen", [LENGTH / 2 + 1, 10 * LENGTH])
def test_a_driver_that_was_frozen_and_overtaken_writes_nothing(frozen: float) -> None:
    world = World()
    keeper = world.keeper()
    keeper.take()
    world.sleep(frozen)
    world.write(lease(ELSEWHERE).to_dict())
    written = world.writes
    for _ in range(2):
        with pytest.raises(LeaseLostError, match="taken over by process 10 on b"):
            keeper.ensure_held()
    keeper.release()
    assert (world.writes, world.holder()) == (written, ELSEWHERE)


def test_a_driver_that_was_frozen_and_not_overtaken_continues() -> None:
    world = World()
    keeper = world.keeper()
    keeper.take()
    world.sleep(10 * LENGTH)
    keeper.ensure_held()
    assert world.holder() == HERE


def test_a_driver_that_wakes_during_a_takeover_loses_the_lease() -> None:
    world = World(read_back_seconds=0.5)
    keeper = world.keeper()
    keeper.take()
    world.sleep(10 * LENGTH)
    world.events.append((world.now + 0.1, lambda: world.write(lease(ELSEWHERE).to_dict())))
    with pytest.raises(LeaseLostError, match="process 10 on b"):
        keeper.ensure_held()


def test_a_driver_that_was_frozen_while_renewing_replaces_no_other_lease() -> None:
    """Another one takes over between its last look at the store and its write."""
    world = World()
    keeper = world.keeper()
    keeper.take()

    class Freezing(World):
        read_back_seconds = 0.0

        def read(self) -> dict[str, Any] | None:
            return world.read()

        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            world.sleep(10 * LENGTH)
            world.write(lease(ELSEWHERE).to_dict())
            return world.replace(expected, value)

    keeper._store = Freezing()
    with pytest.raises(LeaseLostError, match="taken over by process 10 on b"):
        keeper.renew()
    with pytest.raises(LeaseLostError):
        keeper.ensure_held()
    assert world.holder() == ELSEWHERE


def test_a_renewal_with_a_lost_response_keeps_the_lease() -> None:
    world = World()
    keeper = world.keeper()
    keeper.take()

    class Unanswered(World):
        def read(self) -> dict[str, Any] | None:
            return world.read()

        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            world.replace(expected, value)
            raise OSError("the connection was lost")

    keeper._store = Unanswered()
    with pytest.raises(OSError, match="connection"):
        keeper.renew()
    keeper._store = world
    keeper.renew()
    keeper.release()
    assert world.holder() is None


def test_a_record_that_was_restored_from_a_backup_ends_its_driver() -> None:
    """What the driver writes from then on may belong to trials that the record no longer has."""
    world = World()
    keeper = world.keeper()
    keeper.take()
    backup = world.read()
    keeper.renew()
    world.value = backup
    with pytest.raises(LeaseLostError, match="its record was replaced by an older copy"):
        keeper.renew()
    with pytest.raises(LeaseLostError, match="Resume what that copy holds"):
        keeper.ensure_held()
    assert world.value == backup


@pytest.mark.parametrize(("away", "lost"), [(LENGTH / 4, False), (2 * LENGTH, True)])
def test_an_unreachable_store_is_retried_for_the_length_of_the_lease(away: float, lost: bool) -> None:
    world = World()
    keeper = world.keeper()
    keeper.take()
    world.sleep(LENGTH / 2 + 1)
    world.fails_until = world.now + away
    if lost:
        with pytest.raises(LeaseLostError, match="could not be renewed for 20 s"):
            keeper.ensure_held()
        assert world.now < 2 * LENGTH
    else:
        keeper.ensure_held()
        assert world.holder() == HERE


def test_a_released_lease_is_free_and_keeps_the_elapsed_seconds() -> None:
    world = World(lease(None, driven=60.0))
    keeper = world.keeper()
    keeper.take()
    world.sleep(30.0)
    keeper.release()
    assert world.holder() is None
    again = world.keeper(ELSEWHERE)
    again.take()
    assert again.elapsed_seconds == pytest.approx(60.0 + 30.0)


def test_elapsed_seconds_of_a_dead_driver_count_to_its_last_heartbeat() -> None:
    world = World()
    keeper = world.keeper()
    keeper.take()
    world.sleep(40.0)
    keeper.renew()
    world.sleep(3.0)
    again = world.keeper(BESIDE)
    again.take()
    assert again.elapsed_seconds == pytest.approx(40.0)


def test_an_unreachable_store_at_the_end_raises_nothing() -> None:
    world = World()
    keeper = world.keeper()
    keeper.take()
    world.fails_until = 1e9
    keeper.release()
    assert world.value is not None


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with two searches."""
    url = f"sqlite:///{tmp_path_factory.mktemp('lease') / 'study.db'}"
    for name in ("s", "t"):
        optuna.create_study(storage=url, study_name=name)
    return url


def test_a_study_keeps_its_own_lease(url: str) -> None:
    store, other = StudyLeaseStore.open(url, "s"), StudyLeaseStore.open(url, "t")
    assert store.replace(None, {"beat": 1})
    assert StudyLeaseStore.open(url, "s").replace({"beat": 1}, {"beat": 2})
    assert not store.replace({"beat": 1}, {"beat": 3})
    assert not store.replace(None, {"beat": 3})
    assert (store.read(), other.read()) == ({"beat": 2}, None)
    with pytest.raises(StorageError, match="--study: there is no study named 'nothing'"):
        StudyLeaseStore.open(url, "nothing")


def test_leases_of_earlier_versions_are_respected(url: str) -> None:
    assert_old_leases_are_respected(url)


def test_of_several_drivers_at_once_one_has_the_lease(url: str) -> None:
    assert_one_wins(url, rounds=5)


@pytest.mark.timeout(60)  # real seconds of a real thread
def test_a_held_lease_is_renewed_and_released(url: str) -> None:
    beaten = threading.Event()

    class Store(StudyLeaseStore):
        def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
            replaced = super().replace(expected, value)
            if value["beat"] >= 3:
                beaten.set()
            return replaced

    store = Store.open(url, "t")
    # It beats four times in its length. A thread that gets no turn for all of it would lose the lease.
    with hold_lease(store, name="t", seconds=4) as keeper:
        assert beaten.wait(LONGEST_WAIT)
        keeper.ensure_held()
        held = Lease.from_dict(store.read() or {})
        assert held.driver == this_driver()
        with pytest.raises(LeaseError), hold_lease(store, name="t", seconds=4):
            pass
    assert Lease.from_dict(store.read() or {}).driver is None


def test_the_lease_is_given_back_when_the_search_fails() -> None:
    world = World()
    with pytest.raises(RuntimeError, match="the search"), hold_lease(world, name="s", seconds=0.4):
        raise RuntimeError("the search")
    assert world.holder() is None
