"""The search-quality benchmark: every answer of every question searches, and its outcome is measured."""

from __future__ import annotations

import math

import pytest
from contest.outcome import Outcome, measure, run, run_for
from contest.questions import ON_THE_CLOCK, QUESTIONS, search_on_the_clock
from contest.table import table

from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import LANDSCAPES, EpochRun, Trace
from tune_rescon.tuning import Decision, optuna_samplers
from tune_rescon.tuning.optuna_samplers import sampler_trial

ANSWERS = [(question, answer) for question, answers in QUESTIONS.items() for answer in answers]


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("att92", ["initial=[]", "budget.trials=6", "fidelity.max=9"])


@pytest.mark.parametrize(("question", "answer"), ANSWERS)
def test_every_answer_searches(question: str, answer: str, space: Space) -> None:
    with QUESTIONS[question][answer].search(space) as policy:
        outcome = run(policy, space, LANDSCAPES["crossing"], 0.9, workers=2)
    assert 6 <= outcome.epochs <= 6 * 9 + 6
    assert 0 < outcome.quality < 1.1
    assert vars(optuna_samplers)["sampler_trial"] is sampler_trial, "a patch of an answer is undone"


@pytest.mark.parametrize("name", ON_THE_CLOCK)
def test_a_time_limited_search_ends_within_its_seconds(name: str, space: Space) -> None:
    outcome = run_for(
        5000.0,
        lambda clock: search_on_the_clock(space, name, clock, seconds=5000.0, workers=2),
        space,
        LANDSCAPES["monotone"],
        0.9,
        workers=2,
    )
    assert 2500 < outcome.seconds <= 5000
    assert 0 < outcome.quality < 1.1


def epochs(number: int, *values: float) -> list[EpochRun]:
    return [
        EpochRun(
            number=number,
            epoch=epoch,
            worker=0,
            begun=epoch - 1.0,
            ended=float(epoch),
            value=value,
            decision=Decision.CONTINUE,
        )
        for epoch, value in enumerate(values, 1)
    ]


def test_a_trace_is_measured_as_an_outcome() -> None:
    runs = (*epochs(0, 0.5, 0.9), *epochs(1, 0.4, 0.5, 0.6), *epochs(2, 0.4, 0.5, 0.7))
    outcome = measure(Trace(workers=1, runs=runs), {0: 0.8, 1: 0.995, 2: 0.9}, last_epoch=3)
    assert outcome == Outcome(
        epochs=8,
        epochs_to_near=5.0,  # the end of trial 1, after the two epochs of trial 0
        quality=0.9,  # trial 2 reached the last epoch with the best value
        quality_of_last=0.8,  # trial 0 was stopped with the best reported value
        diverged=0,
        seconds=3.0,
    )


def test_the_table_includes_searches_that_found_nothing() -> None:
    successful, failed = (
        Outcome(
            epochs=9,
            epochs_to_near=epochs_to_near,
            quality=0.9,
            quality_of_last=0.9,
            diverged=3,
            seconds=3600.0,
        )
        for epochs_to_near in (7.0, math.inf)
    )
    lines = table(
        "monotone", {"one": [successful, successful, failed], "other": [successful, failed, failed]}
    )
    assert "| one | 90.00 ± 0.00 |  | 7 (7 to never) | 2 of 3 | 9 | 3.0 | 1.0 |" in lines
    assert "| other | 90.00 ± 0.00 | +0.00 ± 0.00 | never (7 to never) | 1 of 3 | 9 | 3.0 | 1.0 |" in lines
