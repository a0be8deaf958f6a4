"""When the search stops waiting for its trials, and the messages about it."""

from __future__ import annotations

import signal

import pytest

from tune_rescon.errors import LeaseLostError
from tune_rescon.tuning.ray.shutdown import SignalState, Watch


class Scene:
    """A search that runs: signals, Ray and the lease do what a test has them do."""

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages
        self.now = 0.0
        self.gone = ""
        self.lease_error: LeaseLostError | None = None
        self.interrupts = 0
        self.signals = SignalState(grace=20.0, clock=lambda: self.now)
        self.signals.deferred = True
        self.watch = Watch(
            self.signals,
            ray_gone=lambda: self.gone,
            ensure_held=self.ensure_held,
            interrupt=self.interrupt,
        )

    def ensure_held(self) -> None:
        if self.lease_error:
            raise self.lease_error

    def interrupt(self) -> None:
        self.interrupts += 1


@pytest.fixture
def scene(progress: list[str]) -> Scene:
    return Scene(progress)


def test_without_signals_the_watch_does_not_abort(scene: Scene) -> None:
    assert [scene.watch.should_abort() for _ in range(3)] == [False] * 3
    assert (scene.watch.interrupted, scene.watch.failure, scene.messages) == (False, None, [])


def test_a_first_ctrl_c_finishes_the_epochs(scene: Scene) -> None:
    scene.signals.receive(signal.SIGINT)
    assert [scene.watch.should_abort() for _ in range(3)] == [False] * 3
    assert scene.interrupts == 1
    assert scene.messages == ["Interrupted: finishing the running epochs; Ctrl-C again to stop now"]
    scene.now = 2.0
    scene.signals.receive(signal.SIGINT)
    assert scene.watch.should_abort()
    assert scene.messages[1:] == ["Interrupted: stopping now; all recorded epochs are kept"]


def test_sigterm_aborts_after_its_deadline(scene: Scene) -> None:
    scene.signals.receive(signal.SIGTERM)
    assert not scene.watch.should_abort()
    assert scene.messages == [
        "Interrupted: finishing the running epochs for at most 20 s; Ctrl-C again to stop now"
    ]
    scene.now = 20.0
    assert scene.watch.should_abort()


def test_a_dead_ray_aborts_the_search(scene: Scene) -> None:
    scene.gone = "its node manager (raylet)"
    assert [scene.watch.should_abort() for _ in range(2)] == [False, True]
    assert scene.watch.failure is not None
    assert "its node manager (raylet) has died" in scene.watch.failure


def test_a_signal_that_killed_ray_too_is_an_interruption(scene: Scene) -> None:
    scene.gone = "its node manager (raylet)"
    assert not scene.watch.should_abort()
    scene.signals.receive(signal.SIGTERM)
    assert scene.watch.should_abort()
    assert scene.watch.interrupted
    assert scene.watch.failure is None
    assert scene.watch.ray_is_gone


def test_a_ray_that_died_between_two_looks_is_noticed(scene: Scene) -> None:
    assert not scene.watch.ray_is_gone
    scene.gone = "its control store (gcs_server)"
    assert scene.watch.ray_is_gone


def test_a_lost_lease_is_raised(scene: Scene) -> None:
    scene.lease_error = LeaseLostError("lost")
    with pytest.raises(LeaseLostError):
        scene.watch.should_abort()


@pytest.mark.parametrize(
    ("came", "now", "waits"),
    [
        pytest.param([], 0.0, 60.0, id="nobody waits"),
        pytest.param([signal.SIGINT], 0.0, 60.0, id="Ctrl-C"),
        pytest.param([signal.SIGTERM], 5.0, 15.0, id="until the deadline"),
        pytest.param([signal.SIGTERM], 19.5, 2.0, id="just before it"),
        pytest.param([signal.SIGTERM], 30.0, 2.0, id="after it"),
    ],
)
def test_the_time_limit_depends_on_the_signals(
    came: list[signal.Signals], now: float, waits: float, scene: Scene
) -> None:
    for number in came:
        scene.signals.receive(number)
    scene.now = now
    assert scene.watch.with_timeout(lambda seconds: round(10 * seconds), 60.0, 2.0) == 10 * waits


def test_a_signal_after_the_last_trial_cuts_the_next_wait_short(scene: Scene) -> None:
    scene.signals.receive(signal.SIGINT)
    scene.watch.trials_ended()
    assert scene.watch.with_timeout(round, 60.0, 2.0) == 60
    scene.signals.receive(signal.SIGINT)
    assert scene.watch.with_timeout(round, 60.0, 2.0) == 2


def test_a_signal_repeats_the_call_with_the_shortest_limit(scene: Scene) -> None:
    waited: list[float] = []

    def close(seconds: float) -> int:
        waited.append(seconds)
        if len(waited) == 1:
            scene.signals.receive(signal.SIGINT)
        return 3

    assert scene.watch.with_timeout(close, 60.0, 2.0) == 3
    assert waited == [60.0, 2.0]
    scene.signals.receive(signal.SIGINT)
