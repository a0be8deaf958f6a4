"""Optuna's samplers, set up as a space file says."""

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
    "make_sampler",
    "told",
]


#: Samplers that order pruned trials by how far they came, and by their value there.
READS_PRUNED: Final = ("tpe",)


@dataclass(frozen=True, kw_only=True)
class SamplerTrial:
    """A trial in Optuna's words."""

    state: OptunaState
    values: tuple[float, ...] | None = None
    steps: tuple[tuple[int, float], ...] = ()
    """Intermediate values: (epoch, value)."""


def common_epoch(reached: Mapping[int, int], enough: int) -> int:
    """The epoch to compare trials at: the highest rung with ``enough`` values, else the lowest rung.

    >>> common_epoch({1: 40, 3: 18, 9: 5}, enough=16), common_epoch({1: 2, 3: 0}, enough=16)
    (3, 1)
    """
    return max((epoch for epoch, values in reached.items() if values >= enough), default=min(reached))


def told(
    trial: TrialRecord, sampler: str, *, worst: float | None, epoch: int | None = None
) -> SamplerTrial | None:
    """``trial`` for a sampler of the type ``sampler``; None: it runs, and says nothing yet.

    One that diverged or ran out of memory is worse than all others, or the sampler would go on proposing its
    neighbours; one that failed by a fault of ours says nothing about its parameters.

    Args:
        trial: ended, or not yet.
        sampler: ``sampler.type`` of the space file.
        worst: the worst finite value that any trial before it ended with; None if there is none.
        epoch: from :func:`common_epoch`, for a sampler of :data:`READS_PRUNED`; a trial counts as complete
            once it has come so far, and until then as worse than all that have. None: by its value.
    """
    if trial.state in (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY):
        return _worst(trial, sampler, worst)
    if not math.isfinite(trial.last_value) or trial.state is TrialState.FAILED:
        return SamplerTrial(state=OptunaState.FAIL) if trial.state.is_final else None
    if epoch is not None and trial.epochs >= epoch:
        then = trial.values[epoch - 1]
        # Of a trial of an earlier search an older record holds the last value only.
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
        # TPE ranks a pruned trial without any value below all that have one.
        return SamplerTrial(state=OptunaState.PRUNED)
    if worst is None or trial.cost is not None:
        return SamplerTrial(state=OptunaState.FAIL)
    return SamplerTrial(state=OptunaState.COMPLETE, values=(worst,))


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
