"""The handlers of Ctrl-C and SIGTERM, in this process."""

from __future__ import annotations

import signal
import threading

import pytest

from tune_rescon.tuning.interruption import interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_calls_and_the_second_ends(number: signal.Signals) -> None:
    calls: list[str] = []
    with interruptible(lambda: calls.append("first")):
        signal.raise_signal(number)
        assert calls == ["first"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert calls == ["first"]


def test_either_signal_counts_as_the_second() -> None:
    with interruptible(lambda: None):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_afterwards_all_is_as_it_was(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible(lambda: None):
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
    with pytest.raises(ValueError, match="amid"), interruptible(lambda: None):
        raise ValueError("amid")
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def elsewhere() -> None:
        with interruptible(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
