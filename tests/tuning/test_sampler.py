"""A draw depends on the space, the trial's number and the results, not on what died in between."""

from __future__ import annotations

import dataclasses
import math
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
KINDS = ("tpe", "random", "gp", "cmaes", "nsga2")


def make_space(kind: str, *more: str) -> Space:
    return load_space(
        "digits", [f"sampler.type={kind}", "sampler.n_startup_trials=4", "initial=[]", NUMBERS, *more]
    )


def opened(number: int, proposal: Proposal, metric: str = "val_accuracy") -> TrialRecord:
    return TrialRecord(
        number=number,
        state=TrialState.RUNNING,
        parameters=dict(proposal.params),
        metric=metric,
        maximize=True,
        values=(),
        sampler_state=proposal.sampler_state,
    )


def ended(trial: TrialRecord, *, against: bool = False) -> TrialRecord:
    """Its fate is a function of its number and parameters: some finish, some stop, some diverge."""
    value = 1 - abs(math.log10(trial.parameters["learning_rate"] / 0.1)) / 2
    fates = (TrialState.FINISHED, TrialState.STOPPED, TrialState.STOPPED, TrialState.DIVERGED)
    state = fates[trial.number % 4]
    values = {TrialState.FINISHED: (0.1, 0.2, value), TrialState.DIVERGED: (math.nan,)}
    cost = trial.parameters["weight_decay"] if against else None
    return dataclasses.replace(trial, state=state, values=values.get(state, (value,)), cost=cost)


def proposed(search: SearchSampler, *infeasible: Any) -> Proposal:
    proposal = search.ask(*infeasible)
    assert proposal is not None
    return proposal


def run(space: Space, known: list[TrialRecord], count: int, **options: Any) -> list[TrialRecord]:
    """``count`` trials, one at a time, on from ``known``."""
    search = SearchSampler(space, existing_trials=known, **options)
    trials = list(known)
    for number in range(len(known), len(known) + count):
        trial = opened(number, proposed(search))
        search.on_trial_start(trial)
        trials.append(ended(trial, against=space.metric.against is not None))
        search.on_trial_end(trials[-1])
    return trials


AGAINST = ("metric.against=gmacs",)


@pytest.mark.torch  # Optuna's Gaussian process is torch's
@pytest.mark.parametrize(
    ("kind", "against"),
    [*((kind, ()) for kind in KINDS), *((kind, AGAINST) for kind in KINDS if kind != "cmaes")],
)
def test_a_resumed_search_draws_as_an_uninterrupted_one(kind: str, against: tuple[str, ...]) -> None:
    space = make_space(kind, *against)
    whole = run(space, [], 14)
    for cut in (1, 5, 9):
        assert run(space, whole[:cut], 14 - cut) == whole


def test_a_bounded_view_is_renewed_at_the_same_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VIEW_BEST", 3), ("VIEW_LATEST", 5), ("RENEW_EVERY", 6)):
        monkeypatch.setattr(sampler, name, value)
    space = make_space("tpe")
    whole = run(space, [], 26)
    for cut in (5, 6, 7, 18, 23):
        assert run(space, run(space, [], cut), 26 - cut) == whole


def test_a_later_rise_in_rank_does_not_change_a_bounded_view(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("VIEW_BEST", 2), ("VIEW_LATEST", 2), ("RENEW_EVERY", 6), ("ATTEMPTS", 1)):
        monkeypatch.setattr(sampler, name, value)
    space = make_space("tpe")
    before = run(space, [], 13)  # The last choice was made before trial 12, by the ranks of then.
    assert len(before[12].sampler_state[sampler._KEPT]) == 4
    dropped = next(t for t in before[:12] if t.number not in before[12].sampler_state[sampler._KEPT])
    promoted = dataclasses.replace(dropped, state=TrialState.FINISHED, values=(0.1, 0.2, 2.0))
    search = SearchSampler(space, existing_trials=before)
    search.on_epoch(promoted)
    uninterrupted = proposed(search).params
    resumed = SearchSampler(
        space, existing_trials=[promoted if t.number == promoted.number else t for t in before]
    )
    assert proposed(resumed).params == uninterrupted


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


