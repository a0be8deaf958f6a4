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

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

#: Seconds of grace in the table.
GRACE = 20.0


@pytest.mark.parametrize(
    ("came", "now", "urgency", "left"),
    [
        pytest.param([], 99, StopLevel.NONE, None, id="nothing"),
        pytest.param([(INT, 0)], 9999, StopLevel.FINISH_EPOCHS, None, id="Ctrl-C waits for long epochs"),
        pytest.param([(INT, 0), (INT, 3)], 3, StopLevel.STOP, None, id="a second one does not"),
        pytest.param([(INT, 0), (INT, 0.01)], 9999, StopLevel.FINISH_EPOCHS, None, id="an echo is no second"),
        pytest.param([(INT, 0), (INT, 0.01), (INT, 5)], 5, StopLevel.STOP, None, id="a second after an echo"),
        pytest.param([(TERM, 0)], 19, StopLevel.FINISH_EPOCHS, 1, id="SIGTERM within its deadline"),
        pytest.param([(TERM, 0)], 20, StopLevel.STOP, 0, id="SIGTERM at its deadline"),
        pytest.param([(TERM, 0), (TERM, 10)], 19, StopLevel.FINISH_EPOCHS, 1, id="SIGTERM repeated"),
        pytest.param(
            [(TERM, 0), (HUP, 0)], 19, StopLevel.FINISH_EPOCHS, 1, id="systemd's SIGTERM and SIGHUP"
        ),
        pytest.param([(TERM, 0), (INT, 2)], 2, StopLevel.STOP, 18, id="Ctrl-C after SIGTERM"),
        pytest.param([(INT, 0), (TERM, 5)], 6, StopLevel.FINISH_EPOCHS, 19, id="a spot notice after Ctrl-C"),
        pytest.param([(INT, 0), (TERM, 5)], 25, StopLevel.STOP, 0, id="and its deadline"),
        pytest.param([(HUP, 0)], 21, StopLevel.STOP, -1, id="the terminal was closed"),
    ],
)
def test_the_stop_level_after_signals(
    came: Sequence[tuple[int, float]], now: float, urgency: StopLevel, left: float | None
) -> None:
    clock = [0.0]
    interruption = SignalState(grace=GRACE, clock=lambda: clock[0])
    interruption.deferred = True
    for number, when in came:
        clock[0] = when
        interruption.receive(number)
    clock[0] = now
    assert interruption.urgency is urgency
    assert interruption.seconds_left == left


def test_a_signal_before_the_first_trial_raises_keyboard_interrupt() -> None:
    interruption = SignalState(grace=GRACE, clock=lambda: 0.0)
    with pytest.raises(KeyboardInterrupt):
        interruption.receive(TERM)


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_signals_arrive_and_the_handlers_are_put_back(number: signal.Signals) -> None:
    # Under `nohup`, SIGHUP is ignored when the test starts.
    original = signal.signal(number, signal.default_int_handler)
    interruption = SignalState(grace=GRACE, clock=lambda: 0.0)
    interruption.deferred = True
    try:
        with signal_handlers(interruption):
            os.kill(os.getpid(), number)
            assert interruption.urgency is StopLevel.FINISH_EPOCHS
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, original)


def test_an_ignored_sighup_stays_ignored() -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    interruption = SignalState(grace=GRACE, clock=lambda: 0.0)
    try:
        with signal_handlers(interruption):
            os.kill(os.getpid(), HUP)
        assert interruption.urgency is StopLevel.NONE
    finally:
        signal.signal(HUP, before)


#: Prints to its terminal after that was closed, on standard output and on a duplicate as a console has it.
PRINTS_ON = """
import os, time
from tune_rescon.tuning.ray.shutdown import SignalState, StopLevel, signal_handlers

interruption = SignalState(grace=20.0, clock=time.monotonic)
interruption.deferred = True
console = os.fdopen(os.dup(1), "w")
with signal_handlers(interruption):
    print("ready", flush=True)
    while interruption.urgency is StopLevel.NONE:
        time.sleep(0.01)
    print("the epochs are finished", flush=True)
    print("here too", file=console, flush=True)
"""


@pytest.mark.timeout(30)  # an interpreter
def test_output_to_a_closed_terminal_is_discarded() -> None:
    ours, its = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", PRINTS_ON], stdout=its, stderr=subprocess.PIPE)
    os.close(its)
    # The whole line: a terminal takes its end apart, and the program may still be printing it.
    printed = b""
    while b"\n" not in printed:
        printed += os.read(ours, 100)
    os.close(ours)
    process.send_signal(HUP)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")


def test_another_thread_changes_no_handler() -> None:
    seen: list[object] = []

    def run() -> None:
        with signal_handlers(SignalState(grace=GRACE, clock=lambda: 0.0)):
            seen.append(signal.getsignal(INT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(INT)]


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
