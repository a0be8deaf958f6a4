"""Optuna's samplers, set up as a space file says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final

import optuna
from optuna.samplers import BaseSampler

from tune_rescon.spaces import Space

__all__ = ["make_sampler"]


def make_sampler(space: Space) -> BaseSampler:
    """The sampler of ``space.sampler``. A grid's points are queued, so its sampler is never asked."""
    return _SAMPLERS[space.sampler.type](space)


def _tpe(space: Space) -> BaseSampler:
    with warnings.catch_warnings():
        # Conditional parameters need multivariate + group, which Optuna still calls experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=space.sampler.seed,
            n_startup_trials=space.sampler.n_startup_trials,
            multivariate=True,
            group=True,
            # Trials run in parallel: without it, TPE proposes the neighbours of running trials again.
            constant_liar=True,
        )


def _gp(space: Space) -> BaseSampler:
    return optuna.samplers.GPSampler(
        seed=space.sampler.seed,
        n_startup_trials=space.sampler.n_startup_trials,
        warn_independent_sampling=False,
    )


def _cmaes(space: Space) -> BaseSampler:
    return optuna.samplers.CmaEsSampler(
        seed=space.sampler.seed,
        n_startup_trials=space.sampler.n_startup_trials,
        warn_independent_sampling=False,
    )


def _random(space: Space) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=space.sampler.seed)


def _nsga2(space: Space) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=space.sampler.seed)


_SAMPLERS: Final[dict[str, Callable[[Space], BaseSampler]]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "random": _random,
    "grid": _random,
    "nsga2": _nsga2,
}
