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


def no() -> bool:
    return False


@pytest.fixture
def others() -> Iterator[list[int]]:
    """Signals that came to the handler that was there before."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    yield came
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def notice(others: list[int]) -> PreemptionSignal:
    del others
    notice = PreemptionSignal()
    notice.install()
    return notice


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_signal_preempts_the_trial_and_the_second_goes_to_ray(
    notice: PreemptionSignal, others: list[int]
) -> None:
    with notice.installed(is_drained=no) as told:
        assert not told()
        tell()
        assert told()
        assert others == []
        tell()
    assert others == [signal.SIGTERM]


def test_without_a_trial_the_signal_goes_to_rays_handler(notice: PreemptionSignal, others: list[int]) -> None:
    tell()
    with notice.installed(is_drained=no) as told:
        assert not told()
    tell()
    assert others == [signal.SIGTERM] * 2


def test_a_preempted_process_stays_preempted(notice: PreemptionSignal) -> None:
    """Its trial may have come to its end first: the next one leaves."""
    with notice.installed(is_drained=no):
        tell()
    with notice.installed(is_drained=no) as told:
        assert told()


def test_installing_again_adds_no_second_handler(notice: PreemptionSignal, others: list[int]) -> None:
    notice.install()
    tell()
    assert others == [signal.SIGTERM]


@pytest.mark.parametrize(("before", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_without_an_earlier_handler_the_process_exits_unless_ignored(
    before: signal.Handlers, ends: bool, others: list[int]
) -> None:
    del others
    signal.signal(signal.SIGTERM, before)
    PreemptionSignal().install()
    if ends:
        with pytest.raises(SystemExit):
            tell()
    else:
        tell()


def test_a_drained_node_is_detected_by_polling(notice: PreemptionSignal) -> None:
    looks = iter([False, False, True])
    seen = threading.Event()

    def look() -> bool:
        drained = next(looks)
        if drained:
            seen.set()
        return drained

    with notice.installed(is_drained=look, look_every=0.001) as told:
        assert seen.wait(30)
        wait_until(told)


@pytest.fixture
def ray() -> Any:
    """Imported: it takes seconds."""
    import ray

    return ray


def test_without_ray_no_node_is_drained(ray: Any) -> None:
    assert not ray.is_initialized()
    assert not node_is_drained()


def test_the_handler_is_installed_before_setup(others: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    notice = PreemptionSignal()
    monkeypatch.setattr("tune_rescon.tuning.ray.preemption.PREEMPTION", notice)
    done: list[object] = []

    class Trainable:
        def setup(self, config: dict[str, object]) -> None:
            done.append((config, signal.getsignal(signal.SIGTERM) == notice._receive))

    class Made(SignalHandlerMixin, Trainable):
        """As Tune makes it."""

    Made().setup({"number": 1})
    assert done == [({"number": 1}, True)]
    assert others == []
