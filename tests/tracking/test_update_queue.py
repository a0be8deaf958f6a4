"""The queue of states: the newest state of each run, in order, and the number of updates that it includes."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_until
from tune_rescon.tracking import SearchRunState, TrialRunState
from tune_rescon.tracking.writer import UpdateQueue


class Clock:
    now = 0.0
    reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now


def trial(number: int, epochs: int = 0, state: str = "running") -> TrialRunState:
    return TrialRunState(number=number, state=state, times_ms=tuple(range(epochs)))


def test_only_the_newest_state_of_a_run_is_kept_and_counts_for_all() -> None:
    queue = UpdateQueue(debounce=0)
    for run_state in (SearchRunState(id="1a"), trial(0), trial(1), trial(0, 1), trial(0, 2)):
        queue.put(run_state)
    assert len(queue) == 5
    sent = []
    while len(queue):
        item = queue.next()
        assert item is not None
        run_state, updates = item
        sent.append((run_state.number if isinstance(run_state, TrialRunState) else None, updates))
        queue.done(run_state, updates)
    assert sent == [(None, 1), (0, 3), (1, 1)]


def test_a_search_is_sent_before_its_trials_and_its_end_after_them() -> None:
    queue = UpdateQueue(debounce=0)
    note, end = SearchRunState(id="1a", note="1 of 2"), SearchRunState(id="1a", state="finished")
    running, ended = trial(1), trial(0, 1, "finished")
    for run_state in (SearchRunState(id="1a"), trial(0), note, running, end, ended):
        queue.put(run_state)
    sent = []
    while len(queue):
        item = queue.next()
        assert item is not None
        sent.append(item[0])
        queue.done(*item)
    assert sent == [note, ended, running, end]


def test_a_state_that_arrives_during_a_call_stays_queued() -> None:
    queue = UpdateQueue(debounce=0)
    queue.put(trial(0))
    first = queue.next()
    assert first is not None
    newest = trial(0, 1)
    queue.put(newest)
    assert len(queue) == 2
    queue.done(*first)
    assert len(queue) == 1
    assert queue.next() == (newest, 1)


def test_no_older_state_of_the_search_follows_its_end() -> None:
    # The search may end before MLflow's store is created.
    queue = UpdateQueue(debounce=0)
    queue.put(SearchRunState(id="1a"))
    first = queue.next()
    assert first is not None
    ended, end = trial(0, 1, "finished"), SearchRunState(id="1a", state="finished", note="2 of 2")
    for run_state in (SearchRunState(id="1a", note="1 of 2"), ended, end):
        queue.put(run_state)
    queue.done(*first)
    assert len(queue) == 3
    assert queue.next() == (ended, 1)
    queue.done(ended, 1)
    assert queue.next() == (end, 2)
    queue.done(end, 2)
    assert len(queue) == 0


def test_the_end_of_the_search_follows_a_trial_that_ended_during_a_call() -> None:
    queue = UpdateQueue(debounce=0)
    queue.put(trial(0))
    first = queue.next()
    assert first is not None
    ended, end = trial(0, 1, "finished"), SearchRunState(id="1a", state="finished")
    queue.put(ended)
    queue.put(end)
    queue.done(*first)
    assert queue.next() == (ended, 1)
    queue.done(ended, 1)
    assert queue.next() == (end, 1)


def test_only_active_runs_are_held_back() -> None:
    clock = Clock()
    queue = UpdateQueue(debounce=10, clock=clock)
    queue.put(trial(0, 1, "finished"))
    ended = queue.next()
    assert ended is not None
    queue.done(*ended)

    queue.put(trial(1))
    newest = trial(1, 1)
    taken, reads_before = [], clock.reads
    taker = threading.Thread(target=lambda: taken.append(queue.next()))
    taker.start()
    # The taker has read the clock: the update is not due yet.
    wait_until(lambda: clock.reads > reads_before)
    assert taken == []
    clock.now = 10
    queue.put(newest)  # wakes the taker
    taker.join(30)
    assert taken == [(newest, 2)]


def test_a_closed_queue_holds_nothing_back_and_ends() -> None:
    queue = UpdateQueue(debounce=1000)
    queue.put(trial(0))
    queue.close()
    first = queue.next()
    assert first is not None
    queue.done(*first)
    assert queue.next() is None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_every_update_is_counted_once(steps: list[tuple[int, bool]]) -> None:
    queue, sent = UpdateQueue(debounce=0), 0
    for put, (number, sends) in enumerate(steps, 1):
        queue.put(trial(number, put))
        if sends:
            item = queue.next()
            assert item is not None
            queue.done(*item)
            sent += item[1]
        assert len(queue) == put - sent
