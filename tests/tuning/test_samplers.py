"""Every sampler a space file may name is made, seeded, and draws from a real space."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from tune_rescon.spaces import Space, load_space, suggest
from tune_rescon.tuning.samplers import make_sampler

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


def space(kind: str) -> Space:
    return load_space("digits", [f"sampler.type={kind}", "initial=[]", NO_CONDITIONS])


def draws(of: Space, *, drawn: int = 0, count: int = 3) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=make_sampler(of, drawn=drawn))
    found = []
    for _ in range(count):
        trial = study.ask()
        suggest(of, trial)
        study.tell(trial, trial.params["learning_rate"])
        found.append(trial.params)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_optunas_and_draws_the_same_from_the_same_seed(kind: str) -> None:
    of = space(kind)
    assert type(make_sampler(of)) is KINDS[kind]
    assert draws(of) == draws(of)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_that_goes_on_does_not_draw_the_first_trials_again(kind: str) -> None:
    of = space(kind)
    first = [params["learning_rate"] for params in draws(of)]
    later = [params["learning_rate"] for params in draws(of, drawn=3)]
    assert not set(first) & set(later)
    assert draws(of, drawn=3) == draws(of, drawn=3) != draws(of, drawn=4)


def test_tpe_knows_conditions_and_parallel_trials() -> None:
    study = optuna.create_study(sampler=make_sampler(load_space("digits")))
    of = load_space("digits", ["initial=[]"])
    for number in range(12):
        trial = study.ask()
        suggest(of, trial)
        study.tell(trial, float(number))
    for drawn in study.trials:
        assert ("drop_path" in drawn.params) == (drawn.params["depth"] == 92)
