"""A sample depends on the space, the trial's number and the results, not on interruptions."""

from __future__ import annotations

import dataclasses
import math
import time
from datetime import datetime
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import SearchSampler, TrialRecord, optuna_samplers, sampler
from tune_rescon.tuning.trial import Enqueued, Proposal

NUMBERS = (
    "parameters={learning_rate: {type: float, low: 0.01, high: 1.0, log: true},"
    " weight_decay: {type: float, low: 0.0, high: 0.1}}"
)
#: 3:00 of summer time, when clocks in Berlin are set back to 2:00, in seconds since 1970.
SUMMER_TIME_ENDS = 1792890000.0
KINDS = ("tpe", "random", "gp", "cmaes", "nsga2")


def make_space(kind: str, *more: str) -> Space:
    return load_space(
        "digits", [f"sampler.type={kind}", "sampler.n_startup_trials=4", "initial=[]", NUMBERS, *more]
    )


def running_trial(number: int, proposal: Proposal, metric: str = "val_accuracy") -> TrialRecord:
    return TrialRecord(
        number=number,
        state=TrialState.RUNNING,
        parameters=dict(proposal.params),
        metric=metric,
        maximize=True,
        values=(),
        sampler_state=proposal.sampler_state,
    )


def ended_trial(trial: TrialRecord, *, against: bool = False) -> TrialRecord:
    """Return the ended trial; its state and values are a function of its number and parameters."""
    value = 1 - abs(math.log10(trial.parameters["learning_rate"] / 0.1)) / 2
    states_and_values = (TrialState.FINISHED, TrialState.STOPPED, TrialState.STOPPED, TrialState.DIVERGED)
    state = states_and_values[trial.number % 4]
    values = {TrialState.FINISHED: (0.1, 0.2, value), TrialState.DIVERGED: (math.nan,)}
    cost = trial.parameters["weight_decay"] if against else None
    return dataclasses.replace(trial, state=state, values=values.get(state, (value,)), cost=cost)


def ask(search: SearchSampler, *infeasible: Any) -> Proposal:
    proposal = search.ask(*infeasible)
    assert proposal is not None
    return proposal


def run(space: Space, known: list[TrialRecord], count: int, **options: Any) -> list[TrialRecord]:
    """Run ``count`` trials in sequence after the existing trials ``known``."""
    search = SearchSampler(space, existing_trials=known, **options)
    trials = list(known)
    for number in range(len(known), len(known) + count):
        trial = running_trial(number, ask(search))
        search.on_trial_start(trial)
        trials.append(ended_trial(trial, against=space.metric.against is not None))
        search.on_trial_end(trials[-1])
    return trials


AGAINST = ("metric.against=gmacs",)


@pytest.mark.torch  # Optuna's Gaussian process uses torch
@pytest.mark.parametrize(
    ("kind", "against"),
    [*((kind, ()) for kind in KINDS), *((kind, AGAINST) for kind in KINDS if kind != "cmaes")],
)
def test_a_resumed_search_draws_as_an_uninterrupted_one(kind: str, against: tuple[str, ...]) -> None:
    space = make_space(kind, *against)
    # A proposal of the Gaussian process takes a quarter of a second. It makes those after the fourth.
    total = 9 if kind == "gp" else 14
    uninterrupted = run(space, [], total)
    for count_before in (1, 5, total - 2):
        assert run(space, uninterrupted[:count_before], total - count_before) == uninterrupted


def test_a_bounded_view_is_renewed_at_the_same_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VIEW_BEST", 3), ("VIEW_LATEST", 5), ("CHOOSE_EVERY", 6)):
        monkeypatch.setattr(sampler, name, value)
    space = make_space("tpe")
    uninterrupted = run(space, [], 26)
    for count_before in (5, 6, 7, 18, 23):
        assert run(space, run(space, [], count_before), 26 - count_before) == uninterrupted


