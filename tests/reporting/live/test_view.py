"""Which thread draws the table, and when; the terminal is a string."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from tests.waiting import wait_until
from tune_rescon.config import TrialState
from tune_rescon.reporting import LiveView
from tune_rescon.reporting import live_view as view_module
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import ClusterSize, Decision, Gauges, TrialRecord, Verdict

MakeTrial = Callable[..., TrialRecord]

CONTINUE = Verdict(decision=Decision.CONTINUE)

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Screen(io.StringIO):
    """A terminal that is a string, on which a test can wait for a text."""

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.getvalue())

    @property
    def text(self) -> str:
        """The text without escape sequences."""
        return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.getvalue())


@pytest.fixture
def space() -> Space:
    return load_space("digits")


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def console(screen: Screen) -> Console:
    return Console(file=screen, force_terminal=True, color_system=None, width=100, height=24)


@pytest.fixture(autouse=True)
def _frequent_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "REDRAW_EVERY", 0.01)


def gauges(*, waiting: Callable[[], int] = lambda: 0) -> Gauges:
    size = ClusterSize(nodes=2, gpus=0, cpus=8)
    return Gauges(slots=2, deadline=None, waiting=waiting, cluster=lambda: size)


def test_the_table_is_shown_only_while_the_search_runs(
    console: Console, screen: Screen, space: Space, make_trial: MakeTrial, metrics: dict[str, float]
) -> None:
    with LiveView(console, space, name="s") as view:
        view.show_message("looking for the lease")
        screen.wait_for("looking for the lease")
        assert "trials ended" not in screen.getvalue()
        view.on_start(gauges())
        view.on_search_start([])
        view.on_trial_start(make_trial(0))
        view.on_epoch(make_trial(0, 0.5), metrics, CONTINUE)
        screen.wait_for("600 images/s on 2 nodes, 8 CPUs")
        assert screen.getvalue().count(HIDE_CURSOR) == 1
    assert screen.getvalue().count(SHOW_CURSOR) == 1
    # The table's lines are erased at the end.
    assert screen.getvalue().rindex("\x1b[2K") > screen.getvalue().rindex("images/s")


def test_the_terminal_is_restored_after_an_exception(console: Console, screen: Screen, space: Space) -> None:
    def fail() -> None:
        with LiveView(console, space, name="s") as view:
            view.on_search_start([])
            screen.wait_for("0 of 12 trials ended")
            view.show_message("the last words")
            raise ValueError("drawing")

    with pytest.raises(ValueError, match="drawing"):
        fail()
    assert screen.getvalue().count(SHOW_CURSOR) == 1
    assert "the last words" in screen.getvalue()


@pytest.mark.parametrize("state", TrialState)
def test_trials_not_stopped_by_a_rung_get_a_line(
    state: TrialState, console: Console, screen: Screen, space: Space, make_trial: MakeTrial
) -> None:
    with LiveView(console, space, name="s") as view:
        view.on_trial_start(make_trial(3))
        view.on_trial_end(make_trial(3, 0.5, state=state))
    printed_states = ("finished", "diverged", "out_of_memory", "failed")
    expected = (
        f"trial_0003 {state.value} after epoch 1, best 0.5 at epoch 1\n" if state in printed_states else ""
    )
    assert screen.text == expected


def test_errors_and_notes_are_shown_in_full_and_in_order(
    console: Console, screen: Screen, space: Space, make_trial: MakeTrial
) -> None:
    error = "Traceback ...\n  a line of [bold] code that is very long indeed" + " and longer" * 10
    with LiveView(console, space, name="s") as view:
        view.on_search_start([])
        view.on_trial_note(make_trial(3), "own.py:100: continues in [2] micro-batches")
        view.on_trial_end(make_trial(3, state=TrialState.FAILED, error=error))
        view.show_message("Interrupted: [stopping]")
        screen.wait_for("Interrupted: [stopping]")
    note = "trial_0003 note: own.py:100: continues in [2] micro-batches"
    assert f"{note}\ntrial_0003 failed after epoch 0\n{error}\nInterrupted" in screen.text


def test_a_trial_whose_worker_died_gets_a_line(
    console: Console, screen: Screen, space: Space, make_trial: MakeTrial
) -> None:
    with LiveView(console, space, name="s") as view:
        view.on_search_start([make_trial(4, 0.5, state=TrialState.INTERRUPTED)])
        for number in (3, 4, 3):
            view.on_trial_start(make_trial(number, 0.5))
    assert re.findall(r"trial_000\d starts.*?:", screen.text) == ["trial_0003 starts again after epoch 1:"]


def test_pending_mlflow_updates_are_shown_after_a_timeout(
    console: Console, screen: Screen, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "PENDING_TIMEOUT", 0.2)
    queue = iter([3, 0] * 5 + [214] * 10_000)
    with LiveView(console, space, name="s") as view:
        view.on_start(gauges(waiting=lambda: next(queue)))
        view.on_search_start([])
        screen.wait_for("MLflow  214 waiting")
    assert "MLflow  3 waiting" not in screen.text


class StuckScreen(Screen):
    """A terminal whose output was suspended with Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.resumed = threading.Event()

    def write(self, text: str) -> int:
        self.resumed.wait()
        return super().write(text)