@pytest.mark.parametrize(("kind", "noted"), [("tpe", {6, 12}), ("random", set())])
def test_the_kept_trials_are_recorded_only_for_a_bounded_view(
    kind: str, noted: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "RENEW_EVERY", 6)
    assert {trial.number for trial in run(make_space(kind), [], 14) if trial.sampler_state} == noted


class Watching(optuna.samplers.RandomSampler):
    """A sampler that keeps what it was shown of the study when it was asked last."""

    def __init__(self, seen: list[FrozenTrial], seed: int) -> None:
        super().__init__(seed=seed)
        self._seen = seen

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._seen[:] = [one for one in study.get_trials() if one.number != trial.number]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[FrozenTrial]:
    """What the Optuna sampler of a sampler that is made now was shown when it was asked last."""
    seen: list[FrozenTrial] = []
    monkeypatch.setattr(
        optuna_samplers,
        "make_sampler",
        lambda _, number, *, attempt=0: Watching(seen, 100 * number + attempt),
    )
    return seen


def test_tpe_gets_a_running_trial_once_it_has_reached_the_compared_rung(
    shown: list[FrozenTrial],
) -> None:
    """And of all trials as of a higher rung once enough of them have passed it."""
    space = make_space("tpe")
    search = SearchSampler(space)

    def view() -> list[tuple[str, float | None]]:
        search.ask()
        return [(t.state.name, t.value if t.state.name == "COMPLETE" else None) for t in shown]

    trials = [opened(number, proposed(search)) for number in range(4)]
    for trial in trials:
        search.on_trial_start(trial)
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number,)))
    assert view() == [("COMPLETE", 0.1 * number) for number in range(4)]
    for trial in trials[:3]:
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number, 0.5, 0.6)))
    search.on_trial_end(dataclasses.replace(trials[3], state=TrialState.STOPPED, values=(0.3, 0.4, 0.7)))
    assert view() == [*[("COMPLETE", 0.6)] * 3, ("COMPLETE", 0.7)]


