"""When a search stops waiting for its trials, and the messages about it."""

from __future__ import annotations

import signal

import pytest

from tune_rescon.errors import LeaseLostError
from tune_rescon.tuning.ray.shutdown import SignalState, Watch


class RunningSearch:
    """A running search with fake signals, Ray and lease."""

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages
        self.now = 0.0
        self.dead_process = ""
        self.lease_error: LeaseLostError | None = None
        self.interrupts = 0
        self.signals = SignalState(grace=20.0, clock=lambda: self.now)
        self.signals.deferred = True
        self.watch = Watch(
            self.signals,
            ray_gone=lambda: self.dead_process,
            ensure_held=self.ensure_held,
            interrupt=self.interrupt,
        )

    def ensure_held(self) -> None:
        if self.lease_error:
            raise self.lease_error

    def interrupt(self) -> None:
        self.interrupts += 1


@pytest.fixture
def search(progress: list[str]) -> RunningSearch:
    return RunningSearch(progress)


def test_without_signals_the_watch_does_not_abort(search: RunningSearch) -> None:
    assert [search.watch.should_abort() for _ in range(3)] == [False] * 3
    assert (search.watch.interrupted, search.watch.failure, search.messages) == (False, None, [])


def test_a_first_ctrl_c_finishes_the_epochs(search: RunningSearch) -> None:
    search.signals.receive(signal.SIGINT)
    assert [search.watch.should_abort() for _ in range(3)] == [False] * 3
    assert search.interrupts == 1
    assert search.messages == ["Interrupted: finishing the running epochs; Ctrl-C again to stop now"]
    search.now = 2.0
    search.signals.receive(signal.SIGINT)
    assert search.watch.should_abort()
    assert search.messages[1:] == ["Interrupted: stopping now; all recorded epochs are kept"]


def test_sigterm_aborts_after_its_deadline(search: RunningSearch) -> None:
    search.signals.receive(signal.SIGTERM)
    assert not search.watch.should_abort()
    assert search.messages == [
        "Interrupted: finishing the running epochs for at most 20 s; Ctrl-C again to stop now"
    ]
    search.now = 20.0
    assert search.watch.should_abort()


def test_a_dead_ray_aborts_the_search(search: RunningSearch) -> None:
    search.dead_process = "its node manager (raylet)"
    assert [search.watch.should_abort() for _ in range(2)] == [False, True]
    assert search.watch.failure is not None
    assert "its node manager (raylet) has died" in search.watch.failure


def test_a_signal_that_killed_ray_too_is_an_interruption(search: RunningSearch) -> None:
    search.dead_process = "its node manager (raylet)"
    assert not search.watch.should_abort()
    search.signals.receive(signal.SIGTERM)
    assert search.watch.should_abort()
    assert search.watch.interrupted
    assert search.watch.failure is None
    assert search.watch.ray_is_gone


def test_a_ray_that_died_between_two_checks_is_noticed(search: RunningSearch) -> None:
    assert not search.watch.ray_is_gone
    search.dead_process = "its control store (gcs_server)"
    assert search.watch.ray_is_gone


def test_a_lost_lease_is_raised(search: RunningSearch) -> None:
    search.lease_error = LeaseLostError("lost")
    with pytest.raises(LeaseLostError):
        search.watch.should_abort()


@pytest.mark.parametrize(
    ("received", "now", "timeout"),
    [
        pytest.param([], 0.0, 60.0, id="no signal"),
        pytest.param([signal.SIGINT], 0.0, 60.0, id="Ctrl-C"),
        pytest.param([signal.SIGTERM], 5.0, 15.0, id="until the deadline"),
        pytest.param([signal.SIGTERM], 19.5, 2.0, id="just before it"),
        pytest.param([signal.SIGTERM], 30.0, 2.0, id="after it"),
    ],
)
def test_the_time_limit_depends_on_the_signals(
    received: list[signal.Signals], now: float, timeout: float, search: RunningSearch
) -> None:
    for number in received:
        search.signals.receive(number)
    search.now = now
    assert search.watch.with_timeout(lambda seconds: round(10 * seconds), 60.0, 2.0) == 10 * timeout


def test_a_signal_after_the_last_trial_cuts_the_next_wait_short(search: RunningSearch) -> None:
    search.signals.receive(signal.SIGINT)
    search.watch.trials_ended()
    assert search.watch.with_timeout(round, 60.0, 2.0) == 60
    search.signals.receive(signal.SIGINT)
    assert search.watch.with_timeout(round, 60.0, 2.0) == 2


def test_a_signal_repeats_the_call_with_the_shortest_limit(search: RunningSearch) -> None:
    timeouts: list[float] = []

    def close(seconds: float) -> int:
        timeouts.append(seconds)
        if len(timeouts) == 1:
            search.signals.receive(signal.SIGINT)
        return 3

    assert search.watch.with_timeout(close, 60.0, 2.0) == 3
    assert timeouts == [60.0, 2.0]
    search.signals.receive(signal.SIGINT)