def test_a_stuck_terminal_blocks_no_event(
    space: Space, make_trial: MakeTrial, metrics: dict[str, float]
) -> None:
    stuck = StuckScreen()
    console = Console(file=stuck, force_terminal=True, color_system=None, width=100, height=24)
    with LiveView(console, space, name="s") as view:
        view.on_search_start([])
        time.sleep(0.05)
        view.on_trial_start(make_trial(0))
        view.on_epoch(make_trial(0, 0.5), metrics, CONTINUE)
        view.on_trial_end(make_trial(0, 0.5, state=TrialState.FAILED, error="the reason"))
        view.show_message("all of it was noted")
        assert stuck.getvalue() == ""
        stuck.resumed.set()
    assert "the reason" in stuck.getvalue()
    assert "all of it was noted" in stuck.getvalue()


class ClosedScreen(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, f"Input/output error at {len(text)} characters")


def test_a_closed_terminal_does_not_fail_the_search(
    space: Space, make_trial: MakeTrial, caplog: pytest.LogCaptureFixture
) -> None:
    console = Console(file=ClosedScreen(), force_terminal=True, color_system=None, width=100, height=24)
    with LiveView(console, space, name="s") as view:
        view.on_search_start([])
        wait_until(lambda: "the terminal accepts no more output" in caplog.text)
        view.on_trial_start(make_trial(0))
    assert "the terminal accepts no more output" in caplog.text


def test_the_redraw_rate_is_limited(
    console: Console,
    screen: Screen,
    space: Space,
    make_trial: MakeTrial,
    metrics: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view_module, "REDRAW_EVERY", 0.25)
    start = time.monotonic()
    with LiveView(console, space, name="s") as view:
        view.on_search_start([])
        for number in range(2000):
            view.on_trial_start(make_trial(number))
            view.on_epoch(make_trial(number, 0.5), metrics, CONTINUE)
            view.on_trial_end(make_trial(number, 0.5, state=TrialState.STOPPED))
        screen.wait_for("trials ended")
    redraws = screen.getvalue().count("trials ended")
    assert 1 <= redraws <= 2 + 4 * (time.monotonic() - start)


def test_text_outside_the_table_is_printed_immediately(
    console: Console, screen: Screen, space: Space
) -> None:
    with LiveView(console, space, name="s") as view:
        view.show_message("before")
    assert screen.text == "before\n"
    view.show_message("after")
    assert screen.text == "before\nafter\n"


def test_progress_of_a_long_epoch_is_shown_in_tenths(
    console: Console, screen: Screen, space: Space, make_trial: MakeTrial, metrics: dict[str, float]
) -> None:
    with LiveView(console, space, name="s") as view:
        view.on_start(gauges())
        view.on_search_start([])
        view.on_trial_start(make_trial(0))
        view.on_progress(make_trial(0), 0.43)
        screen.wait_for("0.4/9")
        view.on_progress(make_trial(0), 0.99)
        screen.wait_for("0.9/9")
        view.on_epoch(make_trial(0, 0.5), metrics, CONTINUE)
        screen.wait_for(" 1/9")
