"""What is done with a server, by how it is found; no process, no clock."""

from __future__ import annotations

import pytest

from tune_rescon.clusters.mlflow_service import Care, CarePace, Do, Seen, answers

PACE = CarePace(interval=5, failures=3, patience=60, first_pause=1, longest_pause=4, calm=100)


@pytest.fixture
def care() -> Care:
    return Care(PACE)


def started(care: Care, now: float) -> None:
    assert care.decide(Seen.ENDED, now) is Do.START


def starts(care: Care, ended: float) -> float:
    """Seconds from its end to its next start, looked at in tenths of seconds."""
    for tenths in range(1000):
        if care.decide(Seen.ENDED, ended + tenths / 10) is Do.START:
            return tenths / 10
    raise AssertionError("it is never started")


def test_it_is_started_at_once(care: Care) -> None:
    assert care.rest(0) == 0
    started(care, 0)
    assert care.rest(0) == PACE.interval


def test_one_that_answers_is_left_alone(care: Care) -> None:
    started(care, 0)
    assert {care.decide(Seen.ANSWERS, now) for now in range(1, 100)} == {Do.WAIT}


def test_one_that_is_silent_for_a_while_is_killed_and_comes_back(care: Care) -> None:
    started(care, 0)
    care.decide(Seen.ANSWERS, 1)
    assert [care.decide(Seen.SILENT, now) for now in (6, 11, 16)] == [Do.WAIT, Do.WAIT, Do.KILL]
    assert starts(care, 17) == 1


def test_failures_are_counted_in_a_row(care: Care) -> None:
    started(care, 0)
    found = [Seen.ANSWERS, Seen.SILENT, Seen.SILENT] * 5
    assert {care.decide(seen, now) for now, seen in enumerate(found)} == {Do.WAIT}


def test_one_that_comes_up_slowly_has_time(care: Care) -> None:
    started(care, 0)
    assert {care.decide(Seen.SILENT, now) for now in range(60)} == {Do.WAIT}
    assert care.decide(Seen.SILENT, 60) is Do.KILL


def test_a_new_one_has_the_time_of_a_new_one(care: Care) -> None:
    started(care, 0)
    care.decide(Seen.ANSWERS, 1)
    starts(care, 10)
    assert {care.decide(Seen.SILENT, now) for now in range(12, 70)} == {Do.WAIT}


def test_pauses_grow_while_it_keeps_ending(care: Care) -> None:
    started(care, 0)
    pauses, now = [], 0.0
    for _ in range(5):
        now += 20
        pauses.append(starts(care, now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 4, 4]


def test_after_a_calm_time_the_pause_is_the_first_again(care: Care) -> None:
    started(care, 0)
    assert [starts(care, 10), starts(care, 20)] == [1, 2]
    care.decide(Seen.ANSWERS, 30)
    care.decide(Seen.ANSWERS, 130)
    assert starts(care, 140) == 1


def test_a_pause_is_waited_for_and_no_longer(care: Care) -> None:
    started(care, 0)
    assert care.decide(Seen.ENDED, 10) is Do.WAIT
    assert care.rest(10) == 1
    assert care.rest(10.75) == 0.25


def test_nothing_listens_so_nothing_answers() -> None:
    assert not answers("http://127.0.0.1:9/health", timeout=1)
