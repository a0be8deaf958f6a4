"""Signal handlers are restored, also those that Python cannot name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from signal import SIGUSR1, SIGUSR2
from typing import Any

import pytest

from tune_rescon.signal_handlers import handled_signals, restore_handler


@pytest.fixture(autouse=True)
def handlers_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (SIGUSR1, SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("earlier", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
def test_signals_are_handled_within_the_block_only(earlier: Any) -> None:
    for number in (SIGUSR1, SIGUSR2):
        signal.signal(number, earlier)
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        received.append(number)
        raise InterruptedError

    with pytest.raises(InterruptedError), handled_signals(handle, SIGUSR1):
        os.kill(os.getpid(), SIGUSR1)
    assert received == [SIGUSR1]
    assert [signal.getsignal(number) for number in (SIGUSR1, SIGUSR2)] == [earlier, earlier]


def test_a_handler_of_c_code_becomes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python returns None for a handler that was installed before it started."""
    install = signal.signal

    def install_over_c(number: int, handler: Any) -> None:
        monkeypatch.setattr(signal, "signal", install)
        install(number, handler)

    monkeypatch.setattr(signal, "signal", install_over_c)
    with handled_signals(lambda *_: None, SIGUSR1):
        assert signal.getsignal(SIGUSR1) is not signal.SIG_DFL
    assert signal.getsignal(SIGUSR1) is signal.SIG_DFL


def test_a_handler_that_python_can_name_is_installed() -> None:
    restore_handler(SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(SIGUSR1) is signal.SIG_IGN
