"""Which handlers receive a SIGTERM, and the drain of a node."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.waiting import wait_until
from tune_rescon.tuning.ray.preemption import PreemptionSignal, SignalHandlerMixin, node_is_drained


def not_drained() -> bool:
    return False


@pytest.fixture
def received() -> Iterator[list[int]]:
    """Signals that the earlier handler has received."""
    numbers: list[int] = []
    original = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, original)


@pytest.fixture
def notice(received: list[int]) -> PreemptionSignal:
    del received
    notice = PreemptionSignal()
    notice.install()
    return notice


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_signal_preempts_the_trial_and_the_second_goes_to_ray(
    notice: PreemptionSignal, received: list[int]
) -> None:
    with notice.installed(is_drained=not_drained) as is_preempted:
        assert not is_preempted()
        send_sigterm()
        assert is_preempted()
        assert received == []
        send_sigterm()
    assert received == [signal.SIGTERM]


def test_without_a_trial_the_signal_goes_to_rays_handler(
    notice: PreemptionSignal, received: list[int]
) -> None:
    send_sigterm()
    with notice.installed(is_drained=not_drained) as is_preempted:
        assert not is_preempted()
    send_sigterm()
    assert received == [signal.SIGTERM] * 2


def test_a_preempted_process_stays_preempted(notice: PreemptionSignal) -> None:
    """The trial may have finished first; then the next trial is preempted."""
    with notice.installed(is_drained=not_drained):
        send_sigterm()
    with notice.installed(is_drained=not_drained) as is_preempted:
        assert is_preempted()


def test_installing_again_adds_no_second_handler(notice: PreemptionSignal, received: list[int]) -> None:
    notice.install()
    send_sigterm()
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize(("earlier_handler", "exits"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_without_an_earlier_handler_the_process_exits_unless_ignored(
    earlier_handler: signal.Handlers, exits: bool, received: list[int]
) -> None:
    del received
    signal.signal(signal.SIGTERM, earlier_handler)
    PreemptionSignal().install()
    if exits:
        with pytest.raises(SystemExit):
            send_sigterm()
    else:
        send_sigterm()


def test_a_drained_node_is_detected_by_polling(notice: PreemptionSignal) -> None:
    drained_states = iter([False, False, True])
    drained_event = threading.Event()

    def is_drained() -> bool:
        drained = next(drained_states)
        if drained:
            drained_event.set()
        return drained

    with notice.installed(is_drained=is_drained, poll_every=0.001) as is_preempted:
        assert drained_event.wait(30)
        wait_until(is_preempted)


def test_polling_continues_after_an_error(notice: PreemptionSignal, caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([None, None, False, True])

    def is_drained() -> bool:
        answer = next(answers)
        if answer is None:
            raise ValueError("no answer")
        return answer

    with notice.installed(is_drained=is_drained, poll_every=0.001) as is_preempted:
        wait_until(is_preempted)
    assert caplog.text.count("cannot be checked for a preemption") == 1


@pytest.fixture
def ray() -> Any:
    """Ray, whose import takes seconds."""
    import ray

    return ray


def test_without_ray_no_node_is_drained(ray: Any) -> None:
    assert not ray.is_initialized()
    assert not node_is_drained()


def test_the_handler_is_installed_before_setup(received: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    notice = PreemptionSignal()
    monkeypatch.setattr("tune_rescon.tuning.ray.preemption.PREEMPTION", notice)
    setups: list[object] = []

    class Trainable:
        def setup(self, config: dict[str, object]) -> None:
            setups.append((config, signal.getsignal(signal.SIGTERM) == notice._receive))

    class WrappedTrainable(SignalHandlerMixin, Trainable):
        """Combined as in the session."""

    WrappedTrainable().setup({"number": 1})
    assert setups == [({"number": 1}, True)]
    assert received == []
