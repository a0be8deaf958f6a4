"""Optuna's samplers: the study in memory that they read, what they learn from a trial, and how they are made.

A sampler does not read the durable study for two reasons. Sampling on it costs a query for each trial and a
transaction for each parameter. Also, the state that the durable study must record for a stopped trial is not
the state that a sampler should learn from (:func:`sampler_trial`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import optuna
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, distributions, suggest
from tune_rescon.tuning.stopping.from_space import possible_rungs
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "SamplerTrial",
    "SamplerView",
    "common_epoch",
    "make_sampler",
    "sampler_trial",
]


#: Samplers that order pruned trials by their last epoch, and then by their value at that epoch.
READS_PRUNED: Final = ("tpe",)


class SamplerView:
    """An in-memory Optuna study of chosen trials of a search. New trials are drawn on it.

    Optuna does not allow changes to a result that was reported. A view with such a change
    :attr:`is_outdated`, and a new one must take its place before the next draw.
    """

    def __init__(
        self,
        space: Space,
        *,
        warm_start_trials: Sequence[TrialRecord],
        trials: Sequence[TrialRecord],
        shown: frozenset[int],
        next_number: int,
    ) -> None:
        """Build the study from the warm-start trials and trials of the search.

        Args:
            space: The space to draw from.
            warm_start_trials: Ended trials of an earlier search.
            trials: The trials of the search, in the order of their numbers.
            shown: The numbers of the trials that the study contains. The worst value, and the epoch at which
                trials are compared, depend on all trials.
            next_number: The number of the next trial to draw.
        """
        self._space = space
        self._distributions = distributions(space)
        compares = space.sampler.type in READS_PRUNED and space.metric.against is None
        self._reached: dict[int, set[int]] = {rung: set() for rung in possible_rungs(space) if compares}
        for trial in trials:
            self._count_rungs(trial)
        self._epoch = self._common_epoch()
        self._is_outdated = False
        direction = StudyDirection.MAXIMIZE if space.metric.mode == "max" else StudyDirection.MINIMIZE
        directions = [direction, *([StudyDirection.MINIMIZE] if space.metric.against else [])]
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._ids: dict[int, int] = {}
        self._worst: float | None = None
        self._reported: dict[int, SamplerTrial] = {}
        self._add_all(warm_start_trials, trials, shown)
        self._choose_parents(trials, next_number)

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """The trials of the study: the warm-start trials first."""
        return self._study.trials

    @property
    def is_outdated(self) -> bool:
        """True if the view lacks a change of a result."""
        return self._is_outdated

    def draw(self, number: int, attempt: int, row: Mapping[str, Any] | None = None) -> optuna.Trial:
        """Draw trial ``number``, or create it with the parameters of ``row``, drawing those that it omits.

        The caller must :meth:`register` or :meth:`discard` the trial.
        """
        self._study.sampler = make_sampler(self._space, number, attempt=attempt)
        if row is not None:
            self._study.enqueue_trial(dict(row))
        trial = self._study.ask()
        suggest(self._space, trial)
        return trial

    def discard(self, trial: optuna.Trial) -> None:
        """Leave a drawn trial out. Samplers ignore failed trials, so it has no effect on later draws."""
        self._study.tell(trial, state=OptunaState.FAIL)

    def register(self, number: int, trial: optuna.Trial) -> FrozenTrial:
        """Keep a drawn trial under its number in the search, and return it as Optuna stores it."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        self._ids[number] = trial_id
        return self._storage.get_trial(trial_id)

    def renumber(self, expected: int, number: int) -> None:
        """Move a registered trial to the number that the record gave it."""
        if number not in self._ids:
            self._ids[number] = self._ids.pop(expected)

    def tell(self, trial: TrialRecord) -> None:
        """Add the new results of a trial."""
        self._count_rungs(trial)
        self._is_outdated |= self._epoch != self._common_epoch()
        outcome, trial_id = self._outcome(trial), self._ids.get(trial.number)
        if outcome is None or trial_id is None or outcome == self._reported.get(trial.number):
            return
        self._is_outdated |= trial.number in self._reported
        if self._is_outdated:
            return
        self._reported[trial.number] = outcome
        for step, value in outcome.steps:
            self._storage.set_trial_intermediate_value(trial_id, step, value)
        self._storage.set_trial_state_values(trial_id, outcome.state, outcome.values)

    def update_worst(self, trial: TrialRecord) -> None:
        """Update the worst value, which diverged trials are given, with an ended trial."""
        if trial.state.is_final and math.isfinite(trial.value):
            worse = min if trial.maximize else max
            self._worst = trial.value if self._worst is None else worse(self._worst, trial.value)

    def _add_all(
        self, warm_start_trials: Sequence[TrialRecord], trials: Sequence[TrialRecord], shown: frozenset[int]
    ) -> None:
        for trial in warm_start_trials:
            self._add(trial, self._outcome(trial))
        self._reported.clear()  # These numbers belong to another search.
        outcomes: dict[int, SamplerTrial | None] = {}
        # In the order of their ends: a diverged trial gets the worst value of those that ended before it.
        for trial in sorted(trials, key=_end):
            if trial.number in shown:
                outcomes[trial.number] = self._outcome(trial)
            self.update_worst(trial)
        for trial in trials:
            if trial.number in shown:
                self._ids[trial.number] = self._add(trial, outcomes[trial.number])

    def _count_rungs(self, trial: TrialRecord) -> None:
        """Count the rungs that a trial has reached; see :func:`common_epoch`."""
        for rung, numbers in self._reached.items():
            if trial.epochs >= rung and math.isfinite(trial.values[rung - 1]):
                numbers.add(trial.number)

    def _common_epoch(self) -> int | None:
        if not self._reached:
            return None
        counts = {rung: len(numbers) for rung, numbers in self._reached.items()}
        # Use the number of trials that TPE needs before it fits a model.
        return common_epoch(counts, enough=self._space.sampler.n_startup_trials)

    def _outcome(self, trial: TrialRecord) -> SamplerTrial | None:
        return sampler_trial(trial, self._space.sampler.type, worst=self._worst, epoch=self._epoch)

    def _add(self, trial: TrialRecord, outcome: SamplerTrial | None) -> int:
        """Add a trial to the study and return its id there."""
        if outcome is None:
            template = self._template(trial, state=OptunaState.RUNNING)
        else:
            self._reported[trial.number] = outcome
            template = self._template(
                trial,
                state=outcome.state,
                values=outcome.values,
                intermediate_values=dict(outcome.steps),
            )
        return self._storage.create_new_trial(self._study_id, template_trial=template)

    def _template(self, trial: TrialRecord, **outcome: Any) -> FrozenTrial:
        return create_trial(
            params=dict(trial.parameters),
            distributions={name: self._distributions[name] for name in trial.parameters},
            system_attrs=dict(trial.sampler_state),
            **outcome,
        )

    def _choose_parents(self, trials: Sequence[TrialRecord], next_number: int) -> None:
        """Make a genetic sampler choose the parents of all started generations again.

        The sampler stores its choice in the study. Once the choice is stored, the sampler crosses the parents
        in another order.
        """
        sampler = make_sampler(self._space, next_number)
        if isinstance(sampler, BaseGASampler):
            key = f"{type(sampler).__name__}:generation"
            begun = max((trial.sampler_state.get(key, 0) for trial in trials), default=0)
            for generation in range(1, begun + 1):
                sampler.get_parent_population(self._study, generation)


def _end(trial: TrialRecord) -> float:
    """Return when a trial ended, in seconds since 1970; inf if it has not ended."""
    return math.inf if trial.end_seconds is None else trial.end_seconds


@dataclass(frozen=True, kw_only=True)
class SamplerTrial:
    """The outcome of a trial in Optuna's terms."""

    state: OptunaState
    values: tuple[float, ...] | None = None
    steps: tuple[tuple[int, float], ...] = ()
    """Intermediate values, as pairs (epoch, value)."""


def common_epoch(reached: Mapping[int, int], enough: int) -> int:
    """Return the epoch at which trials are compared: the highest rung with at least ``enough`` values.

    If no rung has as many, it is the lowest rung. ``reached`` is the number of values at each rung's epoch.

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
        return _as_worst(trial, sampler, worst)
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


def _as_worst(trial: TrialRecord, sampler: str, worst: float | None) -> SamplerTrial:
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
