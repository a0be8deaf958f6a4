"""Small spaces: which points have run, which are left, and which trials a changed space contains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, grid_points, load_space, to_optuna
from tune_rescon.tuning import SearchSampler, TrialRecord
from tune_rescon.tuning.space_versions import SpaceVersions
from tune_rescon.tuning.trial import Enqueued

SIX = (
    "parameters={depth: {type: categorical, choices: [56, 92]},"
    " width: {type: categorical, choices: [0.25, 0.5, 1.0]}}"
)
FIXED = "fixed={layout: cifar}"


def make_space(*more: str, kind: str = "random") -> Space:
    settings = [
        f"sampler.type={kind}",
        "sampler.n_startup_trials=4",
        "initial=[]",
        FIXED,
        SIX,
        "budget.trials=6",
    ]
    return load_space("digits", [*settings, *more])


def run(
    space: Space, count: int, known: tuple[TrialRecord, ...] = (), **options: Any
) -> tuple[TrialRecord, ...]:
    """Run up to ``count`` more trials in sequence; deep and wide networks are the best."""
    search, trials = SearchSampler(space, existing_trials=known, **options), list(known)
    for number in range(len(known), len(known) + count):
        proposal = search.ask()
        if proposal is None:
            break
        value = proposal.params.get("depth", 0) / 200 + proposal.params.get("width", 0) / 4
        trial = TrialRecord(
            number=number,
            state=TrialState.RUNNING,
            parameters=proposal.params,
            metric="val_accuracy",
            maximize=True,
            values=(),
            sampler_state=proposal.sampler_state,
            origin=proposal.origin,
        )
        search.on_trial_start(trial)
        trials.append(dataclasses.replace(trial, state=TrialState.FINISHED, values=(value,)))
        search.on_trial_end(trials[-1])
    return tuple(trials)


def points(trials: tuple[TrialRecord, ...]) -> list[tuple[Any, ...]]:
    return [tuple(trial.parameters.values()) for trial in trials]


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2"])
def test_each_point_runs_once_and_then_the_space_is_exhausted(kind: str) -> None:
    trials = run(make_space(kind=kind), 24)
    assert len(set(points(trials))) == len(trials) == 6


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2"])
def test_with_repeats_points_run_again_with_different_seeds(kind: str) -> None:
    trials = run(make_space("sampler.repeats=true", kind=kind), 24)
    assert len(trials) == 24
    assert len({trial.origin.seed for trial in trials if trial.origin}) == 24


def test_with_repeats_a_repeated_draw_is_accepted() -> None:
    assert len(set(points(run(make_space("sampler.repeats=true"), 6)))) < 6


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2", "grid"])
@pytest.mark.parametrize("count_before", [1, 4])
def test_a_resumed_search_draws_as_an_uninterrupted_one(kind: str, count_before: int) -> None:
    space = make_space(kind=kind)
    rows = rows_of(space) if kind == "grid" else []
    all_points = run(space, 24, initial_points=rows)
    assert len(all_points) == 6
    assert run(space, 24, all_points[:count_before], initial_points=rows) == all_points


def test_a_failed_point_does_not_run_again() -> None:
    space = make_space()
    failed = tuple(dataclasses.replace(trial, state=TrialState.FAILED) for trial in run(space, 6))
    assert run(space, 1, failed) == failed


def test_a_continuous_space_is_never_exhausted() -> None:
    space = make_space("parameters.drop_path={type: float, low: 0.0, high: 0.1}")
    assert len(set(points(run(space, 12)))) == 12


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2"])
def test_the_single_points_of_a_continuous_space_run_once(kind: str) -> None:
    """Four of the five optimisers are one point each; only sgd has a continuous parameter."""
    space = make_space(
        "parameters={optimizer: {type: categorical, choices: [sgd, adamw, lion, rmsprop, muon]},"
        " momentum: {type: float, low: 0.0, high: 0.9, when: {parameter: optimizer, in: [sgd]}}}",
        kind=kind,
    )
    trials = run(space, 30)
    assert len(set(points(trials))) == len(trials) == 30
    assert run(space, 15, trials[:15]) == trials


@pytest.mark.parametrize("kind", ["grid", "random"])
def test_a_row_that_was_enqueued_does_not_run_again(kind: str) -> None:
    space = make_space(kind=kind)
    rows = rows_of(make_space(kind="grid"))
    search = SearchSampler(space, initial_points=rows)
    drawn: list[dict[str, Any]] = []
    while proposal := search.ask(enqueued=None if drawn else Enqueued(number=0, params=rows[2])):
        drawn.append(dict(proposal.params))
        trial = TrialRecord(
            number=len(drawn) - 1,
            state=TrialState.RUNNING,
            parameters=proposal.params,
            metric="val_accuracy",
            maximize=True,
            values=(),
        )
        search.on_trial_start(trial)
    assert drawn == [rows[2], *rows[:2], *rows[3:]]


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2"])
def test_an_enqueued_trial_is_completed_to_a_point_that_has_not_run(kind: str) -> None:
    space = make_space(kind=kind)
    ran = run(space, 3)
    search, drawn = SearchSampler(space, existing_trials=ran), points(ran)
    for number in range(3, 6):
        # The point that is still free for one of the depths, whatever the sampler prefers.
        depth = 56 if sum(depth == 56 for depth, _ in drawn) < 3 else 92
        proposal = search.ask(enqueued=Enqueued(number=number, params={"depth": depth}))
        assert proposal is not None
        drawn.append(tuple(proposal.params.values()))
        search.on_trial_start(dataclasses.replace(ran[0], number=number, parameters=proposal.params))
    assert len(set(drawn)) == 6
    again = search.ask(enqueued=Enqueued(number=6, params={"depth": 56}))
    assert again is not None, "no point is left, and the trial was asked for"
    assert again.params["depth"] == 56


def test_an_enqueued_trial_is_completed_to_a_point_that_keeps_to_the_constraints() -> None:
    def violation(config: Mapping[str, Any]) -> str | None:
        return None if config["width"] == 0.25 else "too wide"

    search = SearchSampler(make_space(), violation=violation)
    for number in range(8):
        proposal = search.ask(enqueued=Enqueued(number=number, params={"depth": 56}))
        assert proposal is not None
        assert proposal.params == {"depth": 56, "width": 0.25}


CONDITIONAL = (
    "parameters={optimizer: {type: categorical, choices: [sgd, adamw, lion, rmsprop]},"
    " momentum: {type: float, low: 0.1, high: 0.9, when: {parameter: optimizer, in: [sgd, rmsprop]}},"
    " nesterov: {type: categorical, choices: [true, false], when: {parameter: optimizer, in: [sgd]}}}"
)


@pytest.mark.parametrize("kind", ["tpe", "random"])
@pytest.mark.parametrize(
    ("given", "optimizers"),
    [({"momentum": 0.25}, {"sgd", "rmsprop"}), ({"momentum": 0.25, "nesterov": True}, {"sgd"})],
)
def test_an_enqueued_trial_has_its_conditional_values(
    given: dict[str, Any], optimizers: set[str], kind: str
) -> None:
    """Without the parameter on which they depend, which Optuna's `enqueue_trial` does not require."""
    search = SearchSampler(make_space(CONDITIONAL, "sampler.repeats=true", kind=kind))
    assert search.fits(given)
    proposals = [search.ask(enqueued=Enqueued(number=number, params=given)) for number in range(12)]
    drawn = [proposal.params for proposal in proposals if proposal]
    assert all(given.items() <= params.items() for params in drawn)
    assert {params["optimizer"] for params in drawn} == optimizers


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "adamw", "momentum": 0.25},
        {"optimizer": "rmsprop", "nesterov": True},
        {"momentum": 1.0},
        {"optimizer": "muon"},
        {"width": 0.5},
    ],
)
def test_values_that_no_trial_can_have_do_not_fit(given: dict[str, Any]) -> None:
    assert not SearchSampler(make_space(CONDITIONAL)).fits(given)