def test_a_later_rise_in_rank_does_not_change_a_bounded_view(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VIEW_BEST", 2), ("VIEW_LATEST", 2), ("CHOOSE_EVERY", 6), ("ATTEMPTS", 1)):
        monkeypatch.setattr(sampler, name, value)
    space = make_space("tpe")
    before = run(space, [], 13)  # The last choice was made before trial 12, by the ranks at that time.
    assert len(before[12].sampler_state[sampler._KEPT]) == 4
    dropped = next(t for t in before[:12] if t.number not in before[12].sampler_state[sampler._KEPT])
    promoted = dataclasses.replace(dropped, state=TrialState.FINISHED, values=(0.1, 0.2, 2.0))
    search = SearchSampler(space, existing_trials=before)
    search.on_epoch(promoted)
    uninterrupted = ask(search).params
    resumed = SearchSampler(
        space, existing_trials=[promoted if t.number == promoted.number else t for t in before]
    )
    assert ask(resumed).params == uninterrupted


def test_a_bounded_view_keeps_the_best_the_latest_and_running_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VIEW_BEST", 2), ("VIEW_LATEST", 3)):
        monkeypatch.setattr(sampler, name, value)
    trials = run(make_space("random"), [], 12)
    trials[0] = dataclasses.replace(trials[0], state=TrialState.RUNNING)
    best = sorted(trials[1:], key=TrialRecord.rank_key)[:2]
    kept = sampler.most_informative(trials)
    assert {0, *(trial.number for trial in best), 11} <= kept
    assert len(kept) == 6


def test_a_paused_trial_may_be_dropped_from_a_bounded_view(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VIEW_BEST", 1), ("VIEW_LATEST", 1)):
        monkeypatch.setattr(sampler, name, value)
    states = [TrialState.PAUSED, TrialState.RUNNING, TrialState.INTERRUPTED, *[TrialState.STOPPED] * 3]
    values = (0.2, 0.1, 0.1, 0.9, 0.3, 0.4)
    trials = [
        dataclasses.replace(trial, state=state, values=(value,))
        for trial, state, value in zip(run(make_space("random"), [], 6), states, values, strict=True)
    ]
    assert sampler.most_informative(trials) == {1, 2, 3, 5}


@pytest.mark.parametrize(("kind", "recorded"), [("tpe", {6, 12}), ("random", set())])
def test_the_kept_trials_are_recorded_only_for_a_bounded_view(
    kind: str, recorded: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "CHOOSE_EVERY", 6)
    assert {trial.number for trial in run(make_space(kind), [], 14) if trial.sampler_state} == recorded


@pytest.mark.parametrize("taken", ["enqueued", "foreign", "unbounded"])
def test_a_bounded_view_keeps_earlier_trials_where_the_number_of_the_choice_is_taken(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is due before trial 6: an enqueued trial, another program's, or one of another sampler."""
    for name, value in (("VIEW_BEST", 3), ("VIEW_LATEST", 2), ("CHOOSE_EVERY", 6)):
        monkeypatch.setattr(sampler, name, value)
    space = make_space("tpe")
    trials = run(
        make_space("random") if taken == "unbounded" else space, [], 8 if taken == "unbounded" else 6
    )
    search = SearchSampler(space, existing_trials=trials)
    for count in range(4):
        number = len(trials) + (taken == "foreign")
        is_enqueued = taken == "enqueued" and count == 0
        proposal = search.ask(
            enqueued=Enqueued(number=number, params={"weight_decay": 0.0625}) if is_enqueued else None
        )
        assert proposal is not None
        trial = running_trial(number, proposal)
        search.on_trial_start(trial)
        trials.append(ended_trial(trial))
        search.on_trial_end(trials[-1])
    chooser = next(trial.number for trial in trials if sampler._KEPT in trial.sampler_state)
    assert chooser == {"enqueued": 7, "foreign": 7, "unbounded": 8}[taken]
    resumed = SearchSampler(space, existing_trials=trials)
    assert len(resumed.view_trials) >= 5 + 2
    assert ask(resumed).params == ask(search).params


class RecordingRandomSampler(optuna.samplers.RandomSampler):
    """A sampler that records the trials of the study at its last call."""

    def __init__(self, view: list[FrozenTrial], seed: int) -> None:
        super().__init__(seed=seed)
        self._view = view

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._view[:] = [other for other in study.get_trials() if other.number != trial.number]


@pytest.fixture
def sampler_view(monkeypatch: pytest.MonkeyPatch) -> list[FrozenTrial]:
    """The trials that the Optuna sampler of a new SearchSampler got at its last call."""
    view: list[FrozenTrial] = []
    monkeypatch.setattr(
        optuna_samplers,
        "make_sampler",
        lambda _, number, *, attempt=0: RecordingRandomSampler(view, 100 * number + attempt),
    )
    return view


def test_tpe_gets_a_running_trial_once_it_has_reached_the_compared_rung(
    sampler_view: list[FrozenTrial],
) -> None:
    """All trials are compared at a higher rung once enough of them have passed it."""
    space = make_space("tpe")
    search = SearchSampler(space)

    def view() -> list[tuple[str, float | None]]:
        search.ask()
        return [(t.state.name, t.value if t.state.name == "COMPLETE" else None) for t in sampler_view]

    trials = [running_trial(number, ask(search)) for number in range(4)]
    for trial in trials:
        search.on_trial_start(trial)
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number,)))
    assert view() == [("COMPLETE", 0.1 * number) for number in range(4)]
    for trial in trials[:3]:
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number, 0.5, 0.6)))
    search.on_trial_end(dataclasses.replace(trials[3], state=TrialState.STOPPED, values=(0.3, 0.4, 0.7)))
    assert view() == [*[("COMPLETE", 0.6)] * 3, ("COMPLETE", 0.7)]


