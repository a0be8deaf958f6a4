"""Optuna's samplers: each one is created and seeded, and what it learns from a trial depends on its state."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space, suggest
from tune_rescon.tuning import TrialRecord
from tune_rescon.tuning.optuna_samplers import (
    SamplerTrial,
    SamplerView,
    common_epoch,
    make_sampler,
    sampler_trial,
)

KINDS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
NO_CONDITIONS = (
    "parameters={learning_rate: {type: float, low: 0.01, high: 1.0, log: true},"
    " weight_decay: {type: float, low: 0.0, high: 0.1}}"
)


def make_space(kind: str) -> Space:
    return load_space("digits", [f"sampler.type={kind}", "initial=[]", NO_CONDITIONS])


def sample_trials(space: Space, *, first: int = 0, count: int = 3, attempt: int = 0) -> list[dict[str, Any]]:
    study = optuna.create_study()
    samples = []
    for number in range(first, first + count):
        study.sampler = make_sampler(space, number, attempt=attempt)
        trial = study.ask()
        suggest(space, trial)
        study.tell(trial, trial.params["learning_rate"])
        samples.append(trial.params)
    return samples


@pytest.mark.parametrize("kind", KINDS)
def test_each_sampler_is_optunas_and_seeded_by_trial_number(kind: str) -> None:
    space = make_space(kind)
    assert type(make_sampler(space, 0)) is KINDS[kind]
    assert sample_trials(space) == sample_trials(space)
    rates = [
        params["learning_rate"]
        for params in [
            *sample_trials(space),
            *sample_trials(space, first=3),
            *sample_trials(space, attempt=1),
        ]
    ]
    assert len(set(rates)) == len(rates)


def test_the_nsga2_population_size_is_n_startup_trials() -> None:
    sampler = make_sampler(load_space("digits", ["sampler.type=nsga2"]), 0)
    assert isinstance(sampler, optuna.samplers.NSGAIISampler)
    assert sampler.population_size == load_space("digits").sampler.n_startup_trials


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_tpe_is_multivariate_and_uses_the_constant_liar() -> None:
    drops = "parameters.drop_path={type: float, low: 0.0, high: 0.1, when: {parameter: depth, in: [92]}}"
    depths = "parameters.depth={type: categorical, choices: [56, 92]}"
    space = load_space(
        "digits",
        ["sampler.type=tpe", "initial=[]", "sampler.n_startup_trials=8", NO_CONDITIONS, depths, drops],
    )
    seed = int(np.random.SeedSequence((space.sampler.seed, 40, 0)).generate_state(1)[0])

    def draw(sampler: optuna.samplers.BaseSampler) -> dict[str, Any]:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for number in range(60):
            trial = study.ask()
            suggest(space, trial)
            if number % 2:
                study.tell(trial, trial.params["learning_rate"] - trial.params.get("drop_path", 0.0))
        study.sampler = sampler
        trial = study.ask()
        suggest(space, trial)
        return trial.params

    def tpe(*, together: bool = True, liar: bool = True) -> optuna.samplers.TPESampler:
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=space.sampler.n_startup_trials,
            multivariate=together,
            group=together,
            constant_liar=liar,
        )

    assert draw(make_sampler(space, 40)) == draw(tpe())
    assert draw(tpe()) != draw(tpe(liar=False))
    assert draw(tpe()) != draw(tpe(together=False))


def trial(state: str, *values: float, cost: float | None = None) -> TrialRecord:
    return TrialRecord(
        number=0,
        state=TrialState(state),
        parameters={},
        metric="val_accuracy",
        maximize=True,
        values=values,
        cost=cost,
    )


COMPLETE, PRUNED, FAIL = OptunaState.COMPLETE, OptunaState.PRUNED, OptunaState.FAIL


@pytest.mark.parametrize(
    ("ended", "sampler", "expected"),
    [
        (trial("finished", 0.5, 0.7), "tpe", SamplerTrial(state=COMPLETE, values=(0.7,))),
        (trial("finished", 0.5, 0.7), "gp", SamplerTrial(state=COMPLETE, values=(0.7,))),
        (trial("stopped", 0.5, 0.6), "cmaes", SamplerTrial(state=COMPLETE, values=(0.6,))),
        (trial("stopped", 0.6, cost=2.0), "tpe", SamplerTrial(state=COMPLETE, values=(0.6, 2.0))),
        (trial("finished", 0.6, cost=2.0), "nsga2", SamplerTrial(state=COMPLETE, values=(0.6, 2.0))),
        (trial("failed", 0.6), "tpe", SamplerTrial(state=FAIL)),
        (trial("failed"), "gp", SamplerTrial(state=FAIL)),
        (trial("stopped"), "gp", SamplerTrial(state=FAIL)),  # before its first epoch
        (trial("stopped"), "tpe", SamplerTrial(state=FAIL)),
    ],
)
def test_a_trial_becomes_an_optuna_trial(ended: TrialRecord, sampler: str, expected: SamplerTrial) -> None:
    assert sampler_trial(ended, sampler, worst=0.1) == expected


@pytest.mark.parametrize(
    ("state", "values", "expected"),
    [
        ("stopped", (0.5, 0.55, 0.6), SamplerTrial(state=COMPLETE, values=(0.6,))),
        ("finished", (0.5, 0.55, 0.6, 0.9), SamplerTrial(state=COMPLETE, values=(0.6,))),
        ("finished", (math.nan, math.nan, math.nan, 0.9), SamplerTrial(state=COMPLETE, values=(0.9,))),
        ("running", (0.5, 0.55, 0.6, 0.9), SamplerTrial(state=COMPLETE, values=(0.6,))),
        ("interrupted", (0.5, 0.55, 0.6), SamplerTrial(state=COMPLETE, values=(0.6,))),
        ("paused", (0.5, 0.55, 0.6), SamplerTrial(state=COMPLETE, values=(0.6,))),
        ("stopped", (0.5,), SamplerTrial(state=PRUNED, values=(0.5,), steps=((1, 0.5),))),
        ("paused", (0.5,), SamplerTrial(state=PRUNED, values=(0.5,), steps=((1, 0.5),))),
        ("running", (0.5, 0.55), None),
        ("interrupted", (0.5,), None),
        ("running", (), None),
        ("failed", (0.5, 0.55, 0.6), SamplerTrial(state=FAIL)),
        ("diverged", (0.5, 0.55, 0.6, math.nan), SamplerTrial(state=PRUNED)),
    ],
)
def test_tpe_gets_every_trial_as_of_one_epoch(
    state: str, values: tuple[float, ...], expected: SamplerTrial | None
) -> None:
    assert sampler_trial(trial(state, *values), "tpe", worst=0.1, epoch=3) == expected


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "random"])
@pytest.mark.parametrize("state", ["running", "paused", "interrupted"])
def test_other_samplers_get_only_ended_trials(state: str, sampler: str) -> None:
    assert sampler_trial(trial(state, 0.5), sampler, worst=0.1) is None


@pytest.mark.parametrize(
    ("reached", "epoch"),
    [
        ({1: 0, 3: 0, 9: 0}, 1),
        ({1: 15, 3: 5, 9: 1}, 1),
        ({1: 48, 3: 16, 9: 5}, 3),
        ({1: 160, 3: 54, 9: 18}, 9),
        ({9: 0}, 9),
    ],
)
def test_the_common_epoch_is_the_highest_rung_with_enough_trials(reached: dict[int, int], epoch: int) -> None:
    assert common_epoch(reached, enough=16) == epoch


@pytest.mark.parametrize("state", ["diverged", "out_of_memory"])
@pytest.mark.parametrize(
    ("sampler", "worst", "expected"),
    [
        ("tpe", 0.1, SamplerTrial(state=PRUNED)),
        ("tpe", None, SamplerTrial(state=PRUNED)),
        ("gp", 0.1, SamplerTrial(state=COMPLETE, values=(0.1,))),
        ("cmaes", None, SamplerTrial(state=FAIL)),
        ("nsga2", 0.1, SamplerTrial(state=COMPLETE, values=(0.1,))),
    ],
)
def test_a_failed_trial_counts_as_the_worst(
    state: str, sampler: str, worst: float | None, expected: SamplerTrial
) -> None:
    assert sampler_trial(trial(state, 0.5, math.nan), sampler, worst=worst) == expected


@pytest.mark.parametrize("state", ["diverged", "out_of_memory"])
def test_with_two_objectives_a_failed_trial_has_no_value(state: str) -> None:
    assert sampler_trial(trial(state, math.nan, cost=2.0), "nsga2", worst=0.1) == SamplerTrial(state=FAIL)


#: 3:00 of summer time, when clocks in Berlin are set back to 2:00, in seconds since 1970.
SUMMER_TIME_ENDS = 1792890000.0


def test_trials_of_a_record_keep_their_order_in_the_repeated_hour_of_the_end_of_summer_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trial 0 ends at 2:50 of summer time, trial 1 diverges at 2:10 of winter time, trial 2 ends at 2:20.

    A database does not store which of the two hours it was.
    """
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    ends = [
        (-10, TrialState.STOPPED, (0.5,)),
        (10, TrialState.DIVERGED, (math.nan,)),
        (20, TrialState.STOPPED, (0.1,)),
    ]
    trials = [
        TrialRecord(
            number=number,
            state=state,
            parameters={"learning_rate": 0.1, "weight_decay": 0.0},
            metric="val_accuracy",
            maximize=True,
            values=values,
            times_ms=(int(1000 * (SUMMER_TIME_ENDS + 60 * minutes)),),
            ended=datetime.fromtimestamp(SUMMER_TIME_ENDS + 60 * minutes).replace(fold=0),
        )
        for number, (minutes, state, values) in enumerate(ends)
    ]
    view = SamplerView(
        make_space("random"), warm_start_trials=(), trials=trials, shown=frozenset({0, 1, 2}), next_number=3
    )
    monkeypatch.undo()
    time.tzset()
    assert [trial.values for trial in view.trials] == [[0.5], [0.5], [0.1]]
