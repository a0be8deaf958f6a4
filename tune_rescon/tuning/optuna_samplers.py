"""Optuna's samplers, configured from a space file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "READS_PRUNED",
    "SamplerTrial",
    "common_epoch",
    "draws_at_random",
    "make_sampler",
    "sampler_trial",
]


#: Samplers that order pruned trials by their last epoch, and then by their value at that epoch.
READS_PRUNED: Final = ("tpe",)


@dataclass(frozen=True, kw_only=True)
class SamplerTrial:
    """The outcome of a trial in Optuna's terms."""

    state: OptunaState
    values: tuple[float, ...] | None = None
    steps: tuple[tuple[int, float], ...] = ()
    """Intermediate values, as pairs (epoch, value)."""


def common_epoch(reached: Mapping[int, int], enough: int) -> int:
    """Return the epoch at which trials are compared.

    This is the highest rung with at least ``enough`` values. If no rung has as many, it is the lowest rung.

    Args:
        reached: The number of values at each rung, by the rung's epoch.
        enough: The number of values that a rung needs.

    >>> common_epoch({1: 40, 3: 18, 9: 5}, enough=16), common_epoch({1: 2, 3: 0}, enough=16)
    (3, 1)
    """
    return max((epoch for epoch, values in reached.items() if values >= enough), default=min(reached))


def sampler_trial(
    trial: TrialRecord, sampler: str, *, worst: float | None, epoch: int | None = None
) -> SamplerTrial | None:
    """Return the outcome of ``trial`` that a sampler of type ``sampler`` should learn from.

    A trial that diverged or ran out of memory counts as worse than all others. Otherwise the sampler would
    continue to propose its neighbours. A trial that failed because of an error in this package gives no
    information about its parameters.

    Args:
        trial: The trial, which may still be running.
        sampler: ``sampler.type`` of the space file.
        worst: The worst finite final value of any earlier trial. None if no trial has one.
        epoch: The epoch from :func:`common_epoch`, for a sampler of :data:`READS_PRUNED`. A trial counts as
            complete once it has reached this epoch. Until then it counts as worse than all trials that have.
            If None, an ended trial counts by its value.

    Returns:
        The outcome, or None if the trial is still running and gives no information yet.
    """
    if trial.state in (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY):
        return _worst(trial, sampler, worst)
    if not math.isfinite(trial.last_value) or trial.state is TrialState.FAILED:
        return SamplerTrial(state=OptunaState.FAIL) if trial.state.is_final else None
    if epoch is not None and trial.epochs >= epoch:
        then = trial.values[epoch - 1]
        # An older record contains only the last value of a trial of an earlier search.
        value = then if math.isfinite(then) else trial.last_value
        return SamplerTrial(state=OptunaState.COMPLETE, values=(value,))
    if epoch is not None and (trial.state.is_final or trial.state is TrialState.PAUSED):
        last = trial.last_value
        return SamplerTrial(state=OptunaState.PRUNED, values=(last,), steps=((trial.epochs, last),))
    if not trial.state.is_final:
        return None
    values = (trial.value,) if trial.cost is None else (trial.value, trial.cost)
    return SamplerTrial(state=OptunaState.COMPLETE, values=values)


def _worst(trial: TrialRecord, sampler: str, worst: float | None) -> SamplerTrial:
    if sampler in READS_PRUNED:
        # TPE ranks a pruned trial without intermediate values below all trials that have a value.
        return SamplerTrial(state=OptunaState.PRUNED)
    if worst is None or trial.cost is not None:
        return SamplerTrial(state=OptunaState.FAIL)
    return SamplerTrial(state=OptunaState.COMPLETE, values=(worst,))


def make_sampler(space: Space, number: int, *, attempt: int = 0) -> BaseSampler:
    """Create a sampler of type ``space.sampler`` that draws only trial ``number``.

    The random generator depends only on the space's seed, ``number`` and ``attempt``. A resumed search
    therefore draws the same trials without saving the generator's state. Optuna's samplers learn from the
    trials of the study and hold no learned state themselves. The points of a grid are rows, so the sampler of
    a grid is never used.

    Args:
        space: The space, with the sampler's configuration and seed.
        number: The number of the trial to draw.
        attempt: The index of the draw for this trial, counted from 0.
    """
    seed = int(np.random.SeedSequence((space.sampler.seed, number, attempt)).generate_state(1)[0])
    kind = "random" if draws_at_random(space, number) else space.sampler.type
    return _SAMPLERS[kind](space, seed)


def draws_at_random(space: Space, number: int) -> bool:
    """Return whether trial ``number`` is drawn at random although the sampler has a model.

    With the scheduler ``auto``, TPE draws every second trial. A model of values at an early rung may be wrong
    about the last epoch, and the random half does not follow it.
    """
    return space.scheduler.type == "auto" and space.sampler.type == "tpe" and number % 2 == 1


def _tpe(space: Space, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        # Conditional parameters need multivariate and group, which Optuna still marks as experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=space.sampler.n_startup_trials,
            multivariate=True,
            group=True,
            # Trials run in parallel. Without constant_liar, TPE proposes neighbours of running trials again.
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
    # The first generation corresponds to the trials that other samplers draw before they fit a model.
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, space.sampler.n_startup_trials))


_SAMPLERS: Final[dict[str, Callable[[Space, int], BaseSampler]]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "random": _random,
    "grid": _random,
    "nsga2": _nsga2,
}