def test_tpe_gets_a_divergence_after_the_trial_was_complete(shown: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe"))
    trial = opened(0, proposed(search))
    search.on_trial_start(trial)
    search.on_epoch(dataclasses.replace(trial, values=(0.9,)))
    search.on_trial_end(dataclasses.replace(trial, state=TrialState.DIVERGED, values=(0.9, math.nan)))
    search.ask()
    told = shown[0]
    assert (told.state.name, told.intermediate_values) == ("PRUNED", {})


def fed(search: SearchSampler, *fates: tuple[TrialState, tuple[float, ...]]) -> list[TrialRecord]:
    """Trials that are drawn one after the other, and what becomes of them."""
    trials: list[TrialRecord] = []
    for state, values in fates:
        trial = opened(len(trials), proposed(search))
        search.on_trial_start(trial)
        trials.append(dataclasses.replace(trial, state=state, values=values))
        (search.on_trial_end if state.is_final else search.on_epoch)(trials[-1])
    return trials


def words(shown: list[FrozenTrial]) -> list[tuple[str, list[float] | None]]:
    return [(trial.state.name, trial.values) for trial in shown]


RUNNING, STOPPED, DIVERGED = TrialState.RUNNING, TrialState.STOPPED, TrialState.DIVERGED


@pytest.mark.parametrize("kind", ["random", "gp", "cmaes", "nsga2"])
def test_other_samplers_get_a_trials_last_value(kind: str, shown: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space(kind))
    fed(search, (RUNNING, (0.1, 0.2)), (STOPPED, (0.5, 0.7)))
    search.ask()
    assert words(shown) == [("RUNNING", None), ("COMPLETE", [0.7])]


def test_with_two_objectives_tpe_gets_both_last_values(shown: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe", *AGAINST))
    first, second = fed(search, (RUNNING, (0.1, 0.2)), (RUNNING, (0.5, 0.7)))
    search.on_trial_end(dataclasses.replace(second, state=STOPPED, cost=2.0))
    search.ask()
    assert words(shown) == [("RUNNING", None), ("COMPLETE", [0.7, 2.0])]
    assert first.number == 0


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("goal", "worst"), [((), 0.3), (("metric.name=val_loss", "metric.mode=min"), 0.5)], ids=["max", "min"]
)
def test_a_diverged_trial_counts_as_the_worst_that_ended(
    goal: tuple[str, ...], worst: float, resumed: bool, shown: list[FrozenTrial]
) -> None:
    space = make_space("random", *goal)
    search = SearchSampler(space)
    maximize = space.metric.mode == "max"
    fates = [(RUNNING, (0.1,)), (RUNNING, (0.9,)), (STOPPED, (0.4,)), (STOPPED, (0.3,)), (STOPPED, (0.5,))]
    trials: list[TrialRecord] = []
    for state, values in [*fates, (DIVERGED, (math.nan,))]:
        trial = dataclasses.replace(
            opened(len(trials), proposed(search), space.metric.name), maximize=maximize
        )
        search.on_trial_start(trial)
        trials.append(dataclasses.replace(trial, state=state, values=values))
        (search.on_trial_end if state.is_final else search.on_epoch)(trials[-1])
    (SearchSampler(space, existing_trials=trials) if resumed else search).ask()
    assert words(shown)[-1] == ("COMPLETE", [worst])


def test_a_non_finite_value_at_a_rung_does_not_count_as_reaching_it(
    shown: list[FrozenTrial],
) -> None:
    search = SearchSampler(make_space("tpe"))
    trials = fed(search, *[(RUNNING, (0.1 * number,)) for number in range(4)])
    for trial in trials[:3]:
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number, 0.5, 0.6)))
    # Finite before, and after: at the rung it is not.
    search.on_epoch(dataclasses.replace(trials[3], values=(0.1 * 3, 0.5, math.nan, 0.7)))
    search.ask()
    assert words(shown) == [("COMPLETE", [0.1 * number]) for number in range(4)]


