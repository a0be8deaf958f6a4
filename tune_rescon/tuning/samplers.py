"""Optuna's samplers, set up as a space file says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from tune_rescon.spaces import Space

__all__ = ["make_sampler"]


def make_sampler(space: Space, *, drawn: int = 0) -> BaseSampler:
    """The sampler of ``space.sampler``. A grid's points are queued, so its sampler is never asked.

    One that goes on after ``drawn`` trials gets a seed of its own: with the first one's it would draw those
    trials once more.
    """
    seed = space.sampler.seed
    if drawn:
        seed = int(np.random.SeedSequence((seed, drawn)).generate_state(1)[0])
    return _SAMPLERS[space.sampler.type](space, seed)


def _tpe(space: Space, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        # Conditional parameters need multivariate + group, which Optuna still calls experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=space.sampler.n_startup_trials,
            multivariate=True,
            group=True,
            # Trials run in parallel: without it, TPE proposes the neighbours of running trials again.
            constant_liar=True,
        )


def _gp(space: Space, seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(
        seed=seed,
        n_startup_trials=space.sampler.n_startup_trials,
        warn_independent_sampling=False,
    )


def _cmaes(space: Space, seed: int) -> BaseSampler:
    return optuna.samplers.CmaEsSampler(
        seed=seed,
        n_startup_trials=space.sampler.n_startup_trials,
        warn_independent_sampling=False,
    )


def _random(_: Space, seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _nsga2(_: Space, seed: int) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed)


_SAMPLERS: Final[dict[str, Callable[[Space, int], BaseSampler]]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "random": _random,
    "grid": _random,
    "nsga2": _nsga2,
}
