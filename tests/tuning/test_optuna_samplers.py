"""Every sampler of a space file is created, seeded, and samples from a real space."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest

from tune_rescon.spaces import Space, load_space, suggest
from tune_rescon.tuning.optuna_samplers import make_sampler

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
