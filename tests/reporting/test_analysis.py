"""Results, costs and timeline of a search: by hand on small results, and recomputed on a simulated search."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.config import TrialConfig, TrialState
from tune_rescon.metric_names import MetricAt
from tune_rescon.reporting.hours import savings
from tune_rescon.reporting.incumbents import incumbents
from tune_rescon.reporting.summary import (
    ABSENT,
    best_command,
    cost_fronts,
    failures,
    parameter_axes,
    rank_classes,
    rung_survival,
    shared_epoch,
    values_at,
)
from tune_rescon.reporting.timeline import timeline
from tune_rescon.search import search
from tune_rescon.spaces import FloatParameter, dump_space, load_space
from tune_rescon.testing import LANDSCAPES, SimulatedSearch, Simulation
from tune_rescon.tuning import SearchState, StudyResult, TrialRecord
from tune_rescon.tuning.trial import TrialOrigin

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]


def with_epoch_times(trial: TrialRecord, *ends: float, seconds: float) -> TrialRecord:
    """Return the trial with epochs of equal length that ended at ``ends``."""
    times = tuple(round(end * 1000) for end in ends)
    return dataclasses.replace(trial, times_ms=times, history={"epoch_seconds": (seconds,) * len(ends)})


def test_every_rung_counts_each_trial_once(simulated: StudyResult) -> None:
    rungs = rung_survival(simulated)
    assert [rung.epoch for rung in rungs] == [1, 3, 9]
    for rung in rungs:
        assert rung.reached == sum(trial.epochs >= rung.epoch for trial in simulated.trials)
        assert rung.continued + rung.stopped + rung.other == rung.reached
    finished = sum(trial.state is TrialState.FINISHED for trial in simulated.trials)
    assert (rungs[-1].continued, rungs[-1].stopped) == (finished, 0)


def test_only_epochs_of_stopped_trials_are_saved(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, values=(0.1, 0.2, 0.3)),
        make_trial(1, TrialState.STOPPED, (0.1,)),
        make_trial(2, TrialState.DIVERGED, (math.nan,)),
        make_trial(3, TrialState.FAILED, ()),
    ]
    saved = savings(make_result(*trials, rungs=(1, 3)))
    # Each epoch took half an hour of two cores.
    assert (saved.epochs, saved.epochs_saved, saved.hours) == (5, 2, 5.0)
    assert saved.hours_saved == {"core-hours": 2.0}
    assert saved.share == pytest.approx(2 / 7)


def test_an_empty_search_has_no_savings(make_result: MakeResult) -> None:
    assert savings(make_result()).share == 0.0
    assert timeline(make_result()).utilisation == 0.0
    assert shared_epoch(make_result()) == 0


def test_a_free_slot_is_reused(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [
        with_epoch_times(make_trial(0), 110.0, 120.0, seconds=10.0),
        with_epoch_times(make_trial(1), 110.0, seconds=10.0),
        with_epoch_times(make_trial(2), 130.0, seconds=20.0),
    ]
    slots = timeline(make_result(*trials))
    assert [(s.number, s.slot, s.start, s.end) for s in slots.stretches] == [
        (0, 0, 100.0, 120.0),
        (1, 1, 100.0, 110.0),
        (2, 1, 110.0, 130.0),
    ]
    assert (slots.slots, slots.seconds) == (2, 30.0)
    assert slots.utilisation == pytest.approx(50 / 60)


def test_a_slot_that_ran_another_trial_in_a_short_pause_is_one_slot(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trials = [
        with_epoch_times(make_trial(0), 110.0, 121.0, seconds=10.0),
        with_epoch_times(make_trial(1), 111.0, seconds=1.0),
    ]
    slots = timeline(make_result(*trials))
    assert [(s.number, s.slot, s.epochs) for s in slots.stretches] == [
        (0, 0, (1, 1)),
        (1, 0, (1, 1)),
        (0, 0, (2, 2)),
    ]
    assert (slots.slots, slots.utilisation) == (1, 1.0)


def test_a_trial_keeps_its_slot_if_another_one_begins_between_two_of_its_epochs(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trials = [
        with_epoch_times(make_trial(0), 111.0, 121.0, seconds=10.0),
        with_epoch_times(make_trial(1), 110.0, 120.5, seconds=10.0),
    ]
    slots = timeline(make_result(*trials))
    assert [(s.number, s.slot, s.epochs) for s in slots.stretches] == [(1, 0, (1, 2)), (0, 1, (1, 2))]


def test_pauses_split_stretches_and_time_without_a_driver_is_excluded(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    paused = with_epoch_times(make_trial(0), 10.0, 20.0, 50.0, 10_000.0, seconds=10.0)
    slots = timeline(make_result(paused))
    assert [(s.start, s.end, s.epochs) for s in slots.stretches] == [
        (0.0, 20.0, (1, 2)),
        (40.0, 50.0, (3, 3)),
        (9990.0, 10_000.0, (4, 4)),
    ]
    # The pause of twenty seconds counts; in the hours after that no driver ran.
    assert slots.seconds == 60.0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.5, 30)), max_size=30))
def test_no_two_stretches_share_a_slot_at_once(spans: list[tuple[float, float]]) -> None:
    trials = tuple(
        TrialRecord(
            number=number,
            state=TrialState.FINISHED,
            parameters={},
            metric="val_accuracy",
            maximize=True,
            values=(0.5,),
            history={"epoch_seconds": (length,)},
            times_ms=(round((begin + length) * 1000),),
        )
        for number, (begin, length) in enumerate(spans)
    )
    result = dataclasses.replace(_empty(), trials=trials)
    slots = timeline(result)
    assert len(slots.stretches) == len(spans)
    assert 0 <= slots.utilisation <= 1
    for a, b in itertools.combinations(slots.stretches, 2):
        if a.slot == b.slot:
            assert min(a.end, b.end) - max(a.start, b.start) <= 2e-3


@functools.cache
def _empty() -> StudyResult:
    return SimulatedSearch(load_space("digits")).result(Path("runs/digits"))


@pytest.mark.parametrize("seconds", [0.3, 30.0])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_slots_and_utilisation_match_the_simulation(workers: int, seconds: float) -> None:
    # A slot may run short epochs of other trials while one pauses.
    space = load_space("att92", ["initial=[]", "budget.trials=20", "fidelity.max=9", "sampler.type=random"])
    landscape = LANDSCAPES["monotone"]
    simulation = Simulation(
        lambda t: dataclasses.replace(landscape.curve(t.number, t.parameters), epoch_seconds=seconds),
        workers=workers,
    )
    searched = SimulatedSearch(space, clock=simulation.clock)
    simulation.drive(searched.policy())
    slots = timeline(searched.result(Path("runs/s")))
    assert slots.slots == workers
    assert slots.seconds == pytest.approx(simulation.trace.seconds, rel=1e-3)
    assert slots.utilisation == pytest.approx(simulation.trace.utilisation, rel=1e-3)


def test_failures_are_grouped_by_the_last_line_of_their_error(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trials = [
        make_trial(0, TrialState.FAILED, (), error="Traceback ...\n  line 1\nValueError: bad\n"),
        make_trial(1, TrialState.FAILED, (), error="Traceback ...\n  line 2\nValueError: bad"),
        make_trial(2, TrialState.DIVERGED, (math.nan,)),
        make_trial(3, TrialState.FAILED, ()),
        make_trial(4),
    ]
    assert [(f.cause, f.numbers) for f in failures(make_result(*trials))] == [
        ("ValueError: bad", (0, 1)),
        ("val_accuracy was not finite", (2,)),
        ("no reason was recorded", (3,)),
    ]


def test_the_last_incumbent_is_the_best_trial(simulated: StudyResult) -> None:
    leaders = incumbents(simulated)
    assert simulated.best is not None
    assert (leaders[-1].number, leaders[-1].value) == (simulated.best.number, simulated.best.value)
    assert [leader.hours for leader in leaders] == sorted(leader.hours for leader in leaders)
    assert leaders[-1].hours <= savings(simulated).hours + 1e-9


def test_unknown_costs_are_excluded_and_the_best_trial_is_on_every_front(simulated: StudyResult) -> None:
    fronts = cost_fronts(simulated)
    assert [front.title for front in fronts] == ["GMACs an image", "million parameters", "GPU-hours"]
    assert simulated.best is not None
    for front in fronts:
        assert simulated.best.number in {trial.number for trial, _ in front.front}
        assert {trial.epochs for trial, _ in front.front} == {simulated.best.epochs}


def test_trials_are_compared_at_the_last_rung_that_enough_reached(simulated: StudyResult) -> None:
    epoch = shared_epoch(simulated)
    assert epoch in (1, 3)
    assert len(values_at(simulated, epoch)) >= 30
    later = [rung for rung in simulated.rungs if rung > epoch]
    assert all(len(values_at(simulated, rung)) < 30 for rung in later)
    assert all(map(math.isfinite, values_at(simulated, 1).values()))


def test_few_trials_are_compared_where_most_reached(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [make_trial(0), make_trial(1, TrialState.STOPPED, (0.5,)), make_trial(2, values=(0.1, math.nan))]
    assert shared_epoch(make_result(*trials)) == 1
    assert shared_epoch(make_result(trials[0])) == 2


@given(st.dictionaries(st.integers(0, 99), st.floats(0, 1)), st.booleans())
def test_rank_classes_contain_every_trial_once_best_first(values: dict[int, float], maximize: bool) -> None:
    classes = rank_classes(values, maximize=maximize)
    order = [number for rank_class in classes for number in rank_class.numbers]
    assert sorted(order) == sorted(values)
    assert [values[n] for n in order] == sorted(values.values(), reverse=maximize)


def test_parameter_axes_place_every_trial_within_the_axis(simulated: StudyResult) -> None:
    axes = {axis.name: axis for axis in parameter_axes(simulated)}
    assert list(axes) == list(simulated.space.parameters)
    for axis in axes.values():
        assert set(axis.positions) == {trial.number for trial in simulated.trials}
        assert all(position == ABSENT or 0 <= position <= 1 for position in axis.positions.values())
    assert [text for _, text in axes["depth"].ticks] == ["56", "92", "128"]
    assert axes["learning_rate"].log
    shallow = [trial.number for trial in simulated.trials if trial.parameters["depth"] == 56]
    assert {axes["drop_path"].positions[number] for number in shallow} == {ABSENT}


def test_a_parameter_with_one_value_has_no_axis(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [make_trial(n, parameters={"depth": 56, "learning_rate": 0.05 + n / 10}) for n in range(2)]
    assert [axis.name for axis in parameter_axes(make_result(*trials))] == ["learning_rate"]


@pytest.mark.parametrize(
    ("low", "high", "log", "labels"),
    [
        (0.0, 1.5e-6, False, ["0", "5e-07", "1e-06", "1.5e-06"]),
        (1e-7, 1e-4, True, ["1e-07", "1e-06", "1e-05", "0.0001"]),
        (0.0125, 0.1, True, ["0.0125", "0.025", "0.05", "0.1"]),
    ],
)
def test_the_labels_of_an_axis_are_the_values_there(
    low: float, high: float, log: bool, labels: list[str], make_result: MakeResult, make_trial: MakeTrial
) -> None:
    parameter = FloatParameter(type="float", low=low, high=high, log=log)
    space = load_space("digits").model_copy(update={"parameters": {"weight_decay": parameter}})
    trials = [make_trial(n, parameters={"weight_decay": value}) for n, value in enumerate((low, high))]
    (axis,) = parameter_axes(make_result(*trials, space=space))
    assert [text for _, text in axis.ticks] == labels


def test_long_choices_have_different_labels(make_result: MakeResult, make_trial: MakeTrial) -> None:
    paths = ("/data/weights/run-1.pt", "/data/weights/run-2.pt", "/data/weights/run-3.pt")
    trials = [make_trial(n, parameters={"init_from": path}) for n, path in enumerate(paths)]
    (axis,) = parameter_axes(make_result(*trials))
    assert [text for _, text in axis.ticks] == ["/data/wei…1.pt", "/data/wei…2.pt", "/data/wei…3.pt"]


def test_equal_numbers_are_one_choice(make_result: MakeResult, make_trial: MakeTrial) -> None:
    """Trial 0 ran with the default width, 1.0, before a resume searched widths of 0.5 and 1."""
    space = load_space("att92", ["parameters.width={type: categorical, choices: [0.5, 1]}"])
    origin = TrialOrigin(config=TrialConfig().to_dict(), space=1, seed=0)
    trials = [
        dataclasses.replace(make_trial(0, parameters={}), origin=origin),
        *(make_trial(n, parameters={"width": width}) for n, width in ((1, 0.5), (2, 1))),
    ]
    (axis,) = parameter_axes(make_result(*trials, space=space))
    assert axis.ticks == ((0.0, "0.5"), (1.0, "1"))
    assert axis.positions == {0: 1.0, 1: 0.0, 2: 1.0}


def test_a_switch_that_was_removed_from_the_space_is_no_number(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trials = [make_trial(n, parameters={"nesterov": bool(n)}) for n in range(2)]
    (axis,) = parameter_axes(make_result(*trials))
    assert axis.ticks == ((0.0, "False"), (1.0, "True"))


def test_the_best_command_reproduces_the_best_trial(simulated: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "space.yaml").write_text(dump_space(simulated.space))
    text = best_command(dataclasses.replace(simulated, folder=tmp_path / "a b"))
    assert text is not None
    words = shlex.split(text)
    assert words[:3] == ["python", "-m", "tune_rescon.search"]
    read = search.make_context("search", words[3:]).params
    space = load_space(read["space_name"], [f"budget.trials={read['trials']}", *read["settings"]])
    assert simulated.best is not None
    assert (space.initial, space.budget.trials) == ((dict(simulated.best.parameters),), 1)


def test_without_a_best_trial_there_is_no_command(make_result: MakeResult) -> None:
    assert best_command(make_result()) is None


@pytest.mark.parametrize(("at", "ends"), [("best", (0, 0.75)), ("last", (1, 0.625))])
def test_the_last_incumbent_is_the_best_trial_for_each_metric_at(
    make_result: MakeResult, make_trial: MakeTrial, at: MetricAt, ends: tuple[int, float]
) -> None:
    trials = [
        dataclasses.replace(make_trial(n, values=values), at=at, times_ms=times)
        for n, values, times in ((0, (0.75, 0.5), (1, 3)), (1, (0.25, 0.625), (2, 4)))
    ]
    result = make_result(*trials)
    last = incumbents(result)[-1]
    assert (last.number, last.value) == ends
    assert result.best is not None
    assert (result.best.number, result.best.value) == ends


def test_a_trial_that_failed_later_leads_no_search_and_no_front(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """An interrupted search: nothing has finished, and the trial that came furthest has diverged."""
    trials = [
        with_epoch_times(
            make_trial(0, TrialState.DIVERGED, (0.5, 0.7, math.nan)), 10.0, 20.0, 30.0, seconds=10.0
        ),
        with_epoch_times(make_trial(1, TrialState.INTERRUPTED, (0.25, 0.375)), 40.0, 50.0, seconds=10.0),
        with_epoch_times(make_trial(2, TrialState.FAILED, (0.5, 0.75)), 60.0, 70.0, seconds=10.0),
    ]
    result = make_result(*trials, against="gmacs", state=SearchState.INTERRUPTED)
    assert result.best is not None
    assert (result.best.number, result.best.value) == (1, 0.375)
    assert [(change.number, change.value) for change in incumbents(result)] == [(1, 0.25), (1, 0.375)]
    # All epochs count: the winner's first one was the fourth, each of 10 s on two cores.
    assert incumbents(result)[0].hours == pytest.approx(4 * 20 / 3600)
    assert [trial.number for trial in result.front] == [1]
    assert all([trial.number for trial, _ in front.front] == [1] for front in cost_fronts(result))


def test_a_trial_without_times_has_no_stretch(make_result: MakeResult, make_trial: MakeTrial) -> None:
    old = dataclasses.replace(make_trial(0), times_ms=(), history={}, started=datetime(2026, 1, 1))
    assert timeline(make_result(old)).stretches == ()
    assert incumbents(make_result(old)) == ()


def test_the_best_command_for_a_changed_space_hides_passwords(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """The space does not contain the trial, so that the command sets every field."""
    config = TrialConfig(init_from="https://ann:s3cret@host/w.ckpt").to_dict()
    origin = TrialOrigin(config=config, space=1, seed=0)
    command = best_command(make_result(dataclasses.replace(make_trial(0), origin=origin)))
    assert command is not None
    assert '"init_from": "https://ann:***@host/w.ckpt"' in command