def test_tpe_gets_a_divergence_after_the_trial_was_complete(sampler_view: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe"))
    trial = running_trial(0, ask(search))
    search.on_trial_start(trial)
    search.on_epoch(dataclasses.replace(trial, values=(0.9,)))
    search.on_trial_end(dataclasses.replace(trial, state=TrialState.DIVERGED, values=(0.9, math.nan)))
    search.ask()
    diverged_trial = sampler_view[0]
    assert (diverged_trial.state.name, diverged_trial.intermediate_values) == ("PRUNED", {})


def run_trials(search: SearchSampler, *outcomes: tuple[TrialState, tuple[float, ...]]) -> list[TrialRecord]:
    """Ask for trials one after the other and report these outcomes."""
    trials: list[TrialRecord] = []
    for state, values in outcomes:
        trial = running_trial(len(trials), ask(search))
        search.on_trial_start(trial)
        trials.append(dataclasses.replace(trial, state=state, values=values))
        (search.on_trial_end if state.is_final else search.on_epoch)(trials[-1])
    return trials


def states_and_values_of(sampler_view: list[FrozenTrial]) -> list[tuple[str, list[float] | None]]:
    return [(trial.state.name, trial.values) for trial in sampler_view]


RUNNING, STOPPED, DIVERGED = TrialState.RUNNING, TrialState.STOPPED, TrialState.DIVERGED
PAUSED = TrialState.PAUSED


@pytest.mark.parametrize("kind", ["random", "gp", "cmaes", "nsga2"])
def test_other_samplers_get_a_trials_last_value(kind: str, sampler_view: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space(kind))
    run_trials(search, (RUNNING, (0.1, 0.2)), (STOPPED, (0.5, 0.7)))
    search.ask()
    assert states_and_values_of(sampler_view) == [("RUNNING", None), ("COMPLETE", [0.7])]


def test_with_two_objectives_tpe_gets_both_last_values(sampler_view: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe", *AGAINST))
    first, second = run_trials(search, (RUNNING, (0.1, 0.2)), (RUNNING, (0.5, 0.7)))
    search.on_trial_end(dataclasses.replace(second, state=STOPPED, cost=2.0))
    search.ask()
    assert states_and_values_of(sampler_view) == [("RUNNING", None), ("COMPLETE", [0.7, 2.0])]
    assert first.number == 0


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("metric_overrides", "worst"),
    [((), 0.3), (("metric.name=val_loss", "metric.mode=min"), 0.5)],
    ids=["max", "min"],
)
def test_a_diverged_trial_counts_as_the_worst_that_ended(
    metric_overrides: tuple[str, ...], worst: float, resumed: bool, sampler_view: list[FrozenTrial]
) -> None:
    space = make_space("random", *metric_overrides)
    search = SearchSampler(space)
    maximize = space.metric.mode == "max"
    outcomes = [(RUNNING, (0.1,)), (RUNNING, (0.9,)), (STOPPED, (0.4,)), (STOPPED, (0.3,)), (STOPPED, (0.5,))]
    trials: list[TrialRecord] = []
    for state, values in [*outcomes, (DIVERGED, (math.nan,))]:
        trial = dataclasses.replace(
            running_trial(len(trials), ask(search), space.metric.name), maximize=maximize
        )
        search.on_trial_start(trial)
        trials.append(dataclasses.replace(trial, state=state, values=values))
        (search.on_trial_end if state.is_final else search.on_epoch)(trials[-1])
    (SearchSampler(space, existing_trials=trials) if resumed else search).ask()
    assert states_and_values_of(sampler_view)[-1] == ("COMPLETE", [worst])


@pytest.mark.parametrize("resumed", [False, True])
def test_the_worst_value_of_a_diverged_trial_is_of_those_that_ended_before_it(
    resumed: bool, sampler_view: list[FrozenTrial]
) -> None:
    """Trials 0 and 1 pause. Trial 2 ends, then 1 diverges, then 0 ends with a value that is worse."""
    search = SearchSampler(make_space("random"))
    trials = run_trials(search, (PAUSED, (0.1,)), (PAUSED, (0.2,)), (RUNNING, (0.5,)))
    ends = [(2, STOPPED, (0.5,)), (1, DIVERGED, (0.2, math.nan)), (0, STOPPED, (0.1, 0.05))]
    for minute, (number, state, values) in enumerate(ends):
        ended_at = datetime(2026, 1, 1, 0, minute)
        trials[number] = dataclasses.replace(trials[number], state=state, values=values, ended=ended_at)
        search.on_trial_end(trials[number])
    (SearchSampler(make_space("random"), existing_trials=trials) if resumed else search).ask()
    assert states_and_values_of(sampler_view) == [
        ("COMPLETE", [0.05]),
        ("COMPLETE", [0.5]),
        ("COMPLETE", [0.5]),
    ]


def test_trials_that_ended_in_the_repeated_hour_of_the_end_of_summer_time_keep_their_order(
    sampler_view: list[FrozenTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 0 ends at 2:50 of summer time, trial 1 diverges at 2:10 of winter time, trial 2 ends at 2:20."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    search = SearchSampler(make_space("random"))
    trials = run_trials(search, *[(RUNNING, (0.5,))] * 3)
    ends = [(STOPPED, (0.5,)), (DIVERGED, (0.5, math.nan)), (STOPPED, (0.1,))]
    for number, (minutes, (state, values)) in enumerate(zip((-10, 10, 20), ends, strict=True)):
        ended_at = datetime.fromtimestamp(SUMMER_TIME_ENDS + 60 * minutes)
        trials[number] = dataclasses.replace(trials[number], state=state, values=values, ended=ended_at)
    SearchSampler(make_space("random"), existing_trials=trials).ask()
    monkeypatch.undo()
    time.tzset()
    assert states_and_values_of(sampler_view)[1] == ("COMPLETE", [0.5])


def test_a_non_finite_value_at_a_rung_does_not_count_as_reaching_it(
    sampler_view: list[FrozenTrial],
) -> None:
    search = SearchSampler(make_space("tpe"))
    trials = run_trials(search, *[(RUNNING, (0.1 * number,)) for number in range(4)])
    for trial in trials[:3]:
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number, 0.5, 0.6)))
    # Finite before and after the rung, but not at the rung.
    search.on_epoch(dataclasses.replace(trials[3], values=(0.1 * 3, 0.5, math.nan, 0.7)))
    search.ask()
    assert states_and_values_of(sampler_view) == [("COMPLETE", [0.1 * number]) for number in range(4)]


