"""The exact lines of a running search."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from tune_rescon.config import TrialState
from tune_rescon.metric_names import METRICS
from tune_rescon.reporting import EventLines
from tune_rescon.spaces import load_space
from tune_rescon.tuning import Decision, TrialRecord, Verdict

MakeTrial = Callable[..., TrialRecord]

METRICS_OF_AN_EPOCH = {**dict.fromkeys(METRICS, 0.5), "train_loss": 1.23456, "epoch_seconds": 75.0}


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def lines(out: io.StringIO) -> EventLines:
    # Narrower than the lines, which must not be wrapped.
    return EventLines(Console(file=out, width=40, highlight=False), load_space("digits"))


def test_start_of_a_search_is_printed(lines: EventLines, out: io.StringIO) -> None:
    lines.on_search_start([])
    assert out.getvalue() == "12 trials of at most 9 epochs; the first workers start\n"


def test_a_resumed_search_counts_earlier_ended_trials(
    lines: EventLines, out: io.StringIO, make_trial: MakeTrial
) -> None:
    lines.on_search_start([make_trial(0), make_trial(1, TrialState.INTERRUPTED)])
    lines.on_trial_end(make_trial(1, TrialState.STOPPED))
    started, ended = out.getvalue().splitlines()
    assert started == "12 trials of at most 9 epochs, 1 of them ended before; the first workers start"
    assert ended.endswith("; 2 of 12 trials ended")


def test_a_resume_with_a_lower_total_counts_the_trials_that_there_are(
    out: io.StringIO, make_trial: MakeTrial
) -> None:
    lines = EventLines(Console(file=out, highlight=False, width=200), load_space("digits", ["trials=2"]))
    lines.on_search_start([*(make_trial(n) for n in range(3)), make_trial(3, TrialState.PAUSED)])
    lines.on_trial_end(make_trial(3, TrialState.STOPPED))
    started, ended = out.getvalue().splitlines()
    assert started.startswith("4 trials of at most 9 epochs, 3 of them ended before;")
    assert ended.endswith("; 4 of 4 trials ended")


def test_class_names_are_shown_literally(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    metric = "val_f1/[/b]cat"
    trial = replace(make_trial(3), metric=metric)
    lines.on_epoch(trial, {**METRICS_OF_AN_EPOCH, metric: 0.5}, Verdict(decision=Decision.CONTINUE))
    assert f"epoch 2/9: {metric} 0.5, train_loss" in out.getvalue()


def test_trial_start_prints_parameters(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    lines.on_trial_start(make_trial(3, TrialState.RUNNING, ()))
    assert out.getvalue() == "trial_0003 starts: depth=56 learning_rate=0.1\n"


def test_trial_restart_prints_its_epoch(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    lines.on_trial_start(make_trial(3, TrialState.RUNNING, (0.1, 0.2)))
    assert out.getvalue() == "trial_0003 starts again after epoch 2: depth=56 learning_rate=0.1\n"


def test_a_promoted_trial_continues(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    lines.on_trial_end(make_trial(3, TrialState.PAUSED, (0.1, 0.2)))
    lines.on_trial_start(make_trial(3, TrialState.RUNNING, (0.1, 0.2)))
    lines.on_trial_start(make_trial(3, TrialState.RUNNING, (0.1, 0.2)))
    assert out.getvalue().splitlines() == [
        "trial_0003 paused after epoch 2: waits to be promoted",
        "trial_0003 continues after epoch 2: depth=56 learning_rate=0.1",
        # A later retry is not a promotion.
        "trial_0003 starts again after epoch 2: depth=56 learning_rate=0.1",
    ]


def test_a_trial_paused_by_an_earlier_run_continues(
    lines: EventLines, out: io.StringIO, make_trial: MakeTrial
) -> None:
    lines.on_search_start([make_trial(3, TrialState.PAUSED), make_trial(4, TrialState.INTERRUPTED)])
    lines.on_trial_start(make_trial(3, TrialState.RUNNING))
    lines.on_trial_start(make_trial(4, TrialState.RUNNING))
    started, promoted, resumed = out.getvalue().splitlines()
    assert "0 of them ended before" in started
    assert promoted.startswith("trial_0003 continues after epoch 2: ")
    assert resumed.startswith("trial_0004 starts again after epoch 2: ")


def test_a_trial_note_is_printed(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    lines.on_trial_note(make_trial(3), "ran out of memory, now in 2 micro-batches [of 32]")
    assert out.getvalue() == "trial_0003 note: ran out of memory, now in 2 micro-batches [of 32]\n"


def test_brackets_are_shown_literally(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    parameters = {"step_fractions": "[40, 60]", "preset": "[bold]x[/bold]", "augment": "[red]"}
    lines.on_trial_start(make_trial(0, TrialState.RUNNING, (), parameters))
    expected = "trial_0000 starts: step_fractions=[40, 60] preset=[bold]x[/bold] augment=[red]\n"
    assert out.getvalue() == expected


@pytest.mark.parametrize(
    ("value", "verdict", "expected"),
    [
        (0.5, Verdict(decision=Decision.CONTINUE), "val_accuracy 0.5, train_loss 1.235, 1 min 15 s"),
        (
            0.5,
            Verdict(decision=Decision.STOP, rung=1, rank=4, compared=5),
            "val_accuracy 0.5, train_loss 1.235, 1 min 15 s, rank 4 of 5 at rung 1",
        ),
        (math.nan, Verdict(decision=Decision.DIVERGED), "val_accuracy -, train_loss 1.235, 1 min 15 s"),
    ],
    ids=["continue", "stop", "diverged"],
)
def test_an_epoch_is_printed_with_its_decision(
    value: float,
    verdict: Verdict,
    expected: str,
    lines: EventLines,
    out: io.StringIO,
    make_trial: MakeTrial,
) -> None:
    lines.on_epoch(make_trial(0, TrialState.RUNNING, (value,)), METRICS_OF_AN_EPOCH, verdict)
    assert out.getvalue() == f"trial_0000 epoch 1/9: {expected}\n"


def test_ended_trials_are_counted(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    lines.on_trial_end(make_trial(0, TrialState.STOPPED, (0.5, 0.25)))
    lines.on_trial_end(make_trial(1, TrialState.INTERRUPTED, ()))
    lines.on_trial_end(make_trial(2, TrialState.DIVERGED, (math.nan,)))
    assert out.getvalue().splitlines() == [
        "trial_0000 stopped after epoch 2, best 0.5 at epoch 1; 1 of 12 trials ended",
        "trial_0001 interrupted after epoch 0; 1 of 12 trials ended",
        "trial_0002 diverged after epoch 1; 2 of 12 trials ended",
    ]


def test_an_error_is_printed_in_full(lines: EventLines, out: io.StringIO, make_trial: MakeTrial) -> None:
    error = "Traceback ...\nValueError: [bold] is a list of one, which no tensor can be made of\n"
    lines.on_trial_end(make_trial(0, TrialState.FAILED, (), error=error))
    first, remaining = out.getvalue().split("\n", 1)
    assert first == "trial_0000 failed after epoch 0; 1 of 12 trials ended"
    assert remaining == error


@pytest.mark.parametrize("state", TrialState)
def test_every_trial_state_can_be_printed(
    state: TrialState, lines: EventLines, out: io.StringIO, make_trial: MakeTrial
) -> None:
    lines.on_trial_end(make_trial(0, state))
    assert f"trial_0000 {state.value} after epoch 2" in out.getvalue()


def test_the_progress_of_a_long_epoch_is_printed_once_a_minute(
    out: io.StringIO, make_trial: MakeTrial
) -> None:
    now = 0.0
    lines = EventLines(Console(file=out, width=40, highlight=False), load_space("digits"), clock=lambda: now)
    trial = make_trial(3, TrialState.RUNNING, (0.1, 0.2))
    lines.on_trial_start(trial)
    out.truncate(0)
    for second in range(15, 150, 15):
        now = float(second)
        lines.on_progress(trial, second / 200)
    assert out.getvalue().lstrip("\0").splitlines() == [
        "trial_0003 epoch 3/9: 30% trained",
        "trial_0003 epoch 3/9: 60% trained",
    ]
