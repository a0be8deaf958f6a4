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


def make_sampler(space: Space, number: int, *, attempt: int = 0) -> BaseSampler:
    """A sampler of ``space.sampler`` that draws trial ``number``, and no other.

    Its generator depends on the space's seed, the number and the ``attempt`` alone: no state of a generator
    has to outlive a driver for the search to go on as it would have. What Optuna's samplers learn is in the
    trials of the study, not in them. A grid's points are rows, so its sampler is never asked.
    """
    words = np.random.SeedSequence((space.sampler.seed, number, attempt)).generate_state(1)
    return _SAMPLERS[space.sampler.type](space, int(words[0]))


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


def _nsga2(space: Space, seed: int) -> BaseSampler:
    # Its first generation is what other samplers draw before they model.
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, space.sampler.n_startup_trials))


_SAMPLERS: Final[dict[str, Callable[[Space, int], BaseSampler]]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "random": _random,
    "grid": _random,
    "nsga2": _nsga2,
}