def test_all_trials_are_compared_at_a_rung_that_enough_reached(sampler_view: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe"))
    trials = run_trials(search, *[(RUNNING, (0.1 * number,)) for number in range(4)])
    for trial in trials[:3]:
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number, 0.5, 0.6)))
    search.on_trial_start(running_trial(4, ask(search)))
    search.on_epoch(dataclasses.replace(trials[3], values=(0.1 * 3, 0.4, 0.7)))
    search.on_trial_start(running_trial(5, ask(search)))
    assert states_and_values_of(sampler_view)[:4] == [*[("COMPLETE", [0.6])] * 3, ("COMPLETE", [0.7])]
    # Ranked last, with its value at that rung.
    search.on_trial_end(dataclasses.replace(running_trial(4, ask(search)), state=STOPPED, values=(0.9,)))
    search.ask()
    assert (sampler_view[4].state.name, sampler_view[4].intermediate_values) == ("PRUNED", {1: 0.9})


def test_a_resumed_search_compares_trials_at_the_same_rung(sampler_view: list[FrozenTrial]) -> None:
    known = run_trials(SearchSampler(make_space("tpe")), *[(RUNNING, (0.1, 0.2, 0.6))] * 4)
    SearchSampler(make_space("tpe"), existing_trials=known).ask()
    assert states_and_values_of(sampler_view) == [("COMPLETE", [0.6])] * 4