def test_all_trials_are_compared_at_a_rung_that_enough_reached(shown: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe"))
    trials = fed(search, *[(RUNNING, (0.1 * number,)) for number in range(4)])
    for trial in trials[:3]:
        search.on_epoch(dataclasses.replace(trial, values=(0.1 * trial.number, 0.5, 0.6)))
    search.on_trial_start(opened(4, proposed(search)))
    search.on_epoch(dataclasses.replace(trials[3], values=(0.1 * 3, 0.4, 0.7)))
    search.on_trial_start(opened(5, proposed(search)))
    assert words(shown)[:4] == [*[("COMPLETE", [0.6])] * 3, ("COMPLETE", [0.7])]
    # Behind the rest, with the value it had there.
    search.on_trial_end(dataclasses.replace(opened(4, proposed(search)), state=STOPPED, values=(0.9,)))
    search.ask()
    assert (shown[4].state.name, shown[4].intermediate_values) == ("PRUNED", {1: 0.9})


def test_a_resumed_search_compares_trials_at_the_same_rung(shown: list[FrozenTrial]) -> None:
    known = fed(SearchSampler(make_space("tpe")), *[(RUNNING, (0.1, 0.2, 0.6))] * 4)
    SearchSampler(make_space("tpe"), existing_trials=known).ask()
    assert words(shown) == [("COMPLETE", [0.6])] * 4


def test_the_sampler_gets_all_trials_before_it_completes_an_enqueued_one(shown: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe"))
    (trial,) = fed(search, (RUNNING, (0.9,)))
    search.on_trial_end(dataclasses.replace(trial, state=DIVERGED, values=(0.9, math.nan)))
    proposal = search.ask(enqueued=Enqueued(number=7, params={"weight_decay": 0.0625}))
    assert proposal is not None
    assert proposal.params["weight_decay"] == 0.0625
    assert shown[0].state.name == "PRUNED"


def test_rejected_draws_are_failed_trials_for_the_sampler(shown: list[FrozenTrial]) -> None:
    search = SearchSampler(make_space("tpe"))
    answers = iter((True, True, True, False))
    proposed(search, lambda _: next(answers))
    search.ask()
    assert [trial.state.name for trial in shown] == ["FAIL", "FAIL", "FAIL", "RUNNING"]


def test_warm_start_trials_and_own_trials_are_kept_apart(shown: list[FrozenTrial]) -> None:
    (earlier,) = fed(SearchSampler(make_space("random")), (STOPPED, (0.9,)))
    search = SearchSampler(make_space("random"), warm_start_trials=[earlier])
    fed(search, (STOPPED, (0.9,)))
    search.ask()
    assert words(shown) == [("COMPLETE", [0.9])] * 2


@pytest.mark.parametrize(("kind", "size"), [("tpe", 4 + 1), ("random", 13)])
def test_a_bounded_view_has_the_kept_and_the_later_trials(
    kind: str, size: int, shown: list[FrozenTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("VIEW_BEST", 2), ("VIEW_LATEST", 2), ("RENEW_EVERY", 6)):
        monkeypatch.setattr(sampler, name, value)
    known = run(make_space(kind), [], 13)
    SearchSampler(make_space(kind), existing_trials=known).ask()
    assert len(shown) == size


@pytest.mark.parametrize(("kind", "noted"), [("tpe", set()), ("nsga2", {"NSGAIISampler:generation"})])
def test_sampler_state_is_recorded_only_for_samplers_that_need_it(kind: str, noted: set[str]) -> None:
    rows = [{"learning_rate": 0.5, "weight_decay": 0.05}]
    trials = run(make_space(kind), [], 8, initial_points=rows)
    assert {key for trial in trials for key in trial.sampler_state} == noted


def test_initial_points_come_first() -> None:
    rows = [{"learning_rate": 0.5, "weight_decay": 0.05}, {"learning_rate": 0.25, "weight_decay": 0.0}]
    drawn = run(make_space("tpe"), [], 4, initial_points=rows)
    assert [dict(trial.parameters) for trial in drawn[:2]] == rows
    assert run(make_space("tpe"), drawn[:1], 3, initial_points=rows) == drawn


def test_an_infeasible_point_is_drawn_again() -> None:
    search = SearchSampler(make_space("random"))
    free = [proposed(SearchSampler(make_space("random"))).params["learning_rate"] for _ in range(1)]
    proposal = proposed(search, lambda parameters: parameters["learning_rate"] == free[0])
    assert proposal.params["learning_rate"] != free[0]


def test_the_sampler_gets_warm_start_trials() -> None:
    """Two good trials close together and many bad ones far away: TPE goes where the good ones are."""
    good = [{"learning_rate": 0.5 + i / 1000, "weight_decay": 0.09} for i in range(6)]
    bad = [{"learning_rate": 0.01 + i / 1000, "weight_decay": 0.01} for i in range(24)]
    background = [
        TrialRecord(
            number=number,
            state=TrialState.FINISHED,
            parameters=parameters,
            metric="val_accuracy",
            maximize=True,
            values=(0.9 if parameters in good else 0.1,),
        )
        for number, parameters in enumerate([*good, *bad])
    ]
    warm = run(make_space("tpe"), [], 10, warm_start_trials=background)
    rates = [trial.parameters["learning_rate"] for trial in warm]
    assert sum(rate > 0.2 for rate in rates) >= 7


def test_trials_outside_a_changed_space_keep_their_numbers() -> None:
    before = run(make_space("tpe"), [], 6)
    after = make_space("tpe", "parameters.learning_rate.high=0.02")
    assert run(after, before, 2)[-1].number == 7
