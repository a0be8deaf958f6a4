"""What waits to be sent: the newest of each, in turn, and counted by what it stands for."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_until
from tune_rescon.tracking import SearchRunState, TrialRunState
from tune_rescon.tracking.writer import UpdateQueue


class Clock:
    now = 0.0
    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


def trial(number: int, epochs: int = 0, state: str = "running") -> TrialRunState:
    return TrialRunState(number=number, state=state, times_ms=tuple(range(epochs)))


def test_only_the_newest_of_a_run_is_kept_and_it_stands_for_all() -> None:
    backlog = UpdateQueue(settle=0)
    for view in (SearchRunState(id="1a"), trial(0), trial(1), trial(0, 1), trial(0, 2)):
        backlog.put(view)
    assert len(backlog) == 5
    seen = []
    while len(backlog):
        waiting = backlog.next()
        assert waiting is not None
        view, updates = waiting
        seen.append((view.number if isinstance(view, TrialRunState) else None, updates))
        backlog.done(view, updates)
    assert seen == [(None, 1), (0, 3), (1, 1)]


def test_a_search_is_begun_before_its_trials_and_ended_after_them() -> None:
    backlog = UpdateQueue(settle=0)
    note, end = SearchRunState(id="1a", note="1 of 2"), SearchRunState(id="1a", state="finished")
    other, ended = trial(1), trial(0, 1, "finished")
    for view in (SearchRunState(id="1a"), trial(0), note, other, end, ended):
        backlog.put(view)
    seen = []
    while len(backlog):
        waiting = backlog.next()
        assert waiting is not None
        seen.append(waiting[0])
        backlog.done(*waiting)
    assert seen == [note, ended, other, end]


def test_what_comes_while_it_is_sent_still_waits() -> None:
    backlog = UpdateQueue(settle=0)
    backlog.put(trial(0))
    first = backlog.next()
    assert first is not None
    newest = trial(0, 1)
    backlog.put(newest)
    assert len(backlog) == 2
    backlog.done(*first)
    assert len(backlog) == 1
    assert backlog.next() == (newest, 1)


def test_what_came_while_the_first_call_was_made_does_not_follow_the_end() -> None:
    # As when MLflow's store takes longer to make than the search's trials take to learn.
    backlog = UpdateQueue(settle=0)
    backlog.put(SearchRunState(id="1a"))
    first = backlog.next()
    assert first is not None
    ended, end = trial(0, 1, "finished"), SearchRunState(id="1a", state="finished", note="2 of 2")
    for view in (SearchRunState(id="1a", note="1 of 2"), ended, end):
        backlog.put(view)
    backlog.done(*first)
    assert len(backlog) == 3
    assert backlog.next() == (ended, 1)
    backlog.done(ended, 1)
    assert backlog.next() == (end, 2)
    backlog.done(end, 2)
    assert len(backlog) == 0


def test_the_end_follows_a_trial_that_ended_while_it_was_sent() -> None:
    backlog = UpdateQueue(settle=0)
    backlog.put(trial(0))
    first = backlog.next()
    assert first is not None
    ended, end = trial(0, 1, "finished"), SearchRunState(id="1a", state="finished")
    backlog.put(ended)
    backlog.put(end)
    backlog.done(*first)
    assert backlog.next() == (ended, 1)
    backlog.done(ended, 1)
    assert backlog.next() == (end, 1)


def test_a_run_that_goes_on_is_held_back_and_one_that_ended_is_not() -> None:
    clock = Clock()
    backlog = UpdateQueue(settle=10, clock=clock)
    backlog.put(trial(0, 1, "finished"))
    ended = backlog.next()
    assert ended is not None
    backlog.done(*ended)

    backlog.put(trial(1))
    newest = trial(1, 1)
    got, looks = [], clock.looks
    taker = threading.Thread(target=lambda: got.append(backlog.next()))
    taker.start()
    # It has seen that the update is not due, and holds the queue until it waits.
    wait_until(lambda: clock.looks > looks)
    assert got == []
    clock.now = 10
    backlog.put(newest)  # Wakes the taker.
    taker.join(30)
    assert got == [(newest, 2)]


def test_a_closed_one_holds_nothing_back_and_ends() -> None:
    backlog = UpdateQueue(settle=1000)
    backlog.put(trial(0))
    backlog.close()
    first = backlog.next()
    assert first is not None
    backlog.done(*first)
    assert backlog.next() is None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_every_update_is_counted_once(steps: list[tuple[int, bool]]) -> None:
    backlog, sent = UpdateQueue(settle=0), 0
    for put, (number, sends) in enumerate(steps, 1):
        backlog.put(trial(number, put))
        if sends:
            waiting = backlog.next()
            assert waiting is not None
            backlog.done(*waiting)
            sent += waiting[1]
        assert len(backlog) == put - sent
