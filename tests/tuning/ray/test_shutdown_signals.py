"""The stop level that follows from signals, by table on a simulated clock, and real signals."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from tune_rescon.errors import ConfigError
from tune_rescon.tuning.options import default_grace
from tune_rescon.tuning.ray.shutdown import SignalState, StopLevel, signal_handlers

SIGINT, SIGTERM, SIGHUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

#: Grace period in seconds.
GRACE = 20.0


@pytest.mark.parametrize(
    ("received", "now", "level", "seconds_left"),
    [
        pytest.param([], 99, StopLevel.NONE, None, id="no signal"),
        pytest.param([(SIGINT, 0)], 9999, StopLevel.FINISH_EPOCHS, None, id="Ctrl-C waits for long epochs"),
        pytest.param([(SIGINT, 0), (SIGINT, 3)], 3, StopLevel.STOP, None, id="a second Ctrl-C does not"),
        pytest.param(
            [(SIGINT, 0), (SIGINT, 0.01)],
            9999,
            StopLevel.FINISH_EPOCHS,
            None,
            id="an echo is not a second Ctrl-C",
        ),
        pytest.param(
            [(SIGINT, 0), (SIGINT, 0.01), (SIGINT, 5)],
            5,
            StopLevel.STOP,
            None,
            id="a second Ctrl-C after an echo",
        ),
        pytest.param([(SIGTERM, 0)], 19, StopLevel.FINISH_EPOCHS, 1, id="SIGTERM within its deadline"),
        pytest.param([(SIGTERM, 0)], 20, StopLevel.STOP, 0, id="SIGTERM at its deadline"),
        pytest.param([(SIGTERM, 0), (SIGTERM, 10)], 19, StopLevel.FINISH_EPOCHS, 1, id="SIGTERM repeated"),
        pytest.param(
            [(SIGTERM, 0), (SIGHUP, 0)], 19, StopLevel.FINISH_EPOCHS, 1, id="systemd's SIGTERM and SIGHUP"
        ),
        pytest.param([(SIGTERM, 0), (SIGINT, 2)], 2, StopLevel.STOP, 18, id="Ctrl-C after SIGTERM"),
        pytest.param(
            [(SIGINT, 0), (SIGTERM, 5)], 6, StopLevel.FINISH_EPOCHS, 19, id="a spot notice after Ctrl-C"
        ),
        pytest.param(
            [(SIGINT, 0), (SIGTERM, 5)],
            25,
            StopLevel.STOP,
            0,
            id="the deadline of a spot notice after Ctrl-C",
        ),
        pytest.param([(SIGHUP, 0)], 21, StopLevel.STOP, -1, id="a closed terminal"),
    ],
)
def test_the_stop_level_after_signals(
    received: Sequence[tuple[int, float]], now: float, level: StopLevel, seconds_left: float | None
) -> None:
    clock = [0.0]
    signals = SignalState(grace=GRACE, clock=lambda: clock[0])
    signals.deferred = True
    for number, received_at in received:
        clock[0] = received_at
        signals.receive(number)
    clock[0] = now
    assert signals.stop_level is level
    assert signals.seconds_left == seconds_left


def test_a_signal_before_the_first_trial_raises_keyboard_interrupt() -> None:
    signals = SignalState(grace=GRACE, clock=lambda: 0.0)
    with pytest.raises(KeyboardInterrupt):
        signals.receive(SIGTERM)


@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGHUP])
def test_signals_arrive_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    # SIGHUP is ignored at first if the tests run under `nohup`.
    original = signal.signal(number, signal.default_int_handler)
    signals = SignalState(grace=GRACE, clock=lambda: 0.0)
    signals.deferred = True
    try:
        with signal_handlers(signals):
            os.kill(os.getpid(), number)
            assert signals.stop_level is StopLevel.FINISH_EPOCHS
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, original)


def test_an_ignored_sighup_stays_ignored() -> None:
    before = signal.signal(SIGHUP, signal.SIG_IGN)
    signals = SignalState(grace=GRACE, clock=lambda: 0.0)
    try:
        with signal_handlers(signals):
            os.kill(os.getpid(), SIGHUP)
        assert signals.stop_level is StopLevel.NONE
    finally:
        signal.signal(SIGHUP, before)


#: Prints to a closed terminal, on standard output and on a duplicate of it like that of a console.
PRINT_AFTER_CLOSE = """
import os, time
from tune_rescon.tuning.ray.shutdown import SignalState, StopLevel, signal_handlers

interruption = SignalState(grace=20.0, clock=time.monotonic)
interruption.deferred = True
console = os.fdopen(os.dup(1), "w")
with signal_handlers(interruption):
    print("ready", flush=True)
    while interruption.stop_level is StopLevel.NONE:
        time.sleep(0.01)
    print("the epochs are finished", flush=True)
    print("here too", file=console, flush=True)
"""


@pytest.mark.timeout(30)  # an interpreter
def test_output_to_a_closed_terminal_is_discarded() -> None:
    controller, terminal_fd = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT_AFTER_CLOSE], stdout=terminal_fd, stderr=subprocess.PIPE
    )
    os.close(terminal_fd)
    # Read the whole line, because the program may still be printing it.
    printed = b""
    while b"\n" not in printed:
        printed += os.read(controller, 100)
    os.close(controller)
    process.send_signal(SIGHUP)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")


def test_another_thread_changes_no_handler() -> None:
    handlers: list[object] = []

    def run() -> None:
        with signal_handlers(SignalState(grace=GRACE, clock=lambda: 0.0)):
            handlers.append(signal.getsignal(SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(SIGINT)]


@pytest.mark.parametrize(("value", "expected"), [(None, 15.0), ("", 15.0), ("110", 110.0), ("0", 0.0)])
def test_the_grace_period_is_read_from_the_environment(
    value: str | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNE_RESCON_GRACE_SECONDS", raising=False)
    if value is not None:
        monkeypatch.setenv("TUNE_RESCON_GRACE_SECONDS", value)
    assert math.isclose(default_grace(), expected)


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_an_invalid_grace_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_RESCON_GRACE_SECONDS", value)
    with pytest.raises(ConfigError, match="TUNE_RESCON_GRACE_SECONDS: must be a number of seconds"):
        default_grace()