def rows_of(grid: Space) -> list[dict[str, Any]]:
    return [to_optuna(point) for point in grid_points(grid)]


def changed(old: Space, new: Space) -> SpaceVersions:
    return SpaceVersions(spaces=(old, new))


def test_an_extended_grid_runs_only_new_points() -> None:
    old = make_space("parameters.depth.choices=[56]", "budget.trials=3", kind="grid")
    new = make_space(kind="grid")
    before = run(old, 3, initial_points=rows_of(old))
    after = run(new, 24, before, initial_points=rows_of(new), versions=changed(old, new))
    assert len(set(points(after))) == len(after) == 6
    assert points(after)[3:] == [tuple(row.values()) for row in rows_of(new)[3:]]


def test_a_grid_with_a_new_first_choice_runs_no_point_twice() -> None:
    """A new first choice changes the index of every point."""
    old = make_space("parameters.width.choices=[0.5, 1.0]", "budget.trials=4", kind="grid")
    new = make_space(kind="grid")
    before = run(old, 3, initial_points=rows_of(old))
    after = run(new, 24, before, initial_points=rows_of(new), versions=changed(old, new))
    assert len(set(points(after))) == len(after) == 6


def test_a_grid_with_repeats_starts_over() -> None:
    space = make_space("sampler.repeats=true", kind="grid")
    rows = rows_of(space)
    all_points = run(space, 15, initial_points=rows)
    assert points(all_points)[:6] == points(all_points)[6:12] == [tuple(row.values()) for row in rows]
    assert run(space, 7, all_points[:8], initial_points=rows) == all_points


