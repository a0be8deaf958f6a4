"""Work on a thread that can be abandoned: its exceptions, its end, and its lock."""

from __future__ import annotations

import threading

import pytest

from tune_rescon.errors import LeaseLostError, RecordBusyError, RecordError
from tune_rescon.tuning.ray import shutdown
from tune_rescon.tuning.ray.shutdown import DriverLock, SearchIsOver, run_in_thread


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "TICK", 0.01)
    monkeypatch.setattr(shutdown, "JOIN_SECONDS", 0.2)


def check_lease() -> None:
    """Raise nothing: the lease is held."""


def never() -> bool:
    return False


def test_finished_work_is_waited_for_and_its_lock_closed() -> None:
    lock, results = DriverLock(check_lease), []

    def work() -> None:
        with lock.hold():
            results.append(1)

    run_in_thread(work, should_abort=never, lock=lock)
    assert results == [1]
    with pytest.raises(SearchIsOver), lock.hold():
        pass


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(3)])
def test_an_error_of_the_work_is_raised_in_the_caller(error: BaseException) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_in_thread(work, should_abort=never, lock=DriverLock(check_lease))


def test_running_work_ends_on_abort() -> None:
    lock, ended = DriverLock(check_lease), threading.Event()

    def work() -> None:
        try:
            while True:
                with lock.hold():
                    pass
        finally:
            ended.set()

    run_in_thread(work, should_abort=lambda: True, lock=lock)
    assert ended.wait(30)


def test_hanging_work_is_abandoned_and_cannot_take_the_lock() -> None:
    lock, hang, events = DriverLock(check_lease), threading.Event(), []
    threads = []

    def work() -> None:
        threads.append(threading.current_thread())
        hang.wait()
        try:
            with lock.hold():
                events.append("lock held")
        except SearchIsOver:
            events.append("kept out")

    run_in_thread(work, should_abort=lambda: bool(threads), lock=lock)
    hang.set()
    threads[0].join(30)
    assert events == ["kept out"]


def test_a_lock_that_is_not_released_raises_record_busy_error() -> None:
    lock, hang, started = DriverLock(check_lease), threading.Event(), threading.Event()

    def work() -> None:
        with lock.hold():
            started.set()
            hang.wait()

    with pytest.raises(RecordBusyError, match="the record must accept a write"):
        run_in_thread(work, should_abort=started.is_set, lock=lock)
    hang.set()


def test_an_error_of_should_abort_is_raised_in_the_caller() -> None:
    lock = DriverLock(check_lease)

    def work() -> None:
        while True:
            lock.check()

    def raise_lease_lost() -> bool:
        raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError):
        run_in_thread(work, should_abort=raise_lease_lost, lock=lock)


def test_after_a_lost_lease_the_lock_cannot_be_held() -> None:
    def raise_lease_lost() -> None:
        raise LeaseLostError("lost")

    with pytest.raises(SearchIsOver), DriverLock(raise_lease_lost).hold():
        raise AssertionError("the record was touched")


def test_a_record_error_closes_the_lock_and_is_raised_in_the_caller() -> None:
    lock = DriverLock(check_lease)

    def work() -> None:
        # Like Tune, which logs errors of its components and calls them again.
        for _ in range(3):
            try:
                with lock.hold():
                    raise RecordError("the disk is full")
            except Exception:
                continue
        raise AssertionError("the lock was held after the error")

    with pytest.raises(RecordError, match="the disk is full"):
        run_in_thread(work, should_abort=never, lock=lock)
    with pytest.raises(SearchIsOver), lock.hold():
        pass