def test_the_sampler_gets_all_trials_before_it_completes_an_enqueued_one(
    sampler_view: list[FrozenTrial],
) -> None:
    search = SearchSampler(make_space("tpe"))
    (trial,) = run_trials(search, (RUNNING, (0.9,)))
    search.on_trial_end(dataclasses.replace(trial, state=DIVERGED, values=(0.9, math.nan)))
    proposal = search.ask(enqueued=Enqueued(number=7, params={"weight_decay": 0.0625}))
    assert proposal is not None
    assert proposal.params["weight_decay"] == 0.0625
    assert sampler_view[0].state.name == "PRUNED"


def test_rejected_draws_are_failed_trials_for_the_sampler(sampler_view: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe"))
    feasible = iter((True, True, True, False))
    ask(search, lambda _: next(feasible))
    search.ask()
    assert [trial.state.name for trial in sampler_view] == ["FAIL", "FAIL", "FAIL", "RUNNING"]


def test_warm_start_trials_and_own_trials_are_kept_apart(sampler_view: list[FrozenTrial]) -> None:
    (earlier,) = run_trials(SearchSampler(make_space("random")), (STOPPED, (0.9,)))
    search = SearchSampler(make_space("random"), warm_start_trials=[earlier])
    run_trials(search, (STOPPED, (0.9,)))
    search.ask()
    assert states_and_values_of(sampler_view) == [("COMPLETE", [0.9])] * 2


@pytest.mark.parametrize(("kind", "size"), [("tpe", 4 + 1), ("random", 13)])
def test_a_bounded_view_has_the_kept_and_the_later_trials(
    kind: str, size: int, sampler_view: list[FrozenTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("VIEW_BEST", 2), ("VIEW_LATEST", 2), ("CHOOSE_EVERY", 6)):
        monkeypatch.setattr(sampler, name, value)
    known = run(make_space(kind), [], 13)
    SearchSampler(make_space(kind), existing_trials=known).ask()
    assert len(sampler_view) == size


@pytest.mark.parametrize(("kind", "recorded"), [("tpe", set()), ("nsga2", {"NSGAIISampler:generation"})])
def test_sampler_state_is_recorded_only_for_samplers_that_need_it(kind: str, recorded: set[str]) -> None:
    rows = [{"learning_rate": 0.5, "weight_decay": 0.05}]
    trials = run(make_space(kind), [], 8, initial_points=rows)
    assert {key for trial in trials for key in trial.sampler_state} == recorded


def test_initial_points_come_first() -> None:
    rows = [{"learning_rate": 0.5, "weight_decay": 0.05}, {"learning_rate": 0.25, "weight_decay": 0.0}]
    samples = run(make_space("tpe"), [], 4, initial_points=rows)
    assert [dict(trial.parameters) for trial in samples[:2]] == rows
    assert run(make_space("tpe"), samples[:1], 3, initial_points=rows) == samples


def test_an_infeasible_point_is_drawn_again() -> None:
    first_draw = ask(SearchSampler(make_space("random"))).params["learning_rate"]
    proposal = ask(
        SearchSampler(make_space("random")), lambda parameters: parameters["learning_rate"] == first_draw
    )
    assert proposal.params["learning_rate"] != first_draw


def test_the_sampler_gets_warm_start_trials() -> None:
    """Few good trials close together and many bad ones far away: TPE samples near the good ones."""
    good_points = [{"learning_rate": 0.5 + i / 1000, "weight_decay": 0.09} for i in range(6)]
    bad_points = [{"learning_rate": 0.01 + i / 1000, "weight_decay": 0.01} for i in range(24)]
    background = [
        TrialRecord(
            number=number,
            state=TrialState.FINISHED,
            parameters=parameters,
            metric="val_accuracy",
            maximize=True,
            values=(0.9 if parameters in good_points else 0.1,),
        )
        for number, parameters in enumerate([*good_points, *bad_points])
    ]
    warm_started = run(make_space("tpe"), [], 10, warm_start_trials=background)
    rates = [trial.parameters["learning_rate"] for trial in warm_started]
    assert sum(rate > 0.2 for rate in rates) >= 7


def test_trials_outside_a_changed_space_keep_their_numbers() -> None:
    before = run(make_space("tpe"), [], 6)
    after = make_space("tpe", "parameters.learning_rate.high=0.02")
    assert run(after, before, 2)[-1].number == 7