def test_an_enqueued_point_of_a_grid_with_repeats_is_part_of_the_next_round() -> None:
    space = make_space("sampler.repeats=true", kind="grid")
    rows = rows_of(space)
    trials = run(space, 5, initial_points=rows)
    search = SearchSampler(space, initial_points=rows, existing_trials=trials)
    enqueued = search.ask(enqueued=Enqueued(number=5, params=rows[0]))
    assert enqueued is not None
    drawn = [dataclasses.replace(trials[0], number=5, parameters=enqueued.params)]
    search.on_trial_start(drawn[0])
    for number in range(6, 9):
        proposal = search.ask()
        assert proposal is not None
        drawn.append(dataclasses.replace(trials[0], number=number, parameters=proposal.params))
        search.on_trial_start(drawn[-1])
    assert [dict(trial.parameters) for trial in drawn] == [rows[0], rows[5], rows[1], rows[2]]


def test_an_added_initial_point_runs_next() -> None:
    old = make_space(kind="tpe")
    rows = [{"depth": 92, "width": 1.0}, {"depth": 56, "width": 0.25}]
    before = run(old, 1, initial_points=rows[:1])
    after = run(old, 1, before, initial_points=rows)
    assert [dict(trial.parameters) for trial in after] == rows


def test_the_sampler_keeps_trials_that_a_changed_space_contains() -> None:
    """Spaces with one parameter more, one less, and one choice less; values of old trials are converted."""
    old = make_space(kind="tpe")
    before = run(old, 6)
    more = make_space("parameters.drop_path={type: float, low: 0.0, high: 0.1}", kind="tpe")
    view = SearchSampler(more, existing_trials=before, versions=changed(old, more)).view_trials
    assert [trial.params["drop_path"] for trial in view] == [0.0] * 6, (
        "trials without the parameter have its default"
    )
    less = make_space(
        "parameters={width: {type: categorical, choices: [0.25, 0.5, 1.0]}}",
        "fixed={layout: cifar, depth: 92}",
    )
    view = SearchSampler(less, existing_trials=before, versions=changed(old, less)).view_trials
    assert sorted(trial.params["width"] for trial in view) == [0.25, 0.5, 1.0], (
        "trials of depth 92 are outside"
    )
    fewer = make_space("parameters.depth.choices=[56]", kind="tpe")
    view = SearchSampler(fewer, existing_trials=before, versions=changed(old, fewer)).view_trials
    assert {trial.params["depth"] for trial in view} == {56}
    assert len(view) == 3


def test_warm_start_trials_are_used_in_a_changed_space() -> None:
    old = make_space(kind="tpe")
    earlier = tuple(dataclasses.replace(trial, origin=None) for trial in run(old, 6))
    more = make_space("parameters.drop_path={type: float, low: 0.0, high: 0.1}", kind="tpe")
    view = SearchSampler(more, warm_start_trials=earlier, versions=changed(old, more)).view_trials
    assert [trial.params["drop_path"] for trial in view] == [0.0] * 6
    fewer = make_space("parameters.depth.choices=[56]", kind="tpe")
    view = SearchSampler(fewer, warm_start_trials=earlier, versions=changed(old, fewer)).view_trials
    assert [trial.params["depth"] for trial in view] == [56] * 3


def test_the_generation_of_another_space_is_dropped() -> None:
    old = make_space(kind="nsga2")
    before = run(old, 6)
    assert any(trial.sampler_state for trial in before)
    more = make_space("parameters.drop_path={type: float, low: 0.0, high: 0.1}", kind="nsga2")
    view = SearchSampler(more, existing_trials=before, versions=changed(old, more)).view_trials
    assert [trial.system_attrs for trial in view] == [{}] * 6


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2"])
def test_a_search_continues_in_a_changed_space(kind: str) -> None:
    old = make_space(kind=kind)
    before = run(old, 2)
    for more in (
        ("parameters.depth.choices=[92]",),
        ("parameters.depth.choices=[92, 128]",),
        ("parameters.drop_path={type: float, low: 0.0, high: 0.1}",),
        ("parameters={width: {type: float, low: 0.2, high: 2.0}}", "fixed={layout: cifar, depth: 56}"),
    ):
        new = make_space(*more, kind=kind)
        after = run(new, 3, before, versions=changed(old, new))
        assert after[:2] == before
        assert [trial.origin.space for trial in after if trial.origin] == [1, 1, 2, 2, 2][: len(after)]
        assert len(after) > 3


def test_a_space_that_changed_back_uses_its_earlier_trials() -> None:
    first, second = make_space(kind="nsga2"), make_space("budget.trials=9", kind="nsga2")
    versions = SpaceVersions(
        spaces=(first, make_space("parameters.depth.choices=[92]", kind="nsga2"), second)
    )
    assert versions.like_newest == {1, 3}
    before = run(first, 5)
    assert run(first, 1, before)[5].parameters == run(second, 1, before, versions=versions)[5].parameters
