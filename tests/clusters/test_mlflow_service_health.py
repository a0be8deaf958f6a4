"""The action for each state of a server, without a process or a clock."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import served_once
from tune_rescon.clusters.mlflow_service import Action, Health, RestartPolicy, RestartTiming, answers

TIMING = RestartTiming(
    interval=5, failures=3, startup_timeout=60, first_pause=1, longest_pause=4, healthy_reset=100
)


@pytest.fixture
def policy() -> RestartPolicy:
    return RestartPolicy(TIMING)


def started(policy: RestartPolicy, now: float) -> None:
    assert policy.decide(Health.ENDED, now) is Action.START


def starts(policy: RestartPolicy, ended: float) -> float:
    """Seconds from its end to its next start, looked at in tenths of seconds."""
    for tenths in range(1000):
        if policy.decide(Health.ENDED, ended + tenths / 10) is Action.START:
            return tenths / 10
    raise AssertionError("it is never started")


def test_the_server_is_started_at_once(policy: RestartPolicy) -> None:
    assert policy.seconds_to_next_check(0) == 0
    started(policy, 0)
    assert policy.seconds_to_next_check(0) == TIMING.interval


def test_a_healthy_server_is_not_touched(policy: RestartPolicy) -> None:
    started(policy, 0)
    assert {policy.decide(Health.HEALTHY, now) for now in range(1, 100)} == {Action.WAIT}


def test_an_unresponsive_server_is_killed_and_restarted(policy: RestartPolicy) -> None:
    started(policy, 0)
    policy.decide(Health.HEALTHY, 1)
    assert [policy.decide(Health.UNRESPONSIVE, now) for now in (6, 11, 16)] == [
        Action.WAIT,
        Action.WAIT,
        Action.KILL,
    ]
    assert starts(policy, 17) == 1


def test_only_consecutive_failures_are_counted(policy: RestartPolicy) -> None:
    started(policy, 0)
    found = [Health.HEALTHY, Health.UNRESPONSIVE, Health.UNRESPONSIVE] * 5
    assert {policy.decide(seen, now) for now, seen in enumerate(found)} == {Action.WAIT}


def test_a_server_that_starts_slowly_is_not_killed(policy: RestartPolicy) -> None:
    started(policy, 0)
    assert {policy.decide(Health.UNRESPONSIVE, now) for now in range(60)} == {Action.WAIT}
    assert policy.decide(Health.UNRESPONSIVE, 60) is Action.KILL


def test_a_restarted_server_gets_the_full_startup_time(policy: RestartPolicy) -> None:
    started(policy, 0)
    policy.decide(Health.HEALTHY, 1)
    starts(policy, 10)
    assert {policy.decide(Health.UNRESPONSIVE, now) for now in range(12, 70)} == {Action.WAIT}


def test_restart_delay_grows_while_the_server_keeps_ending(policy: RestartPolicy) -> None:
    started(policy, 0)
    pauses, now = [], 0.0
    for _ in range(5):
        now += 20
        pauses.append(starts(policy, now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 4, 4]


def test_restart_delay_resets_after_a_healthy_period(policy: RestartPolicy) -> None:
    started(policy, 0)
    assert [starts(policy, 10), starts(policy, 20)] == [1, 2]
    policy.decide(Health.HEALTHY, 30)
    policy.decide(Health.HEALTHY, 130)
    assert starts(policy, 140) == 1


def test_the_next_check_comes_when_the_restart_delay_ends(policy: RestartPolicy) -> None:
    started(policy, 0)
    assert policy.decide(Health.ENDED, 10) is Action.WAIT
    assert policy.seconds_to_next_check(10) == 1
    assert policy.seconds_to_next_check(10.75) == 0.25


def test_a_port_without_a_listener_does_not_answer() -> None:
    assert not answers("http://127.0.0.1:9/health", timeout=1)


def test_a_response_of_another_protocol_is_not_an_answer() -> None:
    with served_once(b"220 mail.example ESMTP\r\n") as url:
        assert not answers(f"{url}/health", timeout=10)
