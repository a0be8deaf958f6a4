"""The totals that follow from the events of a search."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.config import TrialState
from tune_rescon.reporting.live_state import GaugeValues, LiveTotals, RungCount, Survival, seconds_left
from tune_rescon.spaces import load_space
from tune_rescon.tuning import TrialRecord

MakeTrial = Callable[..., TrialRecord]

TWO_SLOTS = GaugeValues(slots=2)


@pytest.fixture
def state() -> LiveTotals:
    """Twelve trials of nine epochs with rungs at 1 and 3; a trial reserves one core."""
    return LiveTotals(load_space("digits"), "s")


@pytest.fixture
def train(state: LiveTotals, make_trial: MakeTrial, metrics: dict[str, float]) -> Callable[..., TrialRecord]:
    """Report the values of a trial, ten seconds each, and end the trial unless it is running."""

    def run(
        number: int, *values: float, state_after: TrialState = TrialState.RUNNING, now: float = 0
    ) -> TrialRecord:
        state.on_trial_start(make_trial(number), now)
        for epoch in range(1, len(values) + 1):
            trial = make_trial(number, *values[:epoch])
            state.on_epoch(trial, metrics, now + 10 * epoch)
        last = make_trial(number, *values, state=state_after)
        if state_after is not TrialState.RUNNING:
            state.on_trial_end(last)
        return last

    return run


def test_the_initial_snapshot_is_empty(state: LiveTotals) -> None:
    snapshot = state.snapshot(TWO_SLOTS)
    assert (snapshot.done, snapshot.total, snapshot.last_epoch) == (0, 12, 9)
    assert (snapshot.best, snapshot.seconds_left, snapshot.rungs, snapshot.running) == (None, None, (), ())


def test_running_trials_are_ordered_and_ended_ones_counted(
    state: LiveTotals, train: Callable[..., TrialRecord]
) -> None:
    train(1, 0.5)
    train(0, 0.25, 0.375)
    train(2, 0.25, state_after=TrialState.STOPPED)
    train(3, math.nan, state_after=TrialState.DIVERGED)
    snapshot = state.snapshot(TWO_SLOTS)
    assert [trial.number for trial in snapshot.running] == [0, 1]
    assert snapshot.speeds == {0: 600.0, 1: 600.0}
    assert snapshot.ended == {TrialState.STOPPED: 1, TrialState.DIVERGED: 1}
    assert snapshot.done == 2
    assert snapshot.rungs == (RungCount(epoch=1, reached=4, continued=2),)
    # Five epochs of two seconds on one core.
    assert snapshot.hours == {"core-hours": pytest.approx(10 / 3600)}


def test_the_best_trial_is_the_furthest_until_one_finishes(
    state: LiveTotals, train: Callable[..., TrialRecord]
) -> None:
    def best() -> int:
        trial = state.snapshot(TWO_SLOTS).best
        assert trial is not None
        return trial.number

    train(0, 0.9, state_after=TrialState.STOPPED)
    assert best() == 0
    train(1, 0.1, 0.2)
    assert best() == 1
    train(6, 0.1, 0.2, 0.3, state_after=TrialState.FAILED)
    train(7, 0.1)
    assert best() == 1, "a trial that failed keeps no network, and trial 1 came further than trial 7"
    train(2, *[0.5] * 9, state_after=TrialState.FINISHED)
    assert best() == 2
    train(3, *[0.6] * 9)
    assert best() == 2, "it has not finished yet"
    train(4, *[0.4] * 9, state_after=TrialState.FINISHED)
    assert best() == 2
    train(5, *[0.6] * 9, state_after=TrialState.FINISHED)
    assert best() == 5


def test_of_equal_trials_the_best_is_the_first_by_number(
    state: LiveTotals, train: Callable[..., TrialRecord]
) -> None:
    """As in the result, whichever ended first."""
    ended = [train(number, *[0.5] * 9, state_after=TrialState.FINISHED) for number in (4, 3, 5)]
    assert state.snapshot(TWO_SLOTS).best == ended[1]


def test_the_best_of_final_trainings_is_chosen_by_the_mean(make_trial: MakeTrial) -> None:
    settings = [
        "metric.name=test_accuracy",
        "dataset.hold_out=false",
        "scheduler.type=none",
        "budget.trials=1",
    ]
    state = LiveTotals(load_space("digits", settings), "s")
    for number, (rate, value) in enumerate([(0.1, 0.9), (0.1, 0.5), (0.2, 0.8), (0.2, 0.75)]):
        trial = make_trial(number, value, state=TrialState.FINISHED)
        state.on_trial_end(dataclasses.replace(trial, parameters={"learning_rate": rate}))
    best = state.snapshot(TWO_SLOTS).best
    assert best is not None
    assert best.number == 2


@pytest.mark.parametrize("state_of_best", [TrialState.DIVERGED, TrialState.FAILED])
def test_the_next_best_follows_a_best_trial_that_fails(
    state_of_best: TrialState, state: LiveTotals, make_trial: MakeTrial, metrics: dict[str, float]
) -> None:
    state.on_search_start(
        [
            make_trial(0, 0.25, 0.5, state=TrialState.STOPPED),
            make_trial(1, 0.25, 0.375, state=TrialState.STOPPED),
        ]
    )
    state.on_trial_start(make_trial(2), 0.0)
    values: tuple[float, ...] = (0.25, 0.5, 0.75)
    state.on_epoch(make_trial(2, *values), metrics, 1.0)
    best = state.snapshot(TWO_SLOTS).best
    assert best is not None
    assert best.number == 2
    if state_of_best is TrialState.DIVERGED:
        values = (*values, math.nan)
        state.on_epoch(make_trial(2, *values), metrics, 2.0)
    state.on_trial_end(make_trial(2, *values, state=state_of_best))
    best = state.snapshot(TWO_SLOTS).best
    assert best is not None
    assert (best.number, best.value) == (0, 0.5)


def test_the_best_trial_has_the_smallest_value_if_minimized(state: LiveTotals, make_trial: MakeTrial) -> None:
    for number, value in enumerate((0.5, 0.25, 0.75)):
        ended = make_trial(number, *[value] * 9, state=TrialState.FINISHED, maximize=False)
        state.on_trial_end(ended)
    best = state.snapshot(TWO_SLOTS).best
    assert best is not None
    assert best.number == 1


def test_a_paused_trial_frees_its_slot_and_can_resume(
    state: LiveTotals, train: Callable[..., TrialRecord]
) -> None:
    paused = train(0, 0.5, state_after=TrialState.PAUSED)
    snapshot = state.snapshot(TWO_SLOTS)
    assert (snapshot.running, snapshot.done, snapshot.ended) == ((), 0, {TrialState.PAUSED: 1})
    assert snapshot.rungs == (RungCount(epoch=1, reached=1, continued=0),)
    assert not state.on_trial_start(paused, 0.0)
    snapshot = state.snapshot(TWO_SLOTS)
    assert (len(snapshot.running), snapshot.ended) == (1, {})
    assert snapshot.rungs == (RungCount(epoch=1, reached=1, continued=1),)


def test_a_paused_trial_that_is_not_promoted_is_stopped_at_its_rung(
    state: LiveTotals, make_trial: MakeTrial, train: Callable[..., TrialRecord]
) -> None:
    train(0, 0.5, state_after=TrialState.PAUSED)
    state.on_trial_end(make_trial(0, 0.5, state=TrialState.STOPPED))
    snapshot = state.snapshot(TWO_SLOTS)
    assert snapshot.ended == {TrialState.STOPPED: 1}
    assert snapshot.rungs == (RungCount(epoch=1, reached=1, continued=0),)


def test_a_trial_restarted_after_a_dead_worker_is_counted_once(
    state: LiveTotals, train: Callable[..., TrialRecord]
) -> None:
    running = train(0, 0.5, 0.6)
    assert state.on_trial_start(running, 30.0)
    snapshot = state.snapshot(TWO_SLOTS)
    assert len(snapshot.running) == 1
    assert snapshot.rungs == (RungCount(epoch=1, reached=1, continued=1),)


def test_a_resumed_search_starts_with_its_earlier_trials(state: LiveTotals, make_trial: MakeTrial) -> None:
    state.on_search_start(
        [
            make_trial(0, *[0.5] * 9, state=TrialState.FINISHED),
            make_trial(1, 0.25, state=TrialState.STOPPED),
            make_trial(2, 0.5, 0.5, state=TrialState.INTERRUPTED),
        ]
    )
    snapshot = state.snapshot(TWO_SLOTS)
    assert snapshot.done == 2
    assert snapshot.rungs == (
        RungCount(epoch=1, reached=3, continued=2),
        RungCount(epoch=3, reached=1, continued=1),
    )
    assert snapshot.hours == {"core-hours": pytest.approx(24 / 3600)}
    assert not state.on_trial_start(make_trial(2, 0.5, 0.5), 0.0), "no worker process died"


def test_a_resume_with_a_lower_total_counts_the_trials_that_there_are(make_trial: MakeTrial) -> None:
    state = LiveTotals(load_space("digits", ["trials=2"]), "s")
    state.on_search_start([make_trial(n, *[0.5] * 9, state=TrialState.FINISHED) for n in range(4)])
    snapshot = state.snapshot(TWO_SLOTS)
    assert (snapshot.done, snapshot.total) == (4, 4)


def test_time_left_is_shown_after_two_epochs_per_slot(
    state: LiveTotals, train: Callable[..., TrialRecord]
) -> None:
    train(0, 0.5, 0.5)
    train(1, 0.5)
    assert state.snapshot(TWO_SLOTS).seconds_left is None
    train(2, 0.5)
    left = state.snapshot(TWO_SLOTS).seconds_left
    assert left is not None
    # Nine trials to come, of 2.3 to 9 epochs each, and seven epochs at least for trial 0; ten seconds each.
    assert 70 < left < 10 * 12 * 9 / 2
    assert state.snapshot(GaugeValues(slots=2, seconds=60.0)).seconds_left == 60.0
    assert state.snapshot(GaugeValues(slots=2, seconds=-1.0)).seconds_left == 0.0


def test_at_the_end_no_time_is_left(state: LiveTotals, train: Callable[..., TrialRecord]) -> None:
    for number in range(12):
        train(number, *[0.5] * 9, state_after=TrialState.FINISHED)
    assert state.snapshot(TWO_SLOTS).seconds_left == 0.0


def test_an_event_is_fast_after_a_thousand_trials(
    state: LiveTotals, make_trial: MakeTrial, metrics: dict[str, float]
) -> None:
    """The handler does not scan the trials. The limit of 0.2 ms allows for a busy machine."""
    state.on_search_start([make_trial(n, 0.5, state=TrialState.STOPPED) for n in range(1000)])
    trials = [make_trial(1000, *[0.5] * epochs) for epochs in range(1, 10)]
    state.on_trial_start(make_trial(1000), 0.0)
    seconds = []
    for now, trial in enumerate(trials):
        start = time.thread_time()
        state.on_epoch(trial, metrics, float(now))
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.0002


def observe(survival: Survival, epochs: int, *, ended: bool) -> None:
    for epoch in range(epochs + 1):
        survival.reached(epoch)
    if ended:
        survival.ended(epochs)


def test_without_early_stopping_every_epoch_is_expected() -> None:
    assert Survival((5,), reduction_factor=3).epochs_ahead() == [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def test_running_trials_count_up_to_their_current_epoch() -> None:
    """Half of the trials end after epoch 1. A mean over ended trials would expect one epoch."""
    survival = Survival((9,), reduction_factor=3)
    for _ in range(50):
        observe(survival, 1, ended=True)
        observe(survival, 3, ended=False)
    assert survival.epochs_ahead()[0] == pytest.approx(1 + 0.5 * 8)


def test_observed_counts_replace_the_prior() -> None:
    survival = Survival((1, 9), reduction_factor=3)
    assert survival.epochs_ahead()[0] == pytest.approx(1 + 8 / 3)
    for _ in range(1000):
        observe(survival, 1, ended=False)
    assert survival.epochs_ahead()[0] == pytest.approx(9, rel=0.01)


def test_a_promoted_trial_counts_as_continued_at_its_rung() -> None:
    survival = Survival((1, 9), reduction_factor=3)
    observe(survival, 1, ended=True)
    assert survival.counts(1) == (1, 0)
    survival.continued(1)
    assert survival.counts(1) == (1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_expected_epochs_converge_to_the_mean_of_many_trials(seed: int) -> None:
    rng = random.Random(seed)
    survival, trained = Survival((1, 3, 9, 27), reduction_factor=3), []
    for _ in range(2000):
        epochs = next((rung for rung in (1, 3, 9) if rng.random() > 1 / 3), 27)
        trained.append(epochs)
        # The time of observation is independent of the trial's length.
        observed_epochs = rng.randint(0, 40)
        observe(survival, min(epochs, observed_epochs), ended=epochs <= observed_epochs)
    assert survival.epochs_ahead()[0] == pytest.approx(sum(trained) / len(trained), rel=0.1)


@given(
    running=st.lists(st.integers(0, 9), max_size=20),
    unstarted=st.integers(0, 100),
    slots=st.integers(1, 64),
)
def test_time_left_falls_with_slots_and_covers_the_longest_trial(
    running: list[int], unstarted: int, slots: int
) -> None:
    ahead = [float(9 - epoch) for epoch in range(10)]

    def left(slots: int) -> float:
        return seconds_left(ahead, running=running, unstarted=unstarted, slots=slots, seconds_per_epoch=2.0)

    assert left(slots + 1) <= left(slots)
    assert left(slots) >= 2 * max((ahead[epoch] for epoch in running), default=0)
    assert left(1) == pytest.approx(2 * (sum(ahead[epoch] for epoch in running) + 9 * unstarted))
